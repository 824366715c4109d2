//! Priorities, fair shares and limits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
use atoll_model::limits::DISPATCH_AHEAD;
use atoll_model::session::{AgentBody, Heartbeat, Outcome, Report, SiteCommand, WaitingJob};

use super::world::{World, executions_of};
use crate::view::{ExecutionPage, ExecutionState, RunState, RunTags};
use crate::{ProjectChange, Request};

const SECOND: Duration = Duration::from_secs(1);

fn fan(name: &str, count: u32, more: &str) -> String {
    format!("workflow: {name}\nsteps:\n  a: {{ run: x, foreach: \"${{{{ range({count}) }}}}\"{more} }}\n")
}

fn of(project: &str) -> RunTags {
    RunTags { project: project.to_owned(), ..RunTags::default() }
}

fn urgent(priority: i8) -> RunTags {
    RunTags { priority: Some(priority), ..RunTags::default() }
}

/// A world whose one site runs four executions at a time, each for a second, in the order in which they come.
struct Busy {
    world: World,
    queue: VecDeque<(ExecutionId, Attempt)>,
    /// Executions that were started, by run.
    started: BTreeMap<RunId, u32>,
}

impl Busy {
    fn new() -> Self {
        let mut world = World::new();
        world.compare_recovery = false;
        world.add_site("edge");
        Self { world, queue: VecDeque::new(), started: BTreeMap::new() }
    }

    fn set(&mut self, project: &str, change: ProjectChange) {
        self.world.ask(Request::SetProject { project: project.to_owned(), change }).unwrap();
    }

    fn share(&mut self, project: &str, share: u32) {
        self.set(project, ProjectChange { share: Some(share), ..ProjectChange::default() });
    }

    /// What runs in this second ends, all of it in one frame.
    fn second(&mut self) {
        let commands = self.world.commands("edge");
        self.queue.extend(commands.iter().flat_map(executions_of));
        let running: Vec<_> = self.queue.drain(..self.queue.len().min(4)).collect();
        let started_at = self.world.now;
        self.world.advance(SECOND);
        self.world.heartbeat("edge");
        let mut reports = Vec::new();
        for execution in running {
            *self.started.entry(execution.0.run).or_default() += 1;
            let mut report = self.world.finished(execution, Outcome::Succeeded, Vec::new());
            if let Report::Finished { elements, .. } = &mut report {
                elements[0].started_at = Some(started_at);
            }
            reports.push(report);
        }
        self.world.report("edge", reports);
    }

    fn seconds(&mut self, count: u32) {
        (0..count).for_each(|_| self.second());
    }

    fn started(&self, run: RunId) -> u32 {
        self.started.get(&run).copied().unwrap_or(0)
    }

    /// What is started of each of two runs from now on.
    fn shares(&mut self, runs: [RunId; 2], seconds: u32) -> [u32; 2] {
        let before = runs.map(|run| self.started(run));
        self.seconds(seconds);
        let after = runs.map(|run| self.started(run));
        [after[0] - before[0], after[1] - before[1]]
    }

    fn waits_for(&self, run: RunId) -> String {
        let views = self.world.core.executions(run, &ExecutionPage::default()).unwrap();
        let waiting = views.into_iter().find(|view| view.state == ExecutionState::Ready).unwrap();
        waiting.waiting_for.unwrap()
    }
}

#[test]
fn two_projects_with_backlogs_at_one_site_get_the_same_share() {
    let mut busy = Busy::new();
    let runs = ["rivers", "seas"].map(|project| busy.world.submit_tagged(&fan("w", 5_000, ""), of(project)));
    busy.seconds(10);
    let [rivers, seas] = busy.shares(runs, 200);
    assert_eq!(rivers + seas, 800, "the site is never idle");
    assert!(rivers.abs_diff(seas) <= 24, "{rivers} and {seas}");
}

#[test]
fn a_project_with_three_times_the_share_gets_three_times_as_much() {
    let mut busy = Busy::new();
    busy.share("rivers", 3);
    let runs = ["rivers", "seas"].map(|project| busy.world.submit_tagged(&fan("w", 5_000, ""), of(project)));
    busy.seconds(10);
    let [rivers, seas] = busy.shares(runs, 200);
    assert_eq!(rivers + seas, 800);
    assert!(rivers.abs_diff(600) <= 24, "{rivers} and {seas}");
}

