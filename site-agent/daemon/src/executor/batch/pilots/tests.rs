//! The keeper of pilots beside a batch system and workers that a test plays.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;
use crate::executor::batch::system::{BatchSystem, Limits, Over, Request, Row, Sought, Standing};
use crate::shim::job::evidence::OfJob;

const POLL: Duration = Duration::from_secs(5);

/// What the batch system has, what it will answer, and what the agent was told.
#[derive(Debug, Default)]
struct State {
    /// By number: the token, and where the job stands.
    jobs: BTreeMap<u32, (String, Standing)>,
    last: u32,
    scripts: Vec<Vec<String>>,
    refusal: Option<NotSubmitted>,
    is_away: bool,
    cancelled: Vec<String>,
    joined: BTreeSet<String>,
    barred: Vec<bool>,
}

#[derive(Debug, Clone, Default)]
struct Played(Arc<Mutex<State>>);

impl BatchSystem for Played {
    fn title(&self) -> &str {
        "Played"
    }

    fn place(&self) -> String {
        "queue q".to_owned()
    }

    fn limits(&self) -> Limits {
        Limits { poll: POLL, jobs_max: 1, together_max: 1, forgotten_after: POLL }
    }

    fn of_job(&self) -> OfJob {
        OfJob::default()
    }

    fn request(&self, job: &NewJob<'_>) -> Request {
        let words = [job.token.to_owned()].into_iter().chain(super::super::system::words(job)).collect();
        Request { words, ..Request::default() }
    }

    fn number(&self, number: &str, _index: usize, _count: usize) -> String {
        number.to_owned()
    }

    fn submit(&self, request: &Request) -> Result<String, NotSubmitted> {
        let mut state = self.0.lock().unwrap();
        if let Some(refusal) = state.refusal.clone() {
            return Err(refusal);
        }
        state.last += 1;
        let number = state.last;
        state.jobs.insert(number, (request.words[0].clone(), Standing::Waiting));
        state.scripts.push(request.words[1..].to_vec());
        Ok(number.to_string())
    }

    fn cancel(&self, jobs: &[String], _name: &str) -> Result<(), String> {
        self.0.lock().unwrap().cancelled.extend_from_slice(jobs);
        Ok(())
    }

    fn list(&self, _sought: &[Sought]) -> Result<Vec<Row>, String> {
        let state = self.0.lock().unwrap();
        if state.is_away {
            return Err("away".to_owned());
        }
        let row = |(number, (token, standing)): (&u32, &(String, Standing))| Row {
            job: number.to_string(),
            index: 0,
            standing: *standing,
            words: format!("{standing:?}"),
            token: token.clone(),
        };
        Ok(state.jobs.iter().map(row).collect())
    }
}

impl Crew for Played {
    fn has_joined(&self, name: &str) -> bool {
        self.0.lock().unwrap().joined.contains(name)
    }

    fn barred(&self, barred: bool) {
        self.0.lock().unwrap().barred.push(barred);
    }
}

struct Site {
    folder: TempDir,
    played: Played,
    keeper: Keeper,
    now: Instant,
}

fn keeper(folder: &TempDir, played: &Played, now: Instant) -> Keeper {
    let pilots = PilotSettings {
        max: 2,
        cpus: 4,
        memory: 1 << 30,
        time: Duration::from_secs(3_600),
        idle: Duration::from_secs(30),
        short: Duration::from_secs(20),
    };
    let program = ShimProgram { program: "/bin/atoll".into(), arguments: Vec::new() };
    let jobs = JobsFolder::new(folder.path().join("pilots"));
    let desk = Desk::open(Arc::new(played.clone()), program, folder.path().to_owned(), jobs).unwrap();
    let fleet = Fleet::open(&desk, pilots.max, now).unwrap();
    let words = Words { program: "/bin/atoll".into(), data_dir: "/shared/atoll".into(), pilots };
    Keeper { desk, words, fleet, crew: Box::new(played.clone()), list_at: now, told: false }
}

impl Site {
    fn new() -> Self {
        let (folder, played, now) = (tempfile::tempdir().unwrap(), Played::default(), Instant::now());
        let keeper = keeper(&folder, &played, now);
        Self { folder, played, keeper, now }
    }

    /// The agent's process is killed, and another one starts.
    fn restart(&mut self) {
        self.played.0.lock().unwrap().joined.clear();
        self.keeper = keeper(&self.folder, &self.played, self.now);
    }

    fn want(&mut self, count: u32) {
        self.keeper.fleet.want(count, self.now);
        self.keeper.look(self.now);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.keeper.look(self.now);
    }

    fn stands(&self, number: u32, standing: Standing) {
        self.played.0.lock().unwrap().jobs.get_mut(&number).unwrap().1 = standing;
    }

    fn joins(&self, number: u32) {
        self.stands(number, Standing::Running);
        let mut state = self.played.0.lock().unwrap();
        let name = fleet::worker_name(&state.jobs[&number].0);
        state.joined.insert(name);
    }

