//! Slurm: what is of one step is an array, and the agent's jobs are known by their comment.

mod accounting;
mod listing;
mod script;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Output;
use std::time::Instant;

use atoll_model::resources::{Launch, Spread};

use self::accounting::Accounting;
use super::calls::{Programs, complaint};
use super::system::{BatchSystem, Limits, NewJob, NotSubmitted, Request, Row, Sought};
use crate::config::SlurmSettings;
use crate::shim::job::evidence::OfJob;
use crate::shim::protocol::Common;

/// A Slurm cluster, as its site's administrator has it used.
#[derive(Debug)]
pub(super) struct Slurm {
    settings: SlurmSettings,
    /// Who submits: jobs of another agent of the same user are not this one's.
    agent: String,
    programs: Programs,
    accounting: Accounting,
}

impl Slurm {
    pub(super) fn new(settings: SlurmSettings, agent: String) -> Self {
        let programs = Programs::new(None, &["SLURM_", "SBATCH_"].map(str::to_owned));
        let programs = match &settings.conf {
            Some(conf) => programs.with("SLURM_CONF", conf),
            None => programs,
        };
        Self { settings, agent, programs, accounting: Accounting::default() }
    }

    fn words(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        let path = self.settings.commands.as_ref().map(|folder| folder.join(program).display().to_string());
        let program = path.unwrap_or_else(|| program.to_owned());
        [program].into_iter().chain(arguments.iter().map(|argument| (*argument).to_owned())).collect()
    }
}

impl Slurm {
    /// The command as all tasks of its job. Its own end is the worst of theirs; without a task that fails it waits for all.
    fn launched(&self, spread: Spread, common: &Common) -> Vec<Vec<u8>> {
        let cpus = format!("--cpus-per-task={}", cpus_per_task(common));
        let (nodes, tasks) = (format!("--nodes={}", spread.nodes), format!("--ntasks={}", spread.tasks()));
        let per_node = format!("--ntasks-per-node={}", spread.tasks_per_node);
        // What it is told by the environment of its job it would not take for its CPUs.
        let srun = self.words("srun", &["--export=ALL", &nodes, &tasks, &per_node, &cpus, "--"]);
        // Where it is is known on its nodes.
        let env = ["/usr/bin/env".to_owned()].into_iter().chain(srun).map(String::into_bytes);
        env.chain(common.command.iter().cloned()).collect()
    }
}

/// Clusters count whole ones.
fn cpus_per_task(common: &Common) -> u32 {
    common.cpu_millis.unwrap_or(1_000).div_ceil(1_000)
}

impl BatchSystem for Slurm {
    fn title(&self) -> &str {
        "Slurm"
    }

    fn place(&self) -> String {
        self.settings.place()
    }

    fn limits(&self) -> Limits {
        Limits {
            poll: self.settings.poll(),
            jobs_max: self.settings.jobs_max as usize,
            together_max: self.settings.array_max as usize,
            forgotten_after: self.settings.forgotten_after(),
        }
    }

    fn of_job(&self) -> OfJob {
        OfJob::default()
    }

    fn command(&self, common: &Common) -> Vec<Vec<u8>> {
        match common.asked.spread.filter(|spread| spread.launch == Some(Launch::Srun)) {
            Some(spread) => self.launched(spread, common),
            None => common.command.clone(),
        }
    }

    fn request(&self, job: &NewJob<'_>) -> Request {
        let input = script::script(&self.settings, job, &listing::comment(&self.agent, job.token));
        Request { words: self.words("sbatch", &["--parsable"]), input, file: None }
    }

    fn number(&self, number: &str, index: usize, count: usize) -> String {
        if count > 1 { format!("{number}_{index}") } else { number.to_owned() }
    }

    fn submit(&self, request: &Request) -> Result<String, NotSubmitted> {
        submitted(self.programs.ask(&request.words, &request.input))
    }

    fn cancel(&self, jobs: &[String], name: &str) -> Result<(), String> {
        let arguments: Vec<&str> = ["--name", name].into_iter().chain(jobs.iter().map(String::as_str)).collect();
        let result = self.programs.said(&self.words("scancel", &arguments)).map(drop);
        result.or_else(|why| if why.contains("Invalid job id") { Ok(()) } else { Err(why) })
    }

    fn list(&self, sought: &[Sought]) -> Result<Vec<Row>, String> {
        let user = rustix::process::geteuid().as_raw().to_string();
        let own = ["--noheader", "--array", "--states=all", "--user", user.as_str(), "--format", listing::FORMAT];
        let listed = self.programs.said(&self.words("squeue", &own))?;
        let mut rows = listing::read(&listed, &self.agent);
        // In seconds since the epoch: the agent's time zone need not be the cluster's.
        let programs = self.programs.clone().with("SLURM_TIME_FORMAT", Path::new("%s"));
        let ask = |arguments: &[&str]| programs.ask(&self.words("sacct", arguments), "");
        rows.extend(self.accounting.rows(&forgotten(sought, &rows), Instant::now(), ask));
        Ok(rows)
    }
}

/// What was submitted, and is not listed any more.
fn forgotten(sought: &[Sought], rows: &[Row]) -> Vec<Sought> {
    let listed: BTreeSet<(&str, u32)> = rows.iter().map(|row| (row.token.as_str(), row.index)).collect();
    let submitted = sought.iter().filter(|sought| sought.job.is_some());
    let missing = submitted.map(|sought| {
        let token = sought.name.rsplit('.').next().unwrap_or_default();
        let is_missing = |index: &u32| !listed.contains(&(token, *index));
        Sought { elements: sought.elements.iter().copied().filter(is_missing).collect(), ..sought.clone() }
    });
    missing.filter(|sought| !sought.elements.is_empty()).collect()
}

