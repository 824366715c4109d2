#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::TokenId;
use atoll_model::workflow::{Action, Surroundings, parse};
use control_plane_core::view::{RunState, RunTags};
use control_plane_core::{Config, ControlPlane, Event, Request, RequestId};

use super::*;
use crate::history::RetentionRule;

const T0: Timestamp = Timestamp(1_800_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3_600);

struct Alone;

impl Surroundings for Alone {
    fn action(&self, reference: &str) -> Result<Action, String> {
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
    RunTags { project: project.to_owned(), labels }
}

struct Bench {
    folder: tempfile::TempDir,
    history: FileHistory,
    /// Oldest first: of two workflows, two projects, one with a label, a day from one to the next.
    kept: Vec<FinishedRun>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let history = FileHistory::open(folder.path()).unwrap();
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
        Self { folder, history, kept }
    }

    fn reopened(self) -> Self {
        let Self { folder, history, kept } = self;
        drop(history);
        let history = FileHistory::open(folder.path()).unwrap();
        Self { folder, history, kept }
    }

    /// Places, in `kept`, of the runs that a filter admits.
    fn found(&self, filter: &RunFilter) -> Vec<usize> {
        let found = self.history.runs(filter).unwrap();
        found.iter().map(|view| self.kept.iter().position(|run| run.id() == view.run).unwrap()).collect()
    }
}

fn all() -> RunFilter {
    RunFilter::default()
}

#[test]
fn runs_are_listed_newest_first_as_they_were_shown() {
    let bench = Bench::new().reopened();
    assert_eq!(bench.found(&all()), [3, 2, 1, 0]);
    let views: Vec<_> = bench.kept.iter().rev().map(FinishedRun::view).collect();
    assert_eq!(bench.history.runs(&all()).unwrap(), views);
    for run in &bench.kept {
        assert_eq!(bench.history.run(run.id()).unwrap().unwrap().view(), run.view());
    }
    assert_eq!(bench.history.run(RunId::from_bits(99)).unwrap(), None);
}

#[test]
fn runs_are_found_by_workflow_project_state_label_site_and_time() {
    let bench = Bench::new();
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

#[test]
fn pages_follow_each_other_without_gap_or_repeat() {
    let bench = Bench::new();
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

#[test]
fn a_run_that_is_kept_again_is_there_once() {
    let bench = Bench::new();
    bench.history.keep(&bench.kept[1..3]).unwrap();
    assert_eq!(bench.found(&all()), [3, 2, 1, 0]);
    assert_eq!(bench.found(&RunFilter { workflow: Some("ab".to_owned()), ..all() }), [1]);
}

#[test]
fn what_is_kept_long_enough_goes_by_the_first_rule_that_it_matches() {
    let bench = Bench::new();
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

#[test]
fn lists_and_index_are_made_again_from_the_runs() {
    let bench = Bench::new();
    let table = |table, key: &[u8], value: &[u8]| TableChange::Put { table, key: key.to_vec(), value: value.to_vec() };
    let other = [table(ABOUT, FORMAT_KEY, &[0, 0]), table(HEADS, &[0; 24], b"?"), table(INDEX, b"w?", b"")];
    bench.history.tables.change(&other).unwrap();
    assert!(bench.history.runs(&all()).is_err());
    let bench = bench.reopened();
    assert_eq!(bench.found(&all()), [3, 2, 1, 0]);
    assert_eq!(bench.found(&RunFilter { project: Some("rivers".to_owned()), ..all() }), [3, 1, 0]);
}

#[test]
fn a_run_of_a_newer_version_is_refused_by_name() {
    let bench = Bench::new();
    let run = bench.kept[0].id();
    let value = (Snapshot::FORMAT + 1).to_be_bytes().to_vec();
    bench.history.tables.change(&[TableChange::Put { table: RUNS, key: run_key(run), value }]).unwrap();
    let message = bench.history.run(run).unwrap_err().to_string();
    assert!(message.contains(&run.to_string()) && message.contains("run the newer program"), "{message}");
}
