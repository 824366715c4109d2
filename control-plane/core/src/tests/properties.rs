//! Whatever happens in whatever order: the invariants hold, and what is recovered is what there was.

use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, JournalId};
use atoll_model::session::{LocalState, NotStartedReason, Outcome, Report};
use proptest::prelude::*;

use crate::ProjectChange;
use crate::view::RunTags;

use super::world::{World, failed, file, interrupted, item, not_started};

const SITES: [&str; 3] = ["edge", "hpc", "lab"];
const SOURCES: [&str; 6] = [
    "workflow: w\nsteps:\n  a: { run: x, outputs: { f: file }, retry: { attempts: 2, backoff: 1s } }\n  b: { run: x, with: { f: \"${{ steps.a.outputs.f }}\" }, outputs: { f: file } }\n  c: { run: x, site: hpc, with: { f: \"${{ steps.b.outputs.f }}\" } }\n",
    "workflow: w\nsteps:\n  a: { run: x, foreach: \"${{ range(5) }}\", outputs: { f: file } }\n  b: { run: x, foreach: \"${{ steps.a.outputs.f }}\", with: { f: \"${{ item }}\" }, retry: { attempts: 3, backoff: 1s, other_site: true } }\n",
    "workflow: w\nsteps:\n  a: { run: x, start: at-most-once }\n  b: { run: x, after: [a], when: \"${{ 1 < 2 }}\" }\n",
    "workflow: w\nsteps:\n  a: { run: x, site: edge, outputs: { f: file } }\n  b: { run: x, site: hpc, with: { f: \"${{ steps.a.outputs.f }}\" }, outputs: { f: file } }\n  c: { run: x, site: edge, with: { f: \"${{ steps.b.outputs.f }}\" } }\nplacement:\n  - match: { step: b }\n    push: eager\n",
    "workflow: u\npriority: 3\nconcurrency: { executions: 2 }\nsteps:\n  a: { run: x, foreach: \"${{ range(4) }}\", outputs: { f: file } }\n  b: { run: x, priority: -5, foreach: \"${{ steps.a.outputs.f }}\", with: { f: \"${{ item }}\" } }\n",
    "workflow: v\nconcurrency: { runs: 1 }\nsteps:\n  a: { run: x, max_parallel: 2, foreach: \"${{ range(5) }}\", outputs: { f: file }, retry: { attempts: 2, backoff: 1s } }\n  b: { run: x }\n",
];

#[derive(Debug, Clone)]
enum Action {
    Submit(usize, i8),
    Limit { runs: Option<u32>, executions: Option<u32> },
    Cancel(usize),
    Connect { site: usize, keep: u8, new_journal: bool },
    Disconnect(usize),
    Start { site: usize, which: usize },
    End { site: usize, which: usize, how: u8 },
    Push { site: usize, fails: bool },
    Delete,
    Advance { seconds: u64, heard: u8 },
    Drain { site: usize, drained: bool },
    Resolve { run_again: bool },
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..SOURCES.len(), -2..2i8).prop_map(|(source, priority)| Action::Submit(source, priority)),
        1 => (prop::option::of(1..4u32), prop::option::of(1..6u32))
            .prop_map(|(runs, executions)| Action::Limit { runs, executions }),
        1 => (0..4usize).prop_map(Action::Cancel),
        3 => (0..3usize, any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|(site, keep, new_journal)| Action::Connect { site, keep, new_journal }),
        2 => (0..3usize).prop_map(Action::Disconnect),
        8 => (0..3usize, any::<usize>()).prop_map(|(site, which)| Action::Start { site, which }),
        16 => (0..3usize, any::<usize>(), any::<u8>()).prop_map(|(site, which, how)| Action::End { site, which, how }),
        6 => (0..3usize, prop::bool::weighted(0.2)).prop_map(|(site, fails)| Action::Push { site, fails }),
        2 => Just(Action::Delete),
        4 => (prop_oneof![Just(1u64), Just(30), Just(200), Just(1_000)], any::<u8>())
            .prop_map(|(seconds, heard)| Action::Advance { seconds, heard }),
        1 => (0..3usize, any::<bool>()).prop_map(|(site, drained)| Action::Drain { site, drained }),
        1 => any::<bool>().prop_map(|run_again| Action::Resolve { run_again }),
        1 => Just(Action::Restart),
    ]
}

/// What each agent has: its executions, and the pushes it was asked for.
#[derive(Default)]
struct Held {
    executions: Vec<((ExecutionId, Attempt), bool)>,
    pushes: Vec<(atoll_model::id::TransferId, atoll_model::value::ObjectRef)>,
}

struct Play {
    world: World,
    held: [Held; 3],
    runs: Vec<atoll_model::id::RunId>,
}

