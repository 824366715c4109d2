//! The queue beside a cluster that a test plays, with times that it says.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::fs;

use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
use tempfile::TempDir;

use super::super::slurm::Slurm;
use super::super::system::{Over, Standing};
use super::*;
use crate::config::{ShimProgram, SlurmSettings};
use crate::shim::job::evidence::{CANCEL, CLAIM, Claim, JobsFolder, STARTED, to_json};
use crate::shim::protocol::{Common, Order};

struct Played {
    folder: TempDir,
    queue: Queue,
    now: Instant,
    common: Arc<Common>,
}

fn key(element: u32) -> Key {
    let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element };
    Key { execution, attempt: Attempt::FIRST }
}

fn desk(folder: &TempDir) -> Desk {
    let settings = SlurmSettings { jobs_max: 3, ..SlurmSettings::default() };
    let program = ShimProgram { program: "/bin/atoll".into(), arguments: vec!["shim".to_owned()] };
    let jobs = JobsFolder::new(folder.path().join("jobs"));
    let slurm = Arc::new(Slurm::new(settings, "agent_1".to_owned()));
    Desk::open(slurm, program, folder.path().to_owned(), jobs).unwrap()
}

impl Played {
    fn new() -> Self {
        let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let queue = Queue::open(desk(&folder), now).unwrap();
        Self { folder, queue, now, common: Arc::default() }
    }

    /// One whose only job has begun; what it is called.
    fn begun() -> (Self, String) {
        let mut played = Self::new();
        played.hand(1);
        let (token, _) = played.submission();
        played.submitted(&token, Ok("12"));
        played.claim(0, &token);
        (played, token)
    }

    /// The agent's process is killed, and another one starts.
    fn restart(&mut self) {
        self.queue = Queue::open(desk(&self.folder), self.now).unwrap();
    }

    fn hand(&mut self, count: u32) {
        for element in 0..count {
            let order = Order { key: key(element), environment: Vec::new(), inputs: String::new() };
            let handed = Handed { label: "flood.model".to_owned(), common: Arc::clone(&self.common), order };
            self.queue.hand(handed, self.now);
        }
    }

    fn after(&mut self, seconds: u64) -> Option<Call> {
        self.now += Duration::from_secs(seconds);
        self.queue.next_call(self.now)
    }

    /// The next submission; what it is called.
    fn submission(&mut self) -> (String, String) {
        match self.after(2) {
            Some(Call::Submit { token, request }) => (token, request.input),
            other => panic!("{other:?}"),
        }
    }

    fn submitted(&mut self, token: &str, result: Result<&str, NotSubmitted>) {
        let answer = Answer::Submitted { token: token.to_owned(), result: result.map(str::to_owned) };
        self.queue.answered(answer, self.now);
    }

    fn listed(&mut self, rows: &[(&str, u32, Standing)]) -> Vec<Notice> {
        let mut call = self.after(6);
        while let Some(Call::Cancel { .. }) = call {
            self.queue.answered(Answer::Cancelled(Ok(())), self.now);
            call = self.after(0);
        }
        assert!(matches!(call, Some(Call::List(_))), "{call:?}");
        let row = |(token, index, standing): &(&str, u32, Standing)| Row {
            job: "12".to_owned(),
            index: *index,
            standing: *standing,
            words: format!("{standing:?} in partition main"),
            token: (*token).to_owned(),
        };
        self.queue.answered(Answer::Listed(Ok(rows.iter().map(row).collect())), self.now);
        self.queue.take_notices()
    }

    fn claim(&self, element: u32, token: &str) {
        let claim = Claim { token: token.to_owned(), job: "12".to_owned(), restarts: 0, node: "n1".to_owned() };
        let slot = self.queue.desk.folder.slot(key(element));
        fs::write(slot.join(CLAIM), to_json(&claim).unwrap()).unwrap();
        fs::write(self.queue.desk.folder.news().join(format!("{}.{STARTED}", key(element).folder())), "").unwrap();
    }
}

#[test]
fn what_is_of_one_step_is_submitted_together_as_far_as_there_is_room() {
    let mut played = Played::new();
    played.hand(5);
    assert_eq!(played.queue.next_call(played.now), None, "more may come");
    let (token, script) = played.submission();
    assert!(script.contains("#SBATCH --array=0-2\n"), "{script}");
    assert!(script.contains(&format!("#SBATCH --comment=\"atoll agent_1 {token}\"")), "{script}");
    played.submitted(&token, Ok("12"));
    // There is room when one has ended.
    assert_eq!(played.listed(&[(&token, 0, Standing::Running), (&token, 1, Standing::Running)]), []);
    played.queue.ended(key(0), EndedNews { end: nothing(EndKind::Code(0), None), told: false }, played.now);
    let (_, script) = played.submission();
    assert!(!script.contains("--array"), "{script}");
}