#[test]
fn shares_count_however_many_runs_a_project_has() {
    let mut busy = Busy::new();
    let many: Vec<_> = (0..9).map(|_| busy.world.submit_tagged(&fan("w", 500, ""), of("rivers"))).collect();
    let one = busy.world.submit_tagged(&fan("w", 5_000, ""), of("seas"));
    busy.seconds(10);
    let before: Vec<_> = many.iter().map(|run| busy.started(*run)).collect();
    let before_one = busy.started(one);
    busy.seconds(200);
    let each: Vec<_> = many.iter().zip(before).map(|(run, before)| busy.started(*run) - before).collect();
    let (rivers, seas) = (each.iter().sum::<u32>(), busy.started(one) - before_one);
    assert!(rivers.abs_diff(seas) <= 40, "{rivers} and {seas}");
    let (least, most) = (each.iter().min().unwrap(), each.iter().max().unwrap());
    assert!(most - least <= 12, "its runs share alike: {each:?}");
}

#[test]
fn a_project_that_comes_late_gets_its_share_at_once() {
    let mut busy = Busy::new();
    let first = busy.world.submit_tagged(&fan("w", 5_000, ""), of("rivers"));
    busy.seconds(100);
    let late = busy.world.submit_tagged(&fan("w", 5_000, ""), of("seas"));
    let behind = busy.queue.len() + busy.world.core.site(&"edge".parse().unwrap()).unwrap().queued as usize;
    assert!(behind <= 60, "little was handed out ahead: {behind}");
    busy.seconds(7);
    assert!(busy.started(late) > 0, "it is not behind the whole backlog");
    let [first, late] = busy.shares([first, late], 100);
    assert!(late.abs_diff(200) <= 30, "{first} and {late}");
}

#[test]
fn what_a_project_does_not_use_goes_to_the_others() {
    let mut busy = Busy::new();
    busy.share("rivers", 9);
    let runs = [("rivers", 40), ("seas", 5_000)].map(|(p, n)| busy.world.submit_tagged(&fan("w", n, ""), of(p)));
    busy.seconds(20);
    let [rivers, seas] = busy.shares(runs, 50);
    assert_eq!((rivers, seas), (0, 200), "it had all that it wanted before");
    let again = busy.world.submit_tagged(&fan("w", 5_000, ""), of("rivers"));
    busy.seconds(10);
    let [again, seas] = busy.shares([again, runs[1]], 50);
    assert!(again >= 180 && seas > 0, "it comes back to its share, not to what it did not use: {again} and {seas}");
}

#[test]
fn urgent_work_comes_before_a_backlog_and_little_is_ahead_of_it() {
    let mut busy = Busy::new();
    let backlog = busy.world.submit(&fan("w", 5_000, ""));
    busy.seconds(20);
    let before = busy.started(backlog);
    let run = busy.world.submit_tagged(&fan("w", 40, ""), urgent(10));
    busy.seconds(8);
    assert!(busy.started(run) > 0, "within the time that is dispatched ahead");
    busy.seconds(10);
    assert_eq!(busy.world.state(run), RunState::Succeeded);
    assert!(busy.started(backlog) - before <= 40, "nothing of the backlog was handed out while it waited");
}

#[test]
fn a_step_adds_to_the_priority_of_its_run() {
    let mut busy = Busy::new();
    let backlog = busy.world.submit_tagged(&fan("w", 5_000, ""), urgent(5));
    busy.seconds(10);
    let run = busy.world.submit_tagged(&fan("v", 8, ", priority: 10"), urgent(-4));
    busy.seconds(9);
    assert_eq!(busy.world.state(run), RunState::Succeeded);
    assert_ne!(busy.world.state(backlog), RunState::Succeeded);
}