    fn submitted(&self) -> u32 {
        self.played.0.lock().unwrap().last
    }

    fn state<T>(&self, of: impl FnOnce(&State) -> T) -> T {
        of(&self.played.0.lock().unwrap())
    }
}

#[test]
fn as_many_are_submitted_as_are_wanted_and_allowed_and_none_while_one_is_on_its_way() {
    let mut site = Site::new();
    site.want(1);
    site.pass(6);
    assert_eq!(site.submitted(), 1, "it is on its way");
    site.joins(1);
    site.pass(6);
    assert_eq!(site.submitted(), 2, "one was not enough");
    site.joins(2);
    site.want(5);
    assert_eq!(site.submitted(), 2, "no more are allowed");
    site.stands(1, Standing::Over(Over::Ended));
    site.pass(6);
    assert_eq!(site.submitted(), 3, "another in the place of one that has left");
    assert!(site.state(|state| state.barred.is_empty()));
}

#[test]
fn a_pilot_is_a_worker_that_offers_what_it_has_and_leaves_before_its_time_is_over() {
    let mut site = Site::new();
    site.want(1);
    let words = site.state(|state| state.scripts[0].join(" "));
    let (before, after) = words.split_once(" --name pilot-").unwrap();
    assert_eq!(before, "/bin/atoll worker --data-dir /shared/atoll");
    let after = after.split_once(' ').unwrap().1;
    assert_eq!(after, "--cpus 4 --memory 1006632960 --time-limit 59m --drain 30s --idle 30s");
}

#[test]
fn what_nobody_wants_any_more_is_taken_back_unless_it_has_begun() {
    let mut site = Site::new();
    site.want(2);
    site.stands(1, Standing::Running);
    site.pass(6);
    site.want(0);
    site.pass(1);
    assert!(site.state(|state| state.cancelled.is_empty()), "it may be wanted again at once");
    site.pass(6);
    site.pass(6);
    assert_eq!(site.state(|state| state.cancelled.clone()), ["2"]);
    site.stands(2, Standing::Over(Over::Cancelled));
    site.pass(6);
    assert!(site.state(|state| state.barred.is_empty()), "that is no reason to do without pilots");
}

#[test]
fn pilots_are_found_again_by_the_next_agent() {
    let mut site = Site::new();
    site.want(1);
    site.restart();
    site.want(1);
    site.pass(6);
    assert_eq!(site.submitted(), 1);
    site.restart();
    site.state(|state| assert!(state.joined.is_empty()));
    // It has come and gone while there was no agent.
    site.stands(1, Standing::Over(Over::Ended));
    site.want(1);
    assert_eq!(site.submitted(), 2);
    assert!(site.state(|state| state.barred.is_empty()));
}

#[test]
fn a_submission_whose_answer_was_lost_is_looked_for_before_there_is_another() {
    let mut site = Site::new();
    site.played.0.lock().unwrap().refusal = Some(NotSubmitted::Unclear("timed out".to_owned()));
    site.want(1);
    site.played.0.lock().unwrap().refusal = None;
    site.pass(6);
    assert_eq!(site.submitted(), 0, "it may be there although it is not listed yet");
    site.pass(6);
    assert_eq!(site.submitted(), 1);
}

#[test]
fn a_system_that_is_away_bars_nothing_and_one_that_refuses_does_for_a_while() {
    let mut site = Site::new();
    site.played.0.lock().unwrap().refusal = Some(NotSubmitted::Later("away".to_owned()));
    site.want(1);
    assert!(site.state(|state| state.barred.is_empty()));
    site.played.0.lock().unwrap().refusal = Some(NotSubmitted::Refused("invalid account".to_owned()));
    site.pass(6);
    assert_eq!(site.state(|state| state.barred.clone()), [true]);
    site.played.0.lock().unwrap().refusal = None;
    site.pass(60);
    assert_eq!(site.submitted(), 0);
    site.pass(300);
    assert_eq!(site.state(|state| state.barred.clone()), [true, false]);
    assert_eq!(site.submitted(), 1);
}

#[test]
fn a_pilot_whose_worker_does_not_come_is_cancelled_and_short_work_does_without() {
    let mut site = Site::new();
    site.want(1);
    site.stands(1, Standing::Running);
    site.pass(6);
    site.pass(61);
    assert_eq!(site.state(|state| state.cancelled.clone()), ["1"]);
    site.stands(1, Standing::Over(Over::Cancelled));
    site.pass(6);
    assert_eq!(site.state(|state| state.barred.clone()), [true]);
    assert_eq!(site.submitted(), 1);
}

#[test]
fn a_controller_that_is_away_ends_no_pilot() {
    let mut site = Site::new();
    site.want(2);
    site.joins(1);
    site.joins(2);
    site.pass(6);
    site.played.0.lock().unwrap().is_away = true;
    for _ in 0..5 {
        site.pass(6);
    }
    site.played.0.lock().unwrap().is_away = false;
    site.pass(6);
    assert_eq!(site.submitted(), 2);
}
