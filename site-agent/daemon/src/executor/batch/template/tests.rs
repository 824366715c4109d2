//! Each template that comes with the agent, beside programs that answer as its system's do, and templates that are none.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
use atoll_model::time::Timestamp;
use tempfile::TempDir;

use super::super::system::{Over, Standing, job_name};
use super::*;
use crate::config::ShimProgram;
use crate::shim::job::evidence::{Asked, Batch, JobsFolder, VERSION};
use crate::shim::protocol::{Common, Key};

const SYSTEMS: [&str; 4] = Template::NAMES;

/// A system whose programs are played, and what a site has said of it.
struct Played {
    folder: TempDir,
    system: Templated,
}

impl Played {
    fn new(name: &str, change: impl FnOnce(&mut BatchSettings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parts/batch_fakes.py");
        assert!(Command::new("python3").arg(fakes).arg(folder.path()).status().unwrap().success());
        fs::create_dir_all(folder.path().join("shared/said")).unwrap();
        let mut settings = BatchSettings {
            template: Arc::new(Template::shipped(name).unwrap().unwrap()),
            queue: None,
            account: None,
            options: Vec::new(),
            commands: Some(folder.path().join("bin")),
            poll_seconds: 1,
            jobs_max: 10,
            forgotten_seconds: 600,
            pilots: None,
        };
        change(&mut settings);
        Self { folder, system: Templated::new(settings) }
    }

    fn say(&self, what: &str) {
        fs::write(self.folder.path().join(what), "").unwrap();
    }

    fn unsay(&self, what: &str) {
        fs::remove_file(self.folder.path().join(what)).unwrap();
    }

    fn request(&self, token: &str, common: &Common, asked: Asked) -> Request {
        let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 0 };
        let keys = vec![Key { execution, attempt: Attempt::FIRST }];
        let (name, of_job) = (job_name("flood.model", token), self.system.of_job());
        let batch = Batch { version: VERSION, name, keys, at: Timestamp::ZERO, job: None, asked, of_job };
        // It leaves what it was called with, as a shim would find it.
        let script =
            "printf '%s\\n' \"$@\" > \"$2/called.$3\"; while [ -e \"$2/wait\" ]; do sleep 0.05; done".to_owned();
        let program =
            ShimProgram { program: "/bin/sh".into(), arguments: vec!["-c".to_owned(), script, "shim".to_owned()] };
        let folder = JobsFolder::new(self.folder.path().join("shared"));
        self.system.request(&NewJob { becomes: Becomes::Shim(&program), folder: &folder, token, batch: &batch, common })
    }

    fn submit(&self, token: &str) -> Result<String, NotSubmitted> {
        self.system.submit(&self.request(token, &Common::default(), Asked::default()))
    }

    fn list(&self, token: &str, job: Option<&str>) -> Result<Vec<Row>, String> {
        let (name, job) = (job_name("flood.model", token), job.map(str::to_owned));
        self.system.list(&[Sought { name, job, elements: vec![0], at: Timestamp::ZERO }])
    }