#[test]
fn an_agent_is_told_the_priority_of_what_it_is_handed() {
    let mut world = World::with_sites(&["edge"]);
    let source = "workflow: w\npriority: 4\nsteps:\n  a: { run: x, priority: 99 }\n  b: { run: x }\n";
    world.submit_tagged(source, urgent(-7));
    world.submit(source);
    let priority = |command| match command {
        SiteCommand::Prepare(template) => Some(template.priority),
        _ => None,
    };
    let told: Vec<_> = world.commands("edge").into_iter().filter_map(priority).collect();
    assert_eq!(told, [92, -7, 100, 4]);
}

#[test]
fn what_is_passed_over_gets_its_turn_after_a_while() {
    let mut busy = Busy::new();
    let urgent_run = busy.world.submit_tagged(&fan("w", 9_000, ""), urgent(3));
    let run = busy.world.submit(&fan("v", 12, ""));
    busy.seconds(60);
    assert_eq!(busy.started(run), 0, "three times thirty seconds have not passed");
    busy.seconds(75);
    let first = busy.started(run);
    assert!(first > 0, "waiting has made up for the priority");
    busy.seconds(900);
    assert_eq!(busy.world.state(run), RunState::Succeeded);
    assert!(busy.started(urgent_run) > 2_000, "and the rest was for what is urgent");
}

#[test]
fn long_work_is_not_kept_out_by_short_work_nor_short_by_long() {
    let mut busy = Busy::new();
    let short = busy.world.submit(&fan("short", 3_000, ""));
    busy.seconds(20);
    let whole = busy.world.submit(&fan("whole", 20, ", resources: { cpu: 4 }"));
    let [short, whole] = busy.shares([short, whole], 60);
    assert!(short > 0 && whole > 0, "{short} and {whole}");
}

fn at_most(executions: u32) -> ProjectChange {
    ProjectChange { max_executions: Some(Some(executions)), ..ProjectChange::default() }
}

#[test]
fn a_project_has_no_more_executions_at_a_time_than_its_limit() {
    let mut busy = Busy::new();
    busy.set("rivers", at_most(3));
    let runs = [10, 10].map(|count| busy.world.submit_tagged(&fan("w", count, ""), of("rivers")));
    assert_eq!(busy.world.core.counters().executions_outstanding, 3);
    let why = busy.waits_for(runs[1]);
    assert_eq!(why, "the limit of project rivers: 3 executions at a time, and 3 are at sites");
    let free = busy.world.submit_tagged(&fan("w", 4, ""), of("seas"));
    busy.seconds(2);
    assert_eq!(busy.world.state(free), RunState::Succeeded, "the others are free of it");
    for _ in 0..8 {
        assert!(busy.world.core.counters().executions_outstanding <= 3);
        busy.second();
    }
    assert_eq!(runs.map(|run| busy.world.state(run)), [RunState::Succeeded; 2]);
}

#[test]
fn a_limit_that_is_lowered_holds_for_what_comes_and_one_that_is_lifted_lets_go() {
    let mut busy = Busy::new();
    let run = busy.world.submit_tagged(&fan("w", 100, ""), of("rivers"));
    let out = busy.world.core.counters().executions_outstanding;
    assert!(out > 4);
    busy.set("rivers", at_most(2));
    busy.second();
    assert_eq!(busy.world.core.counters().executions_outstanding, out - 4, "nothing follows");
    busy.seconds(10);
    assert_eq!(busy.world.core.counters().executions_outstanding, 2);
    busy.world.restart();
    busy.world.connect_with("edge", Vec::new());
    busy.set("rivers", ProjectChange { max_executions: Some(None), ..ProjectChange::default() });
    assert!(busy.world.core.counters().executions_outstanding > 4);
    assert_ne!(busy.world.state(run), RunState::Succeeded);
}

