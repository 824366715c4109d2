//! The script of a job: options for the cluster, and the shim that it becomes.

use std::path::Path;
use std::time::Duration;

use crate::config::{ShimProgram, SlurmSettings};
use crate::shim::JOB;
use crate::shim::job::evidence::{Batch, JobsFolder};
use crate::shim::protocol::Common;

/// What the shim takes beside what it runs.
const SHIM_BYTES: u64 = 16 << 20;
/// The cluster's time limit is there for a job that its shim cannot end any more: the shim keeps the exact one.
const TIME_MARGIN: Duration = Duration::from_secs(60);

/// The script that `sbatch` is given for what is submitted together.
pub(super) fn script(
    settings: &SlurmSettings,
    program: &ShimProgram,
    folder: &JobsFolder,
    (token, batch, comment): (&str, &Batch, &str),
    common: &Common,
) -> String {
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
    option(format!("--cpus-per-task={}", common.cpu_millis.unwrap_or(1_000).div_ceil(1_000)));
    if let Some(bytes) = common.memory_bytes {
        option(format!("--mem={}M", bytes.saturating_add(SHIM_BYTES).div_ceil(1 << 20)));
    }
    if let Some(time) = common.time {
        option(format!("--time={}", time.saturating_add(TIME_MARGIN).as_secs().div_ceil(60)));
    }
    common.job_options.iter().for_each(|text| option(text.clone()));
    let named = [("partition", &settings.partition), ("account", &settings.account), ("qos", &settings.qos)];
    for (name, value) in named {
        if let Some(value) = value {
            option(format!("--{name}={value}"));
        }
    }
    settings.options.iter().for_each(|text| option(text.clone()));
    let words = program.arguments.iter().map(String::as_str).chain([JOB]).map(quoted);
    let words: Vec<String> = std::iter::once(quoted_path(&program.program)).chain(words).collect();
    let jobs = quoted_path(folder.path());
    lines.push(format!("exec {} {jobs} {token} \"${{SLURM_ARRAY_TASK_ID:-0}}\"\n", words.join(" ")));
    lines.join("\n")
}

/// The name of a job, for people who look at the queue.
pub(super) fn name(workflow_step: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' };
    format!("atoll.{}", workflow_step.chars().map(plain).take(64).collect::<String>())
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// As one word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
    use atoll_model::time::Timestamp;

    use super::*;
    use crate::shim::job::evidence::VERSION;
    use crate::shim::protocol::Key;

    fn of(count: u32, common: &Common) -> String {
        let execution = |element| ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element };
        let keys = (0..count).map(|element| Key { execution: execution(element), attempt: Attempt::FIRST }).collect();
        let batch = Batch { version: VERSION, name: name("flood model/π"), keys, at: Timestamp::ZERO, job: None };
        let settings = SlurmSettings {
            partition: Some("cpu".to_owned()),
            options: vec!["--constraint=avx2".to_owned()],
            ..SlurmSettings::default()
        };
        let program = ShimProgram { program: "/opt/it's/atoll".into(), arguments: vec!["shim".to_owned()] };
        let folder = JobsFolder::new("/shared/jobs".into());
        script(&settings, &program, &folder, ("t1", &batch, "atoll agent_1 t1"), common)
    }

    #[test]
    fn limits_are_rounded_up_and_the_shim_has_room_beside_them() {
        let time = Some(Duration::from_secs(61));
        let common = Common { memory_bytes: Some(100 << 20), cpu_millis: Some(1_001), time, ..Common::default() };
        let expected = "#!/bin/sh
#SBATCH --job-name=atoll.flood_model__
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
exec '/opt/it'\\''s/atoll' 'shim' 'job' '/shared/jobs' t1 \"${SLURM_ARRAY_TASK_ID:-0}\"
";
        assert_eq!(of(1, &common), expected);
    }

    #[test]
    fn what_is_of_one_step_is_one_array() {
        let script = of(3, &Common::default());
        assert!(script.contains("#SBATCH --array=0-2\n") && script.contains("said/t1.%a\""), "{script}");
        assert!(!script.contains("--mem") && !script.contains("--time"), "{script}");
    }
}