#[test]
fn what_an_attempt_waits_for_is_told_in_the_cluster_s_words() {
    let mut played = Played::new();
    played.hand(4);
    let (token, _) = played.submission();
    assert_eq!(played.queue.reasons().len(), 1, "one has no room, of the others nothing is known");
    played.submitted(&token, Ok("12"));
    played.listed(&[(&token, 0, Standing::Waiting), (&token, 1, Standing::Running)]);
    let claim = Claim { token, job: "12".to_owned(), restarts: 0, node: "n1".to_owned() };
    played.queue.started(key(1), StartedNews { at: crate::clock::wall_clock(), claim });
    let told = |played: &Played| -> Vec<(u32, String)> {
        let reasons = played.queue.reasons().into_iter();
        reasons.map(|told| (told.execution.element, told.why)).collect()
    };
    let room = "room among the 3 jobs that the site may have in the queue of Slurm".to_owned();
    let waits = "Slurm: job 12_0 is Waiting in partition main".to_owned();
    assert_eq!(told(&played), [(0, waits), (3, room.clone())]);
    while !matches!(played.after(6), Some(Call::List(_))) {}
    played.queue.answered(Answer::Listed(Err("connect failure".to_owned())), played.now);
    let away = "Slurm to be reached: connect failure".to_owned();
    assert_eq!(told(&played), [(0, away.clone()), (2, away), (3, room)]);
}

#[test]
fn f2_what_may_have_been_submitted_is_looked_for_before_it_is_again() {
    for found in [true, false] {
        let mut played = Played::new();
        played.hand(2);
        let (token, _) = played.submission();
        if found {
            played.submitted(&token, Err(NotSubmitted::Unclear("timed out".to_owned())));
        } else {
            // Killed before `sbatch` answered.
            played.restart();
        }
        let rows = [(token.as_str(), 0, Standing::Waiting), (token.as_str(), 1, Standing::Waiting)];
        assert_eq!(played.listed(if found { &rows } else { &[] }), []);
        if found {
            let call = played.after(6);
            assert!(matches!(call, Some(Call::List(_))), "it is known, and not submitted again: {call:?}");
        } else {
            assert_eq!(played.listed(&[]), []);
            assert_eq!(played.submission().0, token, "under the name that the intention has");
        }
    }
}

#[test]
fn f3_a_job_that_nobody_knows_is_submitted_again_unless_it_has_begun() {
    let mut played = Played::new();
    played.hand(2);
    let (token, _) = played.submission();
    played.submitted(&token, Ok("12"));
    played.claim(1, &token);
    assert_eq!(played.listed(&[]), []);
    played.now += Duration::from_secs(595);
    assert_eq!(played.listed(&[]).len(), 1, "what has begun gave no sign of life");
    let (again, script) = played.submission();
    assert!(again != token && !script.contains("--array"), "one of two: {script}");
    played.submitted(&again, Ok("12"));
    // The first comes up after all: the copy ends at once, and that says nothing.
    played.claim(0, &token);
    assert_eq!(played.listed(&[(&again, 0, Standing::Over(Over::Cancelled))]), []);
}

#[test]
fn f4_a_job_that_its_cluster_could_not_start_makes_room_for_another() {
    let mut played = Played::new();
    played.hand(1);
    let mut token = played.submission().0;
    for _ in 0..3 {
        played.submitted(&token, Ok("12"));
        assert_eq!(played.listed(&[(&token, 0, Standing::Stuck)]), []);
        assert!(matches!(played.after(0), Some(Call::Cancel { jobs, .. }) if jobs == ["12"]));
        played.queue.answered(Answer::Cancelled(Ok(())), played.now);
        assert_eq!(played.listed(&[(&token, 0, Standing::Over(Over::Cancelled))]), []);
        token = played.submission().0;
    }
    played.submitted(&token, Ok("12"));
    let notices = played.listed(&[(&token, 0, Standing::Stuck)]);
    assert!(
        matches!(&notices[..], [Notice::Ended { end: End { how: EndKind::NotStarted { .. }, .. }, .. }]),
        "{notices:?}"
    );
}