fn submitted(result: io::Result<Output>) -> Result<String, NotSubmitted> {
    match result {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            // With several clusters the cluster stands behind the number.
            let number = text.trim().split(';').next().unwrap_or_default();
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            match (output.status.success(), is_number) {
                (true, true) => Ok(number.to_owned()),
                (true, false) => Err(NotSubmitted::Unclear(format!("sbatch says {:?}", text.trim()))),
                (false, _) => Err(judged(&complaint(&output))),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(NotSubmitted::Unclear(error.to_string())),
        Err(error) => Err(NotSubmitted::Later(error.to_string())),
    }
}

/// Whether there may be a job although `sbatch` says that it failed, and whether there ever will be one.
fn judged(message: &str) -> NotSubmitted {
    const UNCLEAR: [&str; 4] = ["timed out", "Zero Bytes", "Communication", "communication"];
    const LATER: [&str; 8] = [
        "connect failure",
        "Unable to contact",
        "temporarily",
        "Job violates accounting/QOS policy",
        "Slurm backup controller in standby mode",
        "cannot stat file",
        "Protocol authentication error",
        "Munge",
    ];
    let message = message.to_owned();
    if LATER.iter().any(|words| message.contains(words)) {
        NotSubmitted::Later(message)
    } else if UNCLEAR.iter().any(|words| message.contains(words)) || !message.contains("submission failed") {
        NotSubmitted::Unclear(message)
    } else {
        NotSubmitted::Refused(message)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::shim::job::evidence::Asked;

    /// A cluster whose every command is this script.
    fn cluster(folder: &std::path::Path, script: &str) -> Slurm {
        for name in ["sbatch", "squeue", "scancel"] {
            let path = folder.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        let settings = SlurmSettings { commands: Some(folder.to_owned()), ..SlurmSettings::default() };
        Slurm::new(settings, "agent_1".to_owned())
    }

    fn submit(script: &str) -> Result<String, NotSubmitted> {
        let folder = tempfile::tempdir().unwrap();
        let slurm = cluster(folder.path(), script);
        let words = slurm.words("sbatch", &["--parsable"]);
        slurm.submit(&Request { words, input: "#!/bin/sh\ntrue\n".to_owned(), file: None })
    }

    /// What Slurm 22.05.8 says on standard error, and what follows.
    #[test]
    fn a_refusal_is_told_from_a_controller_that_is_away_and_from_an_answer_that_was_lost() {
        assert_eq!(submit("cat >/dev/null; echo 12"), Ok("12".to_owned()));
        assert_eq!(submit("echo '12;c1'"), Ok("12".to_owned()));
        let refused = "echo 'sbatch: error: invalid partition specified: nope
sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; exit 1";
        let words = "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified";
        assert_eq!(submit(refused), Err(NotSubmitted::Refused(words.to_owned())));
        let away = "Batch job submission failed: Unable to contact slurm controller (connect failure)";
        let failing = format!("echo 'sbatch: error: {away}' >&2; exit 1");
        assert_eq!(submit(&failing), Err(NotSubmitted::Later(away.to_owned())));
        let lost = "Batch job submission failed: Socket timed out on send/recv operation";
        let failing = format!("echo 'sbatch: error: {lost}' >&2; exit 1");
        assert_eq!(submit(&failing), Err(NotSubmitted::Unclear(lost.to_owned())));
        assert!(matches!(submit("kill -9 $$"), Err(NotSubmitted::Unclear(_))));
        assert!(matches!(submit("echo submitted"), Err(NotSubmitted::Unclear(_))));
    }

    #[test]
    fn what_is_launched_is_started_as_all_tasks_and_nothing_else_is() {
        let settings = SlurmSettings { commands: Some("/opt/slurm/bin".into()), ..SlurmSettings::default() };
        let slurm = Slurm::new(settings, "agent_1".to_owned());
        let spread = |launch| Some(Spread { nodes: 2, tasks_per_node: 4, launch });
        let command = |spread| {
            let asked = Asked { spread, ..Asked::default() };
            let command = ["/bin/sh", "-c", "hostname"].map(|word| word.as_bytes().to_vec()).to_vec();
            let common = Common { command, cpu_millis: Some(1_500), asked, ..Common::default() };
            slurm
                .command(&common)
                .into_iter()
                .map(|word| String::from_utf8(word).unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(command(None), "/bin/sh -c hostname");
        assert_eq!(command(spread(None)), "/bin/sh -c hostname");
        let launched = "/usr/bin/env /opt/slurm/bin/srun --export=ALL --nodes=2 --ntasks=8 --ntasks-per-node=4 \
                        --cpus-per-task=2 -- /bin/sh -c hostname";
        assert_eq!(command(spread(Some(Launch::Srun))), launched);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let settings = SlurmSettings { commands: Some("/no/such".into()), ..SlurmSettings::default() };
        let listed = Slurm::new(settings, "agent_1".to_owned()).list(&[]);
        assert!(listed.as_ref().is_err_and(|why| why.starts_with("/no/such/squeue")), "{listed:?}");
    }

    #[test]
    fn only_what_slurm_reads_of_the_environment_reaches_a_job() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        cluster(folder.path(), &format!("env > {}; echo 1", seen.display())).list(&[]).unwrap();
        let seen = std::fs::read_to_string(seen).unwrap();
        assert!(seen.contains("LC_ALL=C\n"), "{seen}");
        assert!(!seen.contains("CARGO"), "{seen}");
    }
}