#[test]
fn a_project_has_no_more_runs_at_a_time_than_its_limit_and_they_begin_in_order() {
    let mut busy = Busy::new();
    busy.set("rivers", ProjectChange { max_runs: Some(Some(2)), ..ProjectChange::default() });
    let source = "workflow: w\nsteps:\n  a: { run: x }\n  b: { run: x }\n";
    let runs: Vec<_> = (0..4).map(|_| busy.world.submit_tagged(source, of("rivers"))).collect();
    let last = busy.world.submit_tagged(source, RunTags { priority: Some(1), ..of("rivers") });
    assert_eq!(busy.waits_for(runs[2]), "the limit of project rivers: 2 runs at a time, and 2 are under way");
    let states = |busy: &Busy| runs.iter().map(|run| busy.world.state(*run)).collect::<Vec<_>>();
    use RunState::{Running, Submitted, Succeeded};
    assert_eq!(states(&busy), [Running, Running, Submitted, Submitted]);
    busy.second();
    assert_eq!(states(&busy), [Succeeded, Succeeded, Running, Submitted], "with the urgent one");
    assert_eq!(busy.world.state(last), Running);
    busy.second();
    assert_eq!(states(&busy), [Succeeded, Succeeded, Succeeded, Running]);
    busy.second();
    assert_eq!(states(&busy)[3], Succeeded);
}

#[test]
fn authors_limit_their_workflows_and_steps() {
    let mut busy = Busy::new();
    let limited = format!("concurrency: {{ executions: 5, runs: 2 }}\n{}", fan("w", 10, ", max_parallel: 3"));
    let runs = [(); 3].map(|()| busy.world.submit(&limited));
    let out = |busy: &Busy, run| {
        let of_run = |state| busy.world.count(run, state);
        of_run(ExecutionState::Dispatched) + of_run(ExecutionState::Running)
    };
    assert_eq!(runs.map(|run| out(&busy, run)), [3, 2, 0]);
    assert_eq!(busy.waits_for(runs[0]), "the step's max_parallel: 3 at a time, and 3 are at sites");
    let why = busy.waits_for(runs[2]);
    assert!(why.starts_with("the limit of workflow w in project default: "), "{why}");
    let elsewhere = busy.world.submit_tagged(&limited, of("seas"));
    assert_eq!(out(&busy, elsewhere), 3, "another project has its own");
    busy.seconds(20);
    assert_eq!(runs.map(|run| busy.world.state(run)), [RunState::Succeeded; 3]);
}

#[test]
fn an_administrator_limits_a_workflow_of_a_project() {
    let mut busy = Busy::new();
    let of_w = ProjectChange { workflow: Some("w".to_owned()), ..at_most(1) };
    busy.set("default", of_w.clone());
    let [one, other] = ["w", "v"].map(|name| busy.world.submit(&fan(name, 3, "")));
    assert_eq!(busy.world.count(one, ExecutionState::Dispatched), 1);
    assert_eq!(busy.world.count(other, ExecutionState::Dispatched), 3);
    let view = busy.world.core.project("default").unwrap();
    assert_eq!((view.executions, view.executions_waiting, view.runs, view.runs_live), (4, 2, 2, 2));
    assert_eq!(view.workflows["w"].limits.executions, Some(1));
    busy.set("default", ProjectChange { max_executions: Some(None), ..of_w });
    assert_eq!(busy.world.count(one, ExecutionState::Dispatched), 3);
    let out_of_range = ProjectChange { share: Some(0), ..ProjectChange::default() };
    assert!(busy.world.ask(Request::SetProject { project: "w".to_owned(), change: out_of_range }).is_err());
}

#[test]
fn a_chain_under_a_limit_of_one_goes_on_step_by_step() {
    let mut busy = Busy::new();
    let source = "workflow: w\nconcurrency: { executions: 1 }\nsteps:\n  a: { run: x, outputs: { n: integer } }\n  b: { run: x, with: { n: \"${{ steps.a.outputs.n }}\" } }\n";
    let run = busy.world.submit(source);
    let a = busy.world.dispatched_one("edge");
    busy.world.succeed("edge", a, vec![atoll_model::value::Value::Integer(1)]);
    let b = busy.world.dispatched_one("edge");
    busy.world.succeed("edge", b, Vec::new());
    assert_eq!(busy.world.state(run), RunState::Succeeded);
}

/// The agent says that it takes no work, and why, or that it does.
fn say_closed(world: &mut World, closed: Option<&str>) {
    let (now, capacity) = (world.now, world.agents["edge"].capacity.clone());
    let closed = closed.map(str::to_owned);
    let heartbeat = Heartbeat { sent_at: now, wall_clock: now, capacity, closed, ..Heartbeat::default() };
    world.frame("edge", AgentBody::Heartbeat(heartbeat));
}