#[test]
fn a_job_that_can_never_start_is_taken_back_before_its_execution_fails() {
    let mut played = Played::new();
    played.hand(1);
    let (token, _) = played.submission();
    played.submitted(&token, Ok("12"));
    assert_eq!(played.listed(&[(&token, 0, Standing::Hopeless)]), [], "it might begin after all");
    assert!(played.queue.desk.folder.slot(key(0)).join(CANCEL).exists());
    assert!(matches!(played.after(0), Some(Call::Cancel { jobs, .. }) if jobs == ["12"]));
    played.queue.answered(Answer::Cancelled(Ok(())), played.now);
    let notices = played.listed(&[(&token, 0, Standing::Over(Over::Cancelled))]);
    let message = "Slurm cannot start its job: Hopeless in partition main".to_owned();
    let expected = EndKind::NotStarted { message, no_space: false };
    assert!(matches!(&notices[..], [Notice::Ended { end, .. }] if end.how == expected), "{notices:?}");
}

#[test]
fn one_that_begins_while_it_is_taken_back_was_interrupted() {
    let mut played = Played::new();
    played.hand(1);
    let (token, _) = played.submission();
    played.submitted(&token, Ok("12"));
    played.listed(&[(&token, 0, Standing::Hopeless)]);
    played.claim(0, &token);
    played.queue.ended(key(0), EndedNews { end: nothing(EndKind::Killed, None), told: false }, played.now);
    let notices = played.queue.take_notices();
    assert!(
        matches!(&notices[..], [Notice::Ended { end: End { how: EndKind::Interrupted { .. }, .. }, .. }]),
        "{notices:?}"
    );
}

#[test]
fn f4_a_job_that_is_taken_from_its_node_before_it_begins_is_submitted_again() {
    let mut played = Played::new();
    played.hand(2);
    let (token, _) = played.submission();
    played.submitted(&token, Ok("12"));
    let rows = [(token.as_str(), 0, Standing::Over(Over::Lost)), (token.as_str(), 1, Standing::Over(Over::Cancelled))];
    assert_eq!(played.listed(&rows), []);
    let (again, _) = played.submission();
    played.submitted(&again, Ok("13"));
    // What somebody cancelled while it waited does not come again.
    played.now += Duration::from_secs(10);
    let notices = played.listed(&[(&again, 0, Standing::Waiting), (&token, 1, Standing::Over(Over::Cancelled))]);
    assert!(
        matches!(&notices[..], [Notice::Ended { end: End { how: EndKind::Interrupted { .. }, .. }, .. }]),
        "{notices:?}"
    );
}

#[test]
fn what_a_cluster_says_is_told_when_a_job_has_left_no_word() {
    let interrupted = |standing: &str| {
        let message = format!("Slurm says of job 12: {standing} in partition main");
        EndKind::Interrupted { message }
    };
    let cases = [
        (Standing::Over(Over::TimedOut), EndKind::TimedOut),
        (Standing::Over(Over::OutOfMemory), EndKind::OutOfMemory),
        (Standing::Over(Over::Cancelled), interrupted("Over(Cancelled)")),
        (Standing::Forgotten(Some(Over::TimedOut)), EndKind::TimedOut),
        (Standing::Forgotten(Some(Over::OutOfMemory)), EndKind::OutOfMemory),
        (Standing::Forgotten(Some(Over::Ended)), interrupted("Forgotten(Some(Ended))")),
    ];
    for (standing, expected) in cases {
        let (mut played, token) = Played::begun();
        let rows = [(token.as_str(), 0, standing)];
        assert_eq!(played.listed(&rows), [], "its word may be on its way");
        played.now += Duration::from_secs(10);
        let notices = played.listed(&rows);
        assert!(matches!(&notices[..], [Notice::Ended { end, .. }] if end.how == expected), "{notices:?}");
    }
}

#[test]
fn f5_a_job_whose_end_is_not_in_accounting_is_waited_for_and_not_for_ever() {
    let (mut played, token) = Played::begun();
    let rows = [(token.as_str(), 0, Standing::Forgotten(None))];
    for _ in 0..5 {
        assert_eq!(played.listed(&rows), []);
        played.now += Duration::from_secs(600);
    }
    assert_eq!(played.listed(&rows), []);
    played.now += Duration::from_secs(600);
    let notices = played.listed(&rows);
    assert!(
        matches!(&notices[..], [Notice::Ended { end: End { how: EndKind::Interrupted { .. }, .. }, .. }]),
        "{notices:?}"
    );
}

#[test]
fn f5_why_a_job_was_told_to_end_is_waited_for_where_accounting_may_know_it() {
    let (mut played, token) = Played::begun();
    let unsettled = [(token.as_str(), 0, Standing::Forgotten(None))];
    assert_eq!(played.listed(&unsettled), []);
    played.queue.ended(key(0), EndedNews { end: nothing(EndKind::Killed, None), told: true }, played.now);
    for _ in 0..3 {
        assert_eq!(played.listed(&unsettled), []);
    }
    let notices = played.listed(&[(&token, 0, Standing::Forgotten(Some(Over::TimedOut)))]);
    assert!(matches!(&notices[..], [Notice::Ended { end, .. }] if end.how == EndKind::TimedOut), "{notices:?}");
}