impl Play {
    fn new() -> Self {
        let mut world = World::with(|config| config.dispatch_ahead = 2);
        SITES.iter().for_each(|site| world.add_site(site));
        Self { world, held: Default::default(), runs: Vec::new() }
    }

    fn is_connected(&self, site: usize) -> bool {
        use crate::view::SiteState;
        let state = self.world.core.site(&SITES[site].parse().unwrap()).unwrap().state;
        matches!(state, SiteState::Ready | SiteState::Draining | SiteState::Suspect | SiteState::Syncing)
            && self.world.agents[SITES[site]].is_ready
    }

    fn collect(&mut self) {
        for (held, site) in self.held.iter_mut().zip(SITES) {
            for command in self.world.commands(site) {
                for execution in super::world::executions_of(&command) {
                    if !held.executions.iter().any(|(known, _)| *known == execution) {
                        held.executions.push((execution, false));
                    }
                }
                if let atoll_model::session::SiteCommand::Push { transfer, object } = command {
                    held.pushes.push((transfer, object));
                }
            }
        }
    }

    fn carry_out(&mut self, action: &Action) {
        let world = &mut self.world;
        match action {
            Action::Submit(source, priority) => {
                let tags = RunTags { priority: (*priority != 0).then_some(*priority), ..RunTags::default() };
                self.runs.push(world.submit_tagged(SOURCES[*source], tags));
            }
            Action::Limit { runs, executions } => {
                let change = ProjectChange {
                    max_executions: Some(*executions),
                    max_runs: Some(*runs),
                    ..ProjectChange::default()
                };
                world.ask(crate::Request::SetProject { project: RunTags::PROJECT.to_owned(), change }).unwrap();
            }
            Action::Cancel(which) => {
                if let Some(run) = self.runs.get(*which).copied() {
                    let _ = world.ask(crate::Request::CancelRun { run, reason: String::new() });
                }
            }
            Action::Connect { site, keep, new_journal } => self.connect(*site, *keep, *new_journal),
            Action::Disconnect(site) => {
                world.disconnect(SITES[*site]);
                world.agents.get_mut(SITES[*site]).unwrap().is_ready = false;
            }
            Action::Start { site, which } => {
                let held = &mut self.held[*site].executions;
                let count = held.len();
                if count > 0 && self.is_connected(*site) {
                    let (execution, started) = &mut self.held[*site].executions[which % count];
                    *started = true;
                    self.world.start(SITES[*site], *execution);
                }
            }
            Action::End { site, which, how } => self.end(*site, *which, *how),
            Action::Push { site, fails } => self.push(*site, *fails),
            Action::Delete => {
                world.carry_out_deletes();
            }
            Action::Advance { seconds, heard } => self.advance(*seconds, *heard),
            Action::Drain { site, drained } => {
                let site = SITES[*site].parse().unwrap();
                world.ask(crate::Request::DrainSite { site, drained: *drained }).unwrap();
            }
            Action::Resolve { run_again } => {
                let unknown =
                    self.runs.iter().flat_map(|run| world.core.executions(*run, &Default::default()).unwrap());
                let unknown = unknown.into_iter().find(|view| view.state == crate::view::ExecutionState::Unknown);
                if let Some(view) = unknown {
                    let request = crate::Request::ResolveUnknown { execution: view.execution, run_again: *run_again };
                    let _ = world.ask(request);
                }
            }
            Action::Restart => {
                world.restart();
                world.agents.values_mut().for_each(|agent| agent.is_ready = false);
            }
        }
        self.collect();
    }

    fn connect(&mut self, site: usize, keep: u8, new_journal: bool) {
        let name = SITES[site];
        // What has arrived before the stream ended is in the agent's journal.
        self.world.receive(name);
        let agent = self.world.agents.get_mut(name).unwrap();
        if new_journal {
            agent.journal = JournalId::from_bits(u128::from(keep) + agent.journal.bits() + 1);
            agent.last_command.0 = 0;
            agent.last_report.0 = 0;
            agent.acknowledged_report.0 = 0;
            agent.commands.clear();
            // Shims still have some of it.
            let mut place = 0;
            self.held[site].executions.retain(|_| {
                place += 1;
                keep & (1 << (place % 8)) != 0
            });
            self.held[site].pushes.clear();
        }
        self.collect_commands_of(site);
        let state = |started: bool| if started { LocalState::Running } else { LocalState::Accepted };
        let inventory: Vec<_> =
            self.held[site].executions.iter().map(|(execution, started)| item(*execution, state(*started))).collect();
        self.world.connect_with(name, inventory);
        let verdicts = self.world.agents[name].verdicts.clone();
        let mut verdicts = verdicts.into_iter();
        self.held[site].executions.retain(|_| verdicts.next() != Some(atoll_model::session::Verdict::Forget));
    }