    /// Where the job stands, once it stands there.
    fn until(&self, token: &str, job: &str, wanted: Standing) -> Row {
        for _ in 0..400 {
            let rows = self.list(token, Some(job)).unwrap();
            if let Some(row) = rows.into_iter().find(|row| row.token == token && row.standing == wanted) {
                return row;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("{token} is not {wanted:?}: {:?}", self.list(token, Some(job)));
    }
}

#[test]
fn a_job_runs_what_it_was_submitted_for_and_is_known_by_its_name() {
    for name in SYSTEMS {
        let played = Played::new(name, |_| {});
        played.say("shared/wait");
        let job = played.submit("t1").unwrap();
        let row = played.until("t1", &job, Standing::Running);
        assert_eq!((row.token.as_str(), row.index), ("t1", 0), "{name}");
        played.unsay("shared/wait");
        let row = played.until("t1", &job, Standing::Over(Over::Ended));
        let called = fs::read_to_string(played.folder.path().join("shared/called.t1")).unwrap();
        let shared = played.folder.path().join("shared").display().to_string();
        assert_eq!(called.lines().collect::<Vec<_>>(), ["job", &shared, "t1", "0"], "{name}");
        // Where its number is not known it is found all the same, and others are not taken for it.
        let found = played.list("t1", None).unwrap();
        assert_eq!(found, [row], "{name}");
        assert!(!played.list("t2", None).unwrap().iter().any(|row| row.token == "t2"), "{name}");
    }
}

#[test]
fn each_state_of_each_system_is_read() {
    let states = [
        ("waiting", Standing::Waiting),
        ("running", Standing::Running),
        ("stuck", Standing::Stuck),
        ("timed-out", Standing::Over(Over::TimedOut)),
        ("out-of-memory", Standing::Over(Over::OutOfMemory)),
        ("lost", Standing::Over(Over::Lost)),
        ("cancelled", Standing::Over(Over::Cancelled)),
        ("ended", Standing::Over(Over::Ended)),
    ];
    for name in SYSTEMS {
        let played = Played::new(name, |_| {});
        for (is, standing) in states {
            let standing = match (name, is) {
                // They hold nothing that could not be started, and Flux tells nothing of memory.
                ("lsf" | "flux", "stuck") => Standing::Waiting,
                ("flux", "out-of-memory") => Standing::Over(Over::Ended),
                _ => standing,
            };
            let job = format!("{{\"number\": 12, \"name\": \"atoll.a.b.{is}\", \"is\": \"{is}\"}}");
            fs::write(played.folder.path().join("jobs/12"), job).unwrap();
            let number = match name {
                "pbs" => "12.pbs",
                "flux" => "f12",
                _ => "12",
            };
            let rows = played.list(is, Some(number)).unwrap();
            assert_eq!(rows.len(), 1, "{name} {is}: {rows:?}");
            let row = &rows[0];
            assert_eq!(
                (row.job.as_str(), row.token.as_str(), row.standing),
                (number, is, standing),
                "{name} {is}: {row:?}"
            );
        }
    }
}

#[test]
fn jobs_that_run_or_wait_are_cancelled_and_those_that_are_gone_need_no_end() {
    for name in SYSTEMS {
        let played = Played::new(name, |_| {});
        played.say("shared/wait");
        let running = played.submit("t1").unwrap();
        played.until("t1", &running, Standing::Running);
        played.say("full");
        let waiting = played.submit("t2").unwrap();
        played.until("t2", &waiting, Standing::Waiting);
        for (token, job) in [("t1", &running), ("t2", &waiting)] {
            played.system.cancel(from_ref(job), &job_name("flood.model", token)).unwrap();
            played.until(token, job, Standing::Over(Over::Cancelled));
            assert_eq!(played.system.cancel(from_ref(job), &job_name("flood.model", token)), Ok(()), "{name}");
        }
        let unknown = running.replace("12", "99");
        assert_eq!(played.system.cancel(from_ref(&unknown), "atoll.a.b"), Ok(()), "{name}");
        assert!(!played.list("t9", Some(&unknown)).unwrap().iter().any(|row| row.token == "t9"), "{name}");
    }
}

#[test]
fn a_server_that_is_away_is_told_from_one_that_refuses_and_from_an_answer_that_was_lost() {
    for name in SYSTEMS {
        let played = Played::new(name, |settings| {
            settings.queue = Some("nope".to_owned());
            settings.account = Some("nope".to_owned());
        });
        let refused = played.submit("t1");
        assert!(
            matches!(&refused, Err(NotSubmitted::Refused(why)) if why.contains("ueue") || why.contains("nope")),
            "{name}: {refused:?}"
        );
        let played = Played::new(name, |_| {});
        played.say("away");
        let away = played.submit("t1");
        assert!(matches!(away, Err(NotSubmitted::Later(_))), "{name}: {away:?}");
        assert!(played.list("t1", Some("12")).is_err() && played.list("t1", None).is_err(), "{name}");
        assert!(played.system.cancel(&["12".to_owned()], "atoll.a.t1").is_err(), "{name}");
        played.unsay("away");
        played.say("lost");
        let lost = played.submit("t1");
        assert!(matches!(lost, Err(NotSubmitted::Unclear(_))), "{name}: {lost:?}");
        let found = played.list("t1", None).unwrap();
        assert_eq!(found.iter().map(|row| row.token.as_str()).collect::<Vec<_>>(), ["t1"], "{name}: it was submitted");
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let commands = |settings: &mut BatchSettings| settings.commands = Some("/no/such".into());
    let why = Played::new("pbs", commands).submit("t1").unwrap_err();
    assert!(matches!(&why, NotSubmitted::Later(why) if why.starts_with("qsub cannot be started")), "{why:?}");
}

#[test]
fn a_pbs_without_a_history_is_asked_for_what_it_knows() {
    let played = Played::new("pbs", |_| {});
    played.say("no-history");
    played.say("full");
    let job = played.submit("t1").unwrap();
    assert_eq!(played.list("t1", Some(&job)).unwrap()[0].standing, Standing::Waiting);
    assert_eq!(played.list("t1", None).unwrap()[0].job, job);
    assert_eq!(played.list("t1", Some("99.pbs")).unwrap(), []);
}

#[test]
fn what_a_step_asks_for_stands_in_each_system_s_words() {
    let time = Some(Duration::from_secs(3_601));
    let common = Common { memory_bytes: Some(100 << 20), cpu_millis: Some(1_001), time, ..Common::default() };
    let asked = Asked {
        gpus: 2,
        gpu_kind: Some("a100".to_owned()),
        named: [("matlab".to_owned(), 3)].into(),
        ..Asked::default()
    };
    let lines: [(&str, &[&str]); 4] = [
        (
            "pbs",
            &[
                "#PBS -N atoll.flood.model.t1",
                "#PBS -l select=1:ncpus=2:mem=116mb:ngpus=2",
                "#PBS -l walltime=01:01:01",
                "#PBS -l matlab=3",
                "#PBS -q long",
                "#PBS -A hydro",
                "#PBS x=1",
                "#PBS x=2",
            ],
        ),
        (
            "lsf",
            &[
                "#BSUB -n 2",
                "#BSUB -M 116MB",
                "#BSUB -W 62",
                "#BSUB -gpu \"num=2:gmodel=a100\"",
                "#BSUB -R \"rusage[matlab=3]\"",
                "#BSUB -q long",
                "#BSUB x=2",
            ],
        ),
        (
            "flux",
            &[
                "--cores-per-task=2",
                "--gpus-per-task=2",
                "--time-limit=3661s",
                "--queue=long",
                "--setattr=bank=hydro",
                "x=2",
            ],
        ),
        (
            "htcondor",
            &[
                "request_cpus = 2",
                "request_memory = 116MB",
                "request_gpus = 2",
                "allowed_execute_duration = 3661",
                "x=2",
            ],
        ),
    ];
    for (name, expected) in lines {
        let played = Played::new(name, |settings| {
            settings.queue = Some("long".to_owned());
            settings.account = Some("hydro".to_owned());
            settings.options = ["x=1", "x=2"].map(str::to_owned).to_vec();
        });
        let request = played.request("t1", &common, asked.clone());
        let said: Vec<&str> = request.words.iter().map(String::as_str).chain(request.input.lines()).collect();
        expected.iter().for_each(|line| assert!(said.contains(line), "{name}: {line} is none of {said:#?}"));
        // What a step does not ask for is not said.
        let plain = Played::new(name, |_| {}).request("t1", &Common::default(), Asked::default());
        let said = format!("{} {}", plain.words.join(" "), plain.input);
        for word in
            ["gpu", "walltime", "-W", "time-limit", "execute_duration", "matlab", "-q ", "queue=", "x=1", "mem="]
        {
            assert!(!said.contains(word), "{name}: {word} in {said}");
        }
    }
}

#[test]
fn a_job_may_be_a_file_that_is_named() {
    let template = include_str!("../../../../batch/pbs.toml").replace("[\"qsub\"]", "[\"qsub\", \"{file}\"]");
    let template = Arc::new(Template::parse("own.toml".to_owned(), template).unwrap());
    let played = Played::new("pbs", |settings| settings.template = template);
    let request = played.request("t1", &Common::default(), Asked::default());
    let file = played.folder.path().join("shared/said/t1.script");
    assert_eq!(request.words, ["qsub".to_owned(), file.display().to_string()]);
    played.system.submit(&request).unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), request.input);
}

#[test]
fn what_is_wrong_with_a_template_is_told_with_its_file_and_key() {
    let wrong = |from: &str, to: &str| {
        let text = include_str!("../../../../batch/lsf.toml");
        assert!(text.contains(from), "{from}");
        let error = Template::parse("/etc/own.toml".to_owned(), text.replacen(from, to, 1)).unwrap_err();
        format!("{:#}", anyhow::Error::new(error))
    };
    let cases = [
        ("-n {cpus}", "-n {cpu}", "/etc/own.toml: job.text: there is no value {cpu} here; there are: name, token"),
        ("exec {run}", "true", "/etc/own.toml: job.text: nothing in it runs anything"),
        ("'Job <(\\d+)> is submitted'", "'Job'", "/etc/own.toml: submit.job: \"Job\" has no group"),
        ("\"LIM is down\"", "\"(\"", "/etc/own.toml: submit.later: regex parse error"),
        ("\"{job}\"", "\"all\"", "/etc/own.toml: cancel.command: none of its words has {job}"),
        ("\"job\", \"state\"", "\"job\"", "/etc/own.toml: list.columns: they are job, name and state at least"),
        ("separator = \"|\"", "", "/etc/own.toml: list: it says how rows are read"),
        ("means = \"lost\"", "means = \"gone\"", "unknown variant `gone`"),
        ("refused = ", "refuse = ", "unknown field `refuse`"),
        ("title = \"LSF\"", "title = \"\"", "/etc/own.toml: title: it is empty"),
        ("[\"lsid\"]", "[]", "/etc/own.toml: doctor.command: its first word is the program"),
    ];
    for (from, to, expected) in cases {
        let error = wrong(from, to);
        assert!(error.contains(expected) && error.contains("/etc/own.toml"), "{from} → {to}: {error}");
    }
}