#[test]
fn f3_what_a_controller_has_lost_runs_on_as_long_as_it_gives_signs_of_life() {
    let (mut played, token) = Played::begun();
    let lost = [(token.as_str(), 0, Standing::Forgotten(Some(Over::Lost)))];
    let word = played.queue.desk.folder.news().join(format!("{}.{STARTED}", key(0).folder()));
    for beat in 0..4 {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(beat);
        fs::File::options().write(true).open(&word).unwrap().set_modified(at).unwrap();
        assert_eq!(played.listed(&lost), []);
        played.now += Duration::from_secs(40);
    }
    played.now += Duration::from_secs(20);
    assert_eq!(played.listed(&lost), [], "its word may be on its way");
    played.now += Duration::from_secs(10);
    let notices = played.listed(&lost);
    assert!(
        matches!(&notices[..], [Notice::Ended { end: End { how: EndKind::Interrupted { .. }, .. }, .. }]),
        "{notices:?}"
    );
}

#[test]
fn f3_what_a_controller_has_lost_and_that_has_not_begun_is_submitted_again() {
    let mut played = Played::new();
    played.hand(1);
    let (token, _) = played.submission();
    played.submitted(&token, Ok("12"));
    assert_eq!(played.listed(&[(&token, 0, Standing::Forgotten(Some(Over::Lost)))]), []);
    assert_ne!(played.submission().0, token);
}

#[test]
fn f1_a_controller_that_is_away_ends_nothing_and_loses_nothing() {
    let mut played = Played::new();
    played.hand(1);
    let (token, _) = played.submission();
    played.submitted(&token, Err(NotSubmitted::Later("Unable to contact slurm controller".to_owned())));
    for _ in 0..100 {
        if let Some(call) = played.after(30) {
            let why = "connect failure".to_owned();
            match call {
                Call::Submit { token, .. } => played.submitted(&token, Err(NotSubmitted::Later(why))),
                Call::List(_) => played.queue.answered(Answer::Listed(Err(why)), played.now),
                Call::Cancel { .. } => panic!("nobody wants it ended"),
            }
        }
    }
    assert_eq!(played.queue.take_notices(), []);
    played.now += PAUSE_MAX;
    assert_eq!(played.submission().0, token);
}

#[test]
fn what_is_not_submitted_yet_is_given_back_at_once_and_what_is_when_it_is_gone() {
    let mut played = Played::new();
    played.hand(1);
    played.queue.kill(key(0), played.now);
    assert_eq!(played.queue.take_notices(), [Notice::GivenBack { key: key(0), killed: true }]);
    played.hand(1);
    let (token, _) = played.submission();
    played.submitted(&token, Ok("12"));
    played.queue.kill(key(0), played.now);
    assert!(played.queue.desk.folder.slot(key(0)).join(CANCEL).exists());
    assert!(matches!(played.after(0), Some(Call::Cancel { .. })));
    played.queue.answered(Answer::Cancelled(Ok(())), played.now);
    assert_eq!(played.queue.take_notices(), []);
    let notices = played.listed(&[(&token, 0, Standing::Over(Over::Cancelled))]);
    assert_eq!(notices, [Notice::GivenBack { key: key(0), killed: true }]);
    played.queue.forget(key(0));
    assert_eq!(fs::read_dir(played.queue.desk.folder.batches()).unwrap().count(), 0);
}

#[test]
fn the_wait_that_is_told_is_that_of_jobs_which_the_cluster_has_and_has_not_begun() {
    let mut played = Played::new();
    let soon = Timestamp(crate::clock::wall_clock().0 + 90_000_000);
    played.hand(2);
    assert_eq!(played.queue.longest_wait(soon), None);
    let (token, _) = played.submission();
    assert_eq!(played.queue.longest_wait(soon), None, "the cluster has not said that it has them");
    played.submitted(&token, Ok("12"));
    let wait = played.queue.longest_wait(soon).unwrap();
    assert!((Duration::from_secs(80)..=Duration::from_secs(90)).contains(&wait), "{wait:?}");
    let at = crate::clock::wall_clock();
    for element in 0..2 {
        assert!(played.queue.longest_wait(soon).is_some());
        let claim = Claim { token: token.clone(), job: "12".to_owned(), restarts: 0, node: "n1".to_owned() };
        played.queue.started(key(element), StartedNews { at, claim });
    }
    assert_eq!(played.queue.longest_wait(soon), None);
    assert_eq!(played.queue.waits.len(), 2);
}