    fn collect_commands_of(&mut self, site: usize) {
        let commands: Vec<_> = self.world.agents.get_mut(SITES[site]).unwrap().commands.drain(..).collect();
        for command in &commands {
            for execution in super::world::executions_of(command) {
                if !self.held[site].executions.iter().any(|(known, _)| *known == execution) {
                    self.held[site].executions.push((execution, false));
                }
            }
            if let atoll_model::session::SiteCommand::Push { transfer, object } = command {
                self.held[site].pushes.push((*transfer, *object));
            }
        }
    }

    fn end(&mut self, site: usize, which: usize, how: u8) {
        let count = self.held[site].executions.len();
        if count == 0 || !self.is_connected(site) {
            return;
        }
        let (execution, _) = self.held[site].executions.remove(which % count);
        let run = self.world.core.workflow(execution.0.run);
        let outputs = run.map_or(0, |(workflow, _)| workflow.step(execution.0.step).outputs.len());
        let number = u8::try_from(execution.0.step.0 * 16).unwrap() + u8::try_from(execution.0.element).unwrap();
        let (outcome, outputs) = match how % 10 {
            0 => (failed("no"), 0),
            1 => (interrupted(), 0),
            2 => (not_started(NotStartedReason::Expired), 0),
            3 => (Outcome::Cancelled, 0),
            _ => (Outcome::Succeeded, outputs),
        };
        let outputs = (0..outputs).map(|_| file(number, 1 << 20)).collect();
        self.world.end(SITES[site], execution, outcome, outputs);
    }

    fn push(&mut self, site: usize, fails: bool) {
        if !self.is_connected(site) {
            return;
        }
        let Some((transfer, object)) = self.held[site].pushes.pop() else { return };
        let at = self.world.now;
        let report = if fails {
            let reason = atoll_model::session::PushFailure::Unavailable;
            Report::PushFailed { transfer, object, reason, message: "gone".to_owned() }
        } else {
            Report::Pushed { transfer, object, wire_bytes: object.bytes, at }
        };
        self.world.report(SITES[site], vec![report]);
    }

    fn advance(&mut self, seconds: u64, heard: u8) {
        let mut left = seconds;
        while left > 0 {
            let now = left.min(15);
            self.world.advance(Duration::from_secs(now));
            for (bit, site) in SITES.iter().enumerate() {
                if heard & (1 << bit) != 0 && self.is_connected(bit) {
                    self.world.heartbeat(site);
                }
            }
            left -= now;
        }
    }

    /// Once nothing goes wrong any more, every run ends (or asks).
    fn finish(&mut self) {
        for round in 0..200 {
            for (site, name) in SITES.iter().enumerate() {
                let name = name.parse().unwrap();
                self.world.ask(crate::Request::DrainSite { site: name, drained: false }).unwrap();
                if !self.is_connected(site) {
                    self.connect(site, 0, false);
                }
                self.collect();
                while !self.held[site].pushes.is_empty() {
                    self.push(site, false);
                }
                while !self.held[site].executions.is_empty() && self.is_connected(site) {
                    self.end(site, 0, 9);
                    self.collect();
                }
            }
            // A run that waits for somebody holds others back where runs are limited.
            self.carry_out(&Action::Resolve { run_again: false });
            self.world.carry_out_deletes();
            self.advance(300, 7);
            self.collect();
            let over = |run: &atoll_model::id::RunId| {
                let view = self.world.core.run(*run).unwrap();
                view.finished_at.is_some() || view.counts.contains_key(&crate::view::ExecutionState::Unknown)
            };
            if self.runs.iter().all(over) {
                return;
            }
            assert!(
                round < 199,
                "runs do not end: {:#?}",
                self.runs.iter().map(|run| self.describe(*run)).collect::<Vec<_>>()
            );
        }
    }

    fn describe(&self, run: atoll_model::id::RunId) -> String {
        let views = self.world.core.executions(run, &Default::default()).unwrap();
        let view = |view: &crate::view::ExecutionView| {
            format!("{} {} {:?} at {:?}: {:?}", view.execution, view.attempt, view.state, view.site, view.waiting_for)
        };
        let lines: Vec<_> = views.iter().map(view).collect();
        format!("{:?}\n{}", self.world.core.run(run).unwrap().state, lines.join("\n"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn recovered_state_equals_live_state_and_every_run_ends_once_faults_stop(
        actions in prop::collection::vec(action(), 1..60)
    ) {
        let mut play = Play::new();
        for action in &actions {
            play.carry_out(action);
        }
        play.world.compare_recovery = false;
        play.finish();
        let recovered = play.world.recovered();
        prop_assert_eq!(recovered.snapshot(), play.world.core.snapshot());
        if play.runs.iter().all(|run| play.world.core.run(*run).unwrap().finished_at.is_some()) {
            play.world.carry_out_deletes();
            prop_assert_eq!(play.world.objects_in_bucket(), 0, "nothing is left in the bucket");
        }
    }
}
