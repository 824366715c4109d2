//! How one execution is spread over a cluster: nodes, tasks, and what starts them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Resources;

/// Sites have it which can give one execution several nodes, or several tasks.
pub const NODES_RUNTIME: &str = "nodes";
/// Sites have it whose executions are jobs of Slurm.
pub const SLURM_RUNTIME: &str = "slurm";

/// The nodes and tasks of one execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spread {
    /// At least 1.
    pub nodes: u32,
    /// At least 1, on each node.
    pub tasks_per_node: u32,
    /// What starts the command as each task. Without it the command is started once, on the first node.
    pub launch: Option<Launch>,
}

/// What starts the command of an execution as each of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Launch {
    /// Slurm's own `srun`.
    Srun,
}

impl Launch {
    pub const ALL: [Self; 1] = [Self::Srun];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Srun => "srun",
        }
    }
}

impl Spread {
    /// How many tasks on all nodes.
    pub const fn tasks(&self) -> u32 {
        self.nodes.saturating_mul(self.tasks_per_node)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = |count| if count == 1 { "" } else { "s" };
        let Self { nodes, tasks_per_node, .. } = self;
        write!(formatter, "{nodes} node{} with {tasks_per_node} task{} each", several(*nodes), several(*tasks_per_node))
    }
}

impl Resources {
    /// How many nodes it takes.
    pub fn nodes(&self) -> u32 {
        self.spread.map_or(1, |spread| spread.nodes)
    }

    /// Thousandths of a CPU for all its tasks.
    pub fn cpu_millis_in_all(&self) -> u32 {
        self.cpu_millis.saturating_mul(self.spread.map_or(1, |spread| spread.tasks()))
    }

    /// Bytes of memory on all its nodes.
    pub fn memory_bytes_in_all(&self) -> Option<u64> {
        self.memory_bytes.map(|bytes| bytes.saturating_mul(self.nodes().into()))
    }

    /// Whether it is for a batch system alone.
    pub fn is_for_batch_system(&self) -> bool {
        self.spread.is_some() || !self.sbatch.is_empty()
    }

    /// What a site with these runtimes cannot give of this: what is asked for, and where it is to be had.
    pub fn not_given_by(&self, runtimes: &[String]) -> Option<(String, &'static str)> {
        let has = |wanted: &str| runtimes.iter().any(|runtime| runtime == wanted);
        if let Some(spread) = self.spread.filter(|_| !has(NODES_RUNTIME)) {
            return Some((spread.to_string(), "sites whose executions are jobs of Slurm give one execution several"));
        }
        let launch =
            self.spread.and_then(|spread| spread.launch).map(|launch| format!("`launch: {}`", launch.as_str()));
        let options = (!self.sbatch.is_empty()).then(|| "options of `sbatch`".to_owned());
        let asked = launch.or(options).filter(|_| !has(SLURM_RUNTIME))?;
        Some((asked, "that is for sites whose executions are jobs of Slurm"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Capacity, Gpus};
    use super::*;

    fn spread(nodes: u32, tasks_per_node: u32, launch: Option<Launch>) -> Resources {
        Resources { spread: Some(Spread { nodes, tasks_per_node, launch }), ..Resources::default() }
    }

    #[test]
    fn cpus_are_for_each_task_and_memory_and_gpus_for_each_node() {
        let gpus = Some(Gpus { count: 2, kind: None });
        let wanted = Resources { cpu_millis: 1_500, memory_bytes: Some(1 << 30), gpus, ..spread(3, 4, None) };
        assert_eq!((wanted.cpu_millis_in_all(), wanted.memory_bytes_in_all()), (18_000, Some(3 << 30)));
        let capacity = |count| Capacity { gpus: [("a100".to_owned(), count)].into(), ..Capacity::default() };
        assert_eq!(capacity(6).lacks(&wanted), None);
        assert_eq!(capacity(5).lacks(&wanted), Some(("6 GPUs".to_owned(), "5 of kind a100".to_owned())));
        assert_eq!((capacity(11).times(&wanted), capacity(12).times(&wanted)), (1, 2));
        let plain = Resources { cpu_millis: 500, memory_bytes: Some(7), ..Resources::default() };
        assert_eq!((plain.cpu_millis_in_all(), plain.memory_bytes_in_all()), (500, Some(7)));
    }

    #[test]
    fn sites_that_cannot_give_it_are_told_from_those_that_can() {
        let of = |runtimes: &[&str]| runtimes.iter().map(|runtime| (*runtime).to_owned()).collect::<Vec<_>>();
        let (plain, templated, slurm) = (of(&["command"]), of(&["command", "nodes"]), of(&["nodes", "slurm"]));
        let asked = |wanted: &Resources, runtimes: &[String]| wanted.not_given_by(runtimes).map(|(asked, _)| asked);
        assert_eq!(asked(&Resources::default(), &plain), None);
        assert_eq!(asked(&spread(2, 1, None), &plain).as_deref(), Some("2 nodes with 1 task each"));
        assert_eq!(asked(&spread(2, 1, None), &templated), None);
        assert_eq!(asked(&spread(1, 4, Some(Launch::Srun)), &templated).as_deref(), Some("`launch: srun`"));
        assert_eq!(asked(&spread(1, 4, Some(Launch::Srun)), &slurm), None);
        let optioned = Resources { sbatch: vec!["--exclusive".to_owned()], ..Resources::default() };
        assert_eq!(asked(&optioned, &templated).as_deref(), Some("options of `sbatch`"));
        assert_eq!(asked(&optioned, &slurm), None);
    }
}
