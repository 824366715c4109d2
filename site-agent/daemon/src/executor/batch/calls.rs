//! Slurm's commands, called by a thread beside: where the controller is away they take long to say so.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::Heard;
use super::listing::{self, Row};
use crate::config::SlurmSettings;

/// How long a command may take: without a controller they give up by themselves after a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is asked of the cluster, one thing at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    Submit { token: String, script: String },
    Cancel { jobs: Vec<String>, name: String },
    List,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    Submitted { token: String, result: Result<String, NotSubmitted> },
    Cancelled(Result<(), String>),
    Listed(Result<Vec<Row>, String>),
}

/// Why there is no number of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotSubmitted {
    /// The cluster does not take such a job.
    Refused(String),
    /// There is none, and it may be tried again.
    Later(String),
    /// There may be one.
    Unclear(String),
}

/// How the commands are called.
#[derive(Debug)]
pub(super) struct Caller {
    folder: Option<PathBuf>,
    environment: Vec<(String, String)>,
    agent: String,
}

impl Caller {
    pub(super) fn new(settings: &SlurmSettings, agent: String) -> Self {
        // Jobs get the environment that they are submitted in: no more of the agent's than Slurm itself reads.
        let is_wanted = |name: &str| {
            ["PATH", "HOME", "USER", "LOGNAME", "TZ"].contains(&name)
                || name.starts_with("SLURM_")
                || name.starts_with("SBATCH_")
        };
        let mut environment: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| is_wanted(name))
            .collect();
        environment.push(("LC_ALL".to_owned(), "C".to_owned()));
        environment.extend(settings.conf.as_ref().map(|conf| ("SLURM_CONF".to_owned(), conf.display().to_string())));
        Self { folder: settings.commands.clone(), environment, agent }
    }

    /// Does what is asked for until nobody asks any more.
    pub(super) fn run(&self, calls: &Receiver<Call>, answers: &Sender<Heard>) {
        while let Ok(call) = calls.recv() {
            // Who does not wait for the answer has ended.
            let _ = answers.send(Heard::Answer(self.call(call)));
        }
    }

    fn call(&self, call: Call) -> Answer {
        match call {
            Call::Submit { token, script } => {
                let result = self.ask("sbatch", &["--parsable"], &script);
                Answer::Submitted { token, result: submitted(result) }
            }
            // The name is that of what was submitted together: a number that came again means another's job.
            Call::Cancel { jobs, name } => {
                let arguments: Vec<&str> =
                    ["--name", name.as_str()].into_iter().chain(jobs.iter().map(String::as_str)).collect();
                let result = said(self.ask("scancel", &arguments, "")).map(drop);
                // Those that are gone need no end.
                Answer::Cancelled(result.or_else(|why| if why.contains("Invalid job id") { Ok(()) } else { Err(why) }))
            }
            Call::List => {
                let user = rustix::process::geteuid().as_raw().to_string();
                let own =
                    ["--noheader", "--array", "--states=all", "--user", user.as_str(), "--format", listing::FORMAT];
                let result = said(self.ask("squeue", &own, ""));
                Answer::Listed(result.map(|text| listing::read(&text, &self.agent)))
            }
        }
    }

    fn ask(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
        let program = self.folder.as_ref().map_or_else(|| PathBuf::from(program), |folder| folder.join(program));
        let mut command = Command::new(&program);
        command.args(arguments).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| {
                io::Error::new(error.kind(), format!("{} cannot be started: {error}", program.display()))
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        wait(child)
    }
}

/// Waits for a command that may not take for ever.
fn wait(mut child: Child) -> io::Result<Output> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let read = |source: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            source.map(|mut source| source.read_to_end(&mut bytes)).transpose().map(|_| bytes)
        })
    };
    let out = read(out.map(|out| Box::new(out) as Box<dyn Read + Send>));
    let err = read(err.map(|err| Box::new(err) as Box<dyn Read + Send>));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            // It may have ended meanwhile.
            let _ = child.kill();
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    let whole = |thread: std::thread::JoinHandle<io::Result<Vec<u8>>>| {
        thread.join().map_err(|_| io::Error::other("what it says cannot be read"))?
    };
    Ok(Output { status, stdout: whole(out)?, stderr: whole(err)? })
}

fn said(result: io::Result<Output>) -> Result<String, String> {
    let output = result.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(complaint(&String::from_utf8_lossy(&output.stderr)))
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
                (false, _) => Err(judged(&complaint(&String::from_utf8_lossy(&output.stderr)))),
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

/// What a command complains of, without the name that each line begins with.
fn complaint(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(|line| line.rsplit("error: ").next().unwrap_or(line).trim()).collect();
    lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A caller whose every command is this script.
    fn caller(folder: &std::path::Path, script: &str) -> Caller {
        for name in ["sbatch", "squeue", "scancel"] {
            let path = folder.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        let settings = SlurmSettings { commands: Some(folder.to_owned()), ..SlurmSettings::default() };
        Caller::new(&settings, "agent_1".to_owned())
    }

    fn submit(script: &str) -> Result<String, NotSubmitted> {
        let folder = tempfile::tempdir().unwrap();
        let call = Call::Submit { token: "t".to_owned(), script: "#!/bin/sh\ntrue\n".to_owned() };
        match caller(folder.path(), script).call(call) {
            Answer::Submitted { result, .. } => result,
            other @ (Answer::Cancelled(_) | Answer::Listed(_)) => panic!("{other:?}"),
        }
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
    fn a_program_that_is_not_there_is_named() {
        let settings = SlurmSettings { commands: Some("/no/such".into()), ..SlurmSettings::default() };
        let answer = Caller::new(&settings, "agent_1".to_owned()).call(Call::List);
        assert!(matches!(&answer, Answer::Listed(Err(why)) if why.starts_with("/no/such/squeue")), "{answer:?}");
    }

    #[test]
    fn only_what_slurm_reads_of_the_environment_reaches_a_job() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let caller = caller(folder.path(), &format!("env > {}; echo 1", seen.display()));
        caller.call(Call::List);
        let seen = std::fs::read_to_string(seen).unwrap();
        assert!(seen.contains("LC_ALL=C\n"), "{seen}");
        assert!(!seen.contains("CARGO"), "{seen}");
    }
}