#[test]
fn b5_a_site_whose_agent_takes_nothing_more_is_handed_nothing_until_it_does_again() {
    let mut world = World::with_sites(&["edge"]);
    say_closed(&mut world, Some("its outbox is full"));
    let run = world.submit(&fan("w", 4, ""));
    assert_eq!(world.dispatched("edge"), []);
    assert_eq!(world.count(run, ExecutionState::Ready), 4);
    say_closed(&mut world, None);
    assert_eq!(world.dispatched("edge").len(), 4);
}

/// The agent says how long work waits for its batch system.
fn say_batch_wait(world: &mut World, site: &str, batch_wait: Option<Duration>) {
    let (now, capacity) = (world.now, world.agents[site].capacity.clone());
    let heartbeat = Heartbeat { sent_at: now, wall_clock: now, capacity, batch_wait, ..Heartbeat::default() };
    world.frame(site, AgentBody::Heartbeat(heartbeat));
}

#[test]
fn what_an_attempt_waits_for_at_a_batch_system_is_told_until_it_has_begun() {
    let mut world = World::with_sites(&["hpc"]);
    let run = world.submit(&fan("w", 2, ""));
    let sent = world.dispatched("hpc");
    let [first, second] = [0, 1].map(|element| ExecutionId { run, step: StepIndex(0), element });
    let waits = |world: &World, execution| world.core.execution(execution).expect("it is known").waiting_for;
    assert_eq!(waits(&world, first), None);
    let why = "Slurm: job 12 is PENDING (Resources) in partition main";
    let told = |attempt| WaitingJob { execution: first, attempt, why: why.to_owned() };
    let (now, capacity) = (world.now, world.agents["hpc"].capacity.clone());
    let heartbeat = Heartbeat { sent_at: now, wall_clock: now, capacity, ..Heartbeat::default() };
    let later = Heartbeat { waiting: vec![told(Attempt(7))], ..heartbeat.clone() };
    world.frame("hpc", AgentBody::Heartbeat(later));
    assert_eq!(waits(&world, first), None, "it is of another attempt");
    world.frame("hpc", AgentBody::Heartbeat(Heartbeat { waiting: vec![told(Attempt::FIRST)], ..heartbeat }));
    assert_eq!((waits(&world, first).as_deref(), waits(&world, second)), (Some(why), None));
    let begun = sent.into_iter().find(|sent| sent.0 == first).expect("it was given out");
    world.start("hpc", begun);
    assert_eq!(waits(&world, first), None);
}

#[test]
fn work_goes_where_a_batch_system_lets_it_begin_sooner() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    say_batch_wait(&mut world, "hpc", Some(Duration::from_secs(600)));
    let run = world.submit(&fan("w", 4, ""));
    assert_eq!((world.dispatched("edge").len(), world.dispatched("hpc").len()), (4, 0));
    let asked = ExecutionId { run, step: StepIndex(0), element: 0 };
    let why = world.core.why_execution(asked).expect("it was placed");
    let hpc = why.sites.iter().find(|verdict| verdict.site.as_str() == "hpc").expect("it was looked at");
    assert_eq!(hpc.terms["batch_wait_seconds"], 600.0, "{hpc:?}");
    assert!(hpc.reason.contains("later than the best"), "{}", hpc.reason);
    say_batch_wait(&mut world, "edge", Some(Duration::from_secs(600)));
    say_batch_wait(&mut world, "hpc", None);
    world.submit(&fan("v", 4, ""));
    assert_eq!((world.dispatched("edge").len(), world.dispatched("hpc").len()), (0, 4));
}

#[test]
fn b5_an_agent_that_reports_nothing_is_handed_no_more_than_what_is_dispatched_ahead() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(&fan("w", 100_000, ""));
    let out = world.core.counters().executions_outstanding;
    assert!(out > 0 && out <= u64::from(DISPATCH_AHEAD) + 4, "{out}");
    for _ in 0..200 {
        world.advance(5 * SECOND);
        world.heartbeat("edge");
        world.commands("edge");
    }
    world.submit(&fan("v", 1_000, ""));
    assert_eq!(world.core.counters().executions_outstanding, out);
}
