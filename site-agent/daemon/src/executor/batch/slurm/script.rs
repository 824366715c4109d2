//! The script of a job: options for the cluster, and the shim that it becomes.

use super::cpus_per_task;
use crate::config::SlurmSettings;
use crate::executor::batch::system::{Becomes, NewJob, SHIM_BYTES, TIME_MARGIN, quoted, words};
use crate::shim::job::evidence::Asked;

/// The script that `sbatch` is given for what is submitted together.
pub(super) fn script(settings: &SlurmSettings, job: &NewJob<'_>, comment: &str) -> String {
    let NewJob { folder, token, batch, common, .. } = *job;
    let mut lines = vec!["#!/bin/sh".to_owned()];
    let mut option = |text: String| lines.push(format!("#SBATCH {text}"));
    option(format!("--job-name={}", batch.name));
    option(format!("--comment=\"{comment}\""));
    // The executions of a site that lost them are its control plane's to repeat.
    option("--no-requeue".to_owned());
    option("--open-mode=append".to_owned());
    let (count, said) = (batch.keys.len(), folder.said());
    if count > 1 {
        option(format!("--array=0-{}", count - 1));
    }
    let element = if count > 1 { "%a" } else { "0" };
    option(format!("--output=\"{}/{token}.{element}\"", said.display()));
    option("--chdir=/".to_owned());
    if let Some(spread) = batch.asked.spread {
        option(format!("--nodes={}", spread.nodes));
        option(format!("--ntasks-per-node={}", spread.tasks_per_node));
    }
    option(format!("--cpus-per-task={}", cpus_per_task(common)));
    if let Some(bytes) = common.memory_bytes {
        option(format!("--mem={}M", bytes.saturating_add(SHIM_BYTES).div_ceil(1 << 20)));
    }
    if let Some(time) = common.time {
        option(format!("--time={}", time.saturating_add(TIME_MARGIN).as_secs().div_ceil(60)));
    }
    beyond(&batch.asked).into_iter().for_each(&mut option);
    // Behind these stands what a site's administrator says.
    batch.asked.sbatch.iter().for_each(|text| option(text.clone()));
    let named = [("partition", &settings.partition), ("account", &settings.account), ("qos", &settings.qos)];
    for (name, value) in named {
        if let Some(value) = value {
            option(format!("--{name}={value}"));
        }
    }
    settings.options.iter().for_each(|text| option(text.clone()));
    let words: Vec<String> = words(job).iter().map(|word| quoted(word)).collect();
    let place = match job.becomes {
        Becomes::Shim(_) => " \"${SLURM_ARRAY_TASK_ID:-0}\"",
        Becomes::Worker(_) => "",
    };
    lines.push(format!("exec {}{place}\n", words.join(" ")));
    lines.join("\n")
}

/// What is asked for beside CPUs and memory, in Slurm's words.
fn beyond(asked: &Asked) -> Vec<String> {
    let gpus = (asked.gpus > 0).then(|| match &asked.gpu_kind {
        Some(kind) => format!("--gres=gpu:{kind}:{}", asked.gpus),
        None => format!("--gres=gpu:{}", asked.gpus),
    });
    let licences: Vec<String> = asked.named.iter().map(|(name, count)| format!("{name}:{count}")).collect();
    gpus.into_iter().chain((!licences.is_empty()).then(|| format!("--licenses={}", licences.join(",")))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
    use atoll_model::resources::Spread;
    use atoll_model::time::Timestamp;

    use super::*;
    use crate::config::ShimProgram;
    use crate::executor::batch::system::job_name;
    use crate::shim::job::evidence::{Batch, JobsFolder, OfJob, VERSION};
    use crate::shim::protocol::{Common, Key};

    fn of(count: u32, common: &Common, asked: Asked) -> String {
        let execution = |element| ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element };
        let keys = (0..count).map(|element| Key { execution: execution(element), attempt: Attempt::FIRST }).collect();
        let name = job_name("flood model/π", "t1");
        let batch =
            Batch { version: VERSION, name, keys, at: Timestamp::ZERO, job: None, asked, of_job: OfJob::default() };
        let settings = SlurmSettings {
            partition: Some("cpu".to_owned()),
            options: vec!["--constraint=avx2".to_owned()],
            ..SlurmSettings::default()
        };
        let program = ShimProgram { program: "/opt/it's/atoll".into(), arguments: vec!["shim".to_owned()] };
        let folder = JobsFolder::new("/shared/jobs".into());
        let becomes = Becomes::Shim(&program);
        let job = NewJob { becomes, folder: &folder, token: "t1", batch: &batch, common };
        script(&settings, &job, "atoll agent_1 t1")
    }

    #[test]
    fn limits_are_rounded_up_and_the_shim_has_room_beside_them() {
        let time = Some(Duration::from_secs(61));
        let common = Common { memory_bytes: Some(100 << 20), cpu_millis: Some(1_001), time, ..Common::default() };
        let expected = "#!/bin/sh
#SBATCH --job-name=atoll.flood_model__.t1
#SBATCH --comment=\"atoll agent_1 t1\"
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=\"/shared/jobs/said/t1.0\"
#SBATCH --chdir=/
#SBATCH --cpus-per-task=2
#SBATCH --mem=116M
#SBATCH --time=3
#SBATCH --partition=cpu
#SBATCH --constraint=avx2
exec '/opt/it'\\''s/atoll' 'shim' 'job' '/shared/jobs' 't1' \"${SLURM_ARRAY_TASK_ID:-0}\"
";
        assert_eq!(of(1, &common, Asked::default()), expected);
    }

    #[test]
    fn nodes_and_tasks_are_asked_for_and_the_steps_own_options_stand_before_those_of_the_site() {
        let spread = Some(Spread { nodes: 2, tasks_per_node: 4, launch: None });
        let asked = Asked { spread, sbatch: vec!["--exclusive".to_owned()], ..Asked::default() };
        let common = Common { cpu_millis: Some(3_000), ..Common::default() };
        let expected = "--nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=3
#SBATCH --exclusive
#SBATCH --partition=cpu
#SBATCH --constraint=avx2
exec";
        let script = of(1, &common, asked);
        assert!(script.contains(expected), "{script}");
    }

    #[test]
    fn what_is_of_one_step_is_one_array() {
        let script = of(3, &Common::default(), Asked::default());
        assert!(script.contains("#SBATCH --array=0-2\n") && script.contains("said/t1.%a\""), "{script}");
        assert!(!script.contains("--mem") && !script.contains("--time"), "{script}");
    }

    #[test]
    fn a_cluster_is_asked_for_gpus_and_licences_in_its_own_words() {
        let named = [("matlab".to_owned(), 2), ("abaqus".to_owned(), 1)].into();
        let asked = Asked { gpus: 2, gpu_kind: Some("a100".to_owned()), named, ..Asked::default() };
        let script = of(1, &Common::default(), asked);
        assert!(script.contains("#SBATCH --gres=gpu:a100:2\n#SBATCH --licenses=abaqus:1,matlab:2\n"), "{script}");
        assert_eq!(beyond(&Asked { gpus: 1, ..Asked::default() }), ["--gres=gpu:1"]);
        assert!(beyond(&Asked::default()).is_empty());
    }
}
