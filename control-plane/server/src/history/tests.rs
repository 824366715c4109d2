//! What every history promises, wherever it keeps the runs.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{RunId, TokenId};
use atoll_model::workflow::{Surroundings, Work, parse};
use control_plane_core::view::{RunState, RunTags};
use control_plane_core::{Config, ControlPlane, Event, Request, RequestId};

use control_plane_postgres::Fence;

use super::*;
use crate::testing::Schema;

const T0: Timestamp = Timestamp(1_800_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3_600);

struct Alone;

impl Surroundings for Alone {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action {reference}"))
    }
}

/// Runs that have ended, made by a core.
struct Runs {
    core: ControlPlane,
    requests: u64,
}

impl Runs {
    fn new() -> Self {
        let mut runs = Self { core: ControlPlane::recover(Config::default(), None, [], T0), requests: 0 };
        runs.ask(
            Request::CreateToken {
                token: TokenId::from_bits(1),
                secret_hash: [1; 32],
                site: "edge".parse().unwrap(),
                labels: Default::default(),
                lifetime: DAY,
            },
            T0,
        );
        runs
    }

    fn ask(&mut self, body: Request, at: Timestamp) {
        self.requests += 1;
        let _ = self.core.handle(Event::Request { request: RequestId(self.requests), body }, at);
    }

    /// One that was submitted and cancelled at a time.
    fn ended(&mut self, workflow: &str, tags: RunTags, at: Timestamp) -> FinishedRun {
        let run = RunId::from_bits(u128::from(self.requests));
        let source = format!("workflow: {workflow}\nsteps:\n  a: {{ run: x }}\n");
        let submit = Request::Submit {
            run,
            workflow: Arc::new(parse("w.yaml", &source, &Alone).unwrap()),
            source: source.as_str().into(),
            inputs: Default::default(),
            submitted_by: "somebody".to_owned(),
            traceparent: None,
            tags,
        };
        self.ask(submit, at);
        self.ask(Request::CancelRun { run, reason: "enough".to_owned() }, at);
        self.core.finished_run(run).unwrap()
    }
}

fn tags(project: &str, labels: &[(&str, &str)]) -> RunTags {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    RunTags { project: project.to_owned(), labels, priority: None }
}

/// Where a history is, in a test; removed with it.
pub(super) trait Place: Sized {
    type History: History;

    /// Nothing, loudly, where there is no such store.
    fn fresh() -> Option<Self>;

    fn open(&self) -> Self::History;
}

pub(super) struct Folder(tempfile::TempDir);

impl Place for Folder {
    type History = FileHistory;

    fn fresh() -> Option<Self> {
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn open(&self) -> FileHistory {
        FileHistory::open(self.0.path()).unwrap()
    }
}

/// Tables on PostgreSQL, of which this process has the lead.
pub(super) struct Led(Schema, Fence);

impl Place for Led {
    type History = PostgresHistory;

    fn fresh() -> Option<Self> {
        let schema = Schema::fresh()?;
        let fence = schema.lead().2.fence();
        Some(Self(schema, fence))
    }

    fn open(&self) -> PostgresHistory {
        PostgresHistory::new(self.0.address(), self.1.clone())
    }
}

pub(super) struct Bench<P: Place> {
    place: P,
    pub(super) history: P::History,
    /// Oldest first: of two workflows, two projects, one with a label, a day from one to the next.
    pub(super) kept: Vec<FinishedRun>,
}

impl<P: Place> Bench<P> {
    pub(super) fn new() -> Option<Self> {
        let place = P::fresh()?;
        let history = place.open();
        let mut runs = Runs::new();
        let given = [
            ("a", tags("rivers", &[])),
            ("ab", tags("rivers", &[("season", "wet")])),
            ("a", tags("lakes", &[("season", "dry")])),
            ("a", tags("rivers", &[("season", "wet"), ("year", "1")])),
        ];
        let days = (0..).map(|day| T0 + DAY * day);
        let kept: Vec<_> =
            given.into_iter().zip(days).map(|((workflow, tags), at)| runs.ended(workflow, tags, at)).collect();
        history.keep(&kept).unwrap();
        Some(Self { place, history, kept })
    }

