//! A leader that leads no more, on a real database: what it may still do, and what the database refuses.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use contract_tests::journals::{Database, statement};
use control_plane_postgres::{EndedRun, History, LEASE, PostgresJournal, Query, Standby, StoreError, Taken};

const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is asked line by line; it is killed when this is dropped.
struct Asked {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Asked {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (questions, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, questions, answers: BufReader::new(answers) }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.questions, "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Takes the lead as soon as the lease of whoever had it has run out.
fn take_over(standby: &mut Standby) -> PostgresJournal {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < PATIENCE, "the lease does not run out");
        standby.poll().unwrap();
        if let Some(Taken { journal, .. }) = standby.try_lead().unwrap() {
            return journal;
        }
    }
}

#[test]
fn b3_a_leader_that_slept_through_its_lease_may_not_act() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let mut command = Command::new(env!("CARGO_BIN_EXE_journal-child"));
    let mut leader = Asked::start(command.arg("lead").arg(database.address.to_string()));
    assert_eq!(leader.hear(), "leads under 1");
    leader.tell("");
    assert_eq!(leader.hear(), "may act");
    let (mut standby, _) = Standby::open(database.address.clone(), Database::member("standby"), 1).unwrap();
    assert!(standby.try_lead().unwrap().is_none());
    // Its threads and its view of the time stand still; what it is asked meanwhile it hears first when it wakes.
    leader.signal("STOP");
    leader.tell("");
    let next = take_over(&mut standby);
    assert_eq!(next.epoch(), 2);
    leader.signal("CONT");
    let refused = leader.hear();
    assert!(refused.contains("lease is over") && refused.contains("another server leads"), "{refused}");
    next.may_act().unwrap();
}

#[test]
fn b3_a_leader_that_cannot_renew_its_lease_may_not_act_before_another_may() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let opened = PostgresJournal::open(database.address.clone(), Database::member("first"), 1).unwrap();
    let (mut first, _, _) = opened;
    let end = first.take_end().unwrap();
    let (mut standby, _) = Standby::open(database.address.clone(), Database::member("second"), 1).unwrap();
    // The row of the lease is locked, so that no renewal comes through; the lease itself stands.
    let mut holder =
        Asked::start(Command::new("psql").args(["-X", "-q", "-A", "-t"]).arg(database.address.to_string()));
    holder.tell("BEGIN; SELECT 'held' FROM atoll.lease FOR UPDATE;");
    assert_eq!(holder.hear(), "held");
    let began = Instant::now();
    end.blocking_recv().unwrap();
    assert!(began.elapsed() < LEASE, "it is over for its holder before it is for the others");
    first.may_act().unwrap_err();
    holder.tell("COMMIT;");
    let second = take_over(&mut standby);
    second.may_act().unwrap();
}

fn ended(run: &str) -> EndedRun {
    let row = r#"{"workflow": "w", "project": "p", "state": "succeeded", "submitted_by": "me", "submitted_at": 1,
        "started_at": 1, "finished_at": 2, "labels": {}, "sites": [], "outputs": {}, "executions": {}}"#;
    let execution = r#"[{"step": "a", "element": 0, "attempt": 1, "state": "succeeded", "submitted_at": 1,
        "cpu_seconds": 0, "memory_bytes": 0, "disk_read_bytes": 0, "disk_written_bytes": 0}]"#;
    EndedRun {
        run: run.to_owned(),
        row: row.to_owned(),
        head: b"head".to_vec(),
        document: b"document".to_vec(),
        executions: vec![execution.to_owned()],
    }
}

#[test]
fn b3_a_leader_that_is_superseded_while_it_writes_the_history_neither_writes_it_nor_holds_up_the_next() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let server = database.address.to_string();
    let (first, _, of_first) = PostgresJournal::open(database.address.clone(), Database::member("first"), 1).unwrap();
    let history = History::new(database.address.clone(), of_first.fence());
    history.keep(&[ended("run_a")]).unwrap();
    let (mut standby, _) = Standby::open(database.address.clone(), Database::member("second"), 1).unwrap();
    // What it writes waits for this.
    let mut holder = Asked::start(Command::new("psql").args(["-X", "-q", "-A", "-t"]).arg(&server));
    holder.tell("BEGIN; LOCK TABLE atoll.runs IN SHARE MODE; SELECT 'held';");
    assert_eq!(holder.hear(), "held");
    let writing = std::thread::spawn(move || (history.keep(&[ended("run_b")]), history));
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'atoll.runs'::regclass";
    let began = Instant::now();
    while statement(&server, waiting).unwrap().trim() != "1" {
        assert!(began.elapsed() < PATIENCE, "it does not write");
    }
    drop(first);
    let second = take_over(&mut standby);
    assert_eq!(second.epoch(), 2);
    holder.tell("COMMIT;");
    let (refused, history) = writing.join().unwrap();
    assert!(matches!(refused, Err(StoreError::Superseded { epoch: 1 })), "{refused:?}");
    assert!(matches!(history.remove(&["run_a".to_owned()]), Err(StoreError::Superseded { epoch: 1 })));
    let runs = || history.list(&Query::default()).unwrap().into_iter().map(|listed| listed.run).collect::<Vec<_>>();
    assert_eq!(runs(), ["run_a"], "what it had kept before stays, and what came after is not there");
    assert_eq!(statement(&server, "SELECT count(*) FROM atoll.executions").unwrap().trim(), "1");
    let next = History::new(database.address.clone(), standby.fence());
    next.keep(&[ended("run_b")]).unwrap();
    next.remove(&["run_a".to_owned()]).unwrap();
    assert_eq!(runs(), ["run_b"]);
}