    pub(super) fn reopened(self) -> Self {
        let Self { place, history, kept } = self;
        drop(history);
        let history = place.open();
        Self { place, history, kept }
    }

    /// Places, in `kept`, of the runs that a filter admits.
    pub(super) fn found(&self, filter: &RunFilter) -> Vec<usize> {
        let found = self.history.runs(filter).unwrap();
        found.iter().map(|view| self.kept.iter().position(|run| run.id() == view.run).unwrap()).collect()
    }
}

pub(super) fn all() -> RunFilter {
    RunFilter::default()
}

fn runs_are_listed_newest_first_as_they_were_shown<P: Place>(bench: Bench<P>) {
    let bench = bench.reopened();
    assert_eq!(bench.found(&all()), [3, 2, 1, 0]);
    let views: Vec<_> = bench.kept.iter().rev().map(FinishedRun::view).collect();
    assert_eq!(bench.history.runs(&all()).unwrap(), views);
    for run in &bench.kept {
        assert_eq!(bench.history.run(run.id()).unwrap().unwrap().view(), run.view());
    }
    assert_eq!(bench.history.run(RunId::from_bits(99)).unwrap(), None);
}

fn runs_are_found_by_workflow_project_state_label_site_and_time<P: Place>(bench: Bench<P>) {
    let workflow = |name: &str| RunFilter { workflow: Some(name.to_owned()), ..all() };
    assert_eq!(bench.found(&workflow("a")), [3, 2, 0]);
    assert_eq!(bench.found(&workflow("ab")), [1]);
    assert_eq!(bench.found(&workflow("none")), [0_usize; 0]);
    let project = |name: &str| RunFilter { project: Some(name.to_owned()), ..all() };
    assert_eq!(bench.found(&project("rivers")), [3, 1, 0]);
    let state = |state| RunFilter { state: Some(state), ..all() };
    assert_eq!(bench.found(&state(RunState::Cancelled)), [3, 2, 1, 0]);
    assert_eq!(bench.found(&state(RunState::Failed)), [0_usize; 0]);
    let wet = RunFilter { labels: tags("", &[("season", "wet")]).labels, ..all() };
    assert_eq!(bench.found(&wet), [3, 1]);
    assert_eq!(bench.found(&RunFilter { labels: tags("", &[("season", "wet"), ("year", "1")]).labels, ..all() }), [3]);
    assert_eq!(bench.found(&RunFilter { workflow: Some("a".to_owned()), ..wet }), [3]);
    assert_eq!(bench.found(&RunFilter { site: Some("edge".parse().unwrap()), ..all() }), [0_usize; 0]);
    assert_eq!(bench.found(&RunFilter { since: Some(T0 + DAY), until: Some(T0 + DAY * 3), ..all() }), [2, 1]);
    assert_eq!(bench.found(&RunFilter { since: Some(T0 + DAY), ..workflow("a") }), [3, 2]);
}

fn pages_follow_each_other_without_gap_or_repeat<P: Place>(bench: Bench<P>) {
    for filter in [all(), RunFilter { workflow: Some("a".to_owned()), ..all() }] {
        let whole = bench.found(&filter);
        let (mut paged, mut before) = (Vec::new(), None);
        loop {
            let page = bench.found(&RunFilter { before, limit: Some(1), ..filter.clone() });
            let Some(last) = page.last() else { break };
            before = Some(bench.kept[*last].view().place());
            paged.extend(page);
        }
        assert_eq!(paged, whole);
    }
    assert_eq!(bench.found(&RunFilter { limit: Some(0), ..all() }), [0_usize; 0]);
}

fn a_run_that_is_kept_again_is_there_once<P: Place>(bench: Bench<P>) {
    bench.history.keep(&bench.kept[1..3]).unwrap();
    assert_eq!(bench.found(&all()), [3, 2, 1, 0]);
    assert_eq!(bench.found(&RunFilter { workflow: Some("ab".to_owned()), ..all() }), [1]);
}

fn what_is_kept_long_enough_goes_by_the_first_rule_that_it_matches<P: Place>(bench: Bench<P>) {
    let rule = |project: Option<&str>, workflow: Option<&str>, keep_days| RetentionRule {
        project: project.map(str::to_owned),
        workflow: workflow.map(str::to_owned),
        state: Some("cancelled".to_owned()),
        keep_days,
    };
    let rules = vec![rule(None, Some("ab"), None), rule(Some("rivers"), None, Some(2))];
    let retention = Retention { keep_days: Some(100), rules };
    let now = T0 + DAY * 4;
    assert_eq!(bench.history.expire(&retention, now).unwrap(), 1);
    assert_eq!(bench.found(&all()), [3, 2, 1], "the first is of rivers and four days old");
    assert_eq!(bench.history.run(bench.kept[0].id()).unwrap(), None);
    assert_eq!(bench.found(&RunFilter { project: Some("rivers".to_owned()), ..all() }), [3, 1]);
    assert_eq!(bench.history.expire(&retention, T0 + DAY * 1_000).unwrap(), 2);
    assert_eq!(bench.reopened().found(&all()), [1], "nothing ends for the workflow ab");
}

/// One test for each claim and each store.
macro_rules! contract {
    ($($claim:ident),* $(,)?) => {
        mod file {
            $(#[test] fn $claim() { super::$claim(super::Bench::<super::Folder>::new().unwrap()); })*
        }
        mod postgres {
            $(#[test] fn $claim() {
                if let Some(bench) = super::Bench::<super::Led>::new() {
                    super::$claim(bench);
                }
            })*
        }
    };
}

contract!(
    runs_are_listed_newest_first_as_they_were_shown,
    runs_are_found_by_workflow_project_state_label_site_and_time,
    pages_follow_each_other_without_gap_or_repeat,
    a_run_that_is_kept_again_is_there_once,
    what_is_kept_long_enough_goes_by_the_first_rule_that_it_matches,
);

#[test]
fn ended_runs_are_rows_that_anybody_can_query_with_sql() {
    let Some(bench) = Bench::<Led>::new() else { return };
    let sql = |text: &str| {
        let text = format!("SET search_path TO {}; {text}", bench.place.0.address().schema());
        let server = std::env::var("ATOLL_TEST_POSTGRES").unwrap();
        let output =
            std::process::Command::new("psql").args(["-X", "-q", "-A", "-t", "-c", &text, &server]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let listed = sql(
        "SELECT workflow, project, state, submitted_by, labels ->> 'season' FROM runs ORDER BY submitted_at LIMIT 2",
    );
    assert_eq!(listed, "a|rivers|cancelled|somebody|\nab|rivers|cancelled|somebody|wet");
    let times = sql("SELECT count(*) FROM runs WHERE finished_at = to_timestamp(1800000000 + 86400)");
    assert_eq!(times, "1");
    assert_eq!(sql("SELECT DISTINCT step, element, state FROM executions"), "a|0|cancelled");
    bench.history.keep(&bench.kept).unwrap();
    assert_eq!(sql("SELECT count(*) FROM executions JOIN runs USING (run)"), "4", "kept again, they are there once");
}

#[test]
fn b3_what_a_superseded_leader_does_to_the_history_is_refused_by_the_database() {
    let Some(bench) = Bench::<Led>::new() else { return };
    let (journal, _, standby) = bench.place.0.lead();
    let superseded = |refused: HistoryError| {
        let HistoryError::Store(error) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("another server leads now"), "{error}");
    };
    let mut runs = Runs::new();
    let late = runs.ended("late", tags("rivers", &[]), T0 + DAY * 9);
    superseded(bench.history.keep(std::slice::from_ref(&late)).unwrap_err());
    let none = Retention { keep_days: Some(0), rules: Vec::new() };
    superseded(bench.history.expire(&none, T0 + DAY * 100).unwrap_err());
    assert_eq!(bench.found(&all()), [3, 2, 1, 0], "nothing was added, and nothing removed");
    // Nor may a server that has never led.
    superseded(PostgresHistory::new(bench.place.0.address(), Fence::default()).keep(&[late]).unwrap_err());
    let leader = PostgresHistory::new(bench.place.0.address(), standby.fence());
    assert_eq!(leader.expire(&none, T0 + DAY * 100).unwrap(), 4);
    leader.keep(&bench.kept[..1]).unwrap();
    assert_eq!(bench.found(&all()), [0]);
    drop(journal);
}
