//! Which event or decision of the agent met which state.

use atoll_model::id::ObjectId;
use atoll_model::session::ControlBody;

use crate::agent::{Agent, execution};
use crate::event::Event;
use crate::fact::Fact;
use crate::state::AttemptKey;

impl Agent {
    /// Before an event is handled.
    pub(crate) fn probe_event(&self, event: &Event) {
        match event {
            Event::Connected { .. } => self.session_meets("connected"),
            Event::Disconnected => self.session_meets("disconnected"),
            Event::FrameReceived { frame } => self.session_meets(match &frame.body {
                ControlBody::Welcome(_) => "welcome",
                ControlBody::Verdicts(_) => "verdicts",
                ControlBody::Commands { .. } => "commands",
                ControlBody::Ready => "ready",
                ControlBody::Acknowledge => "acknowledge",
                ControlBody::Goodbye(_) => "goodbye",
            }),
            Event::Located { object, present: true } => self.fetch_meets(object.id, "located: there"),
            Event::Located { object, present: false } => self.fetch_meets(object.id, "located: not there"),
            Event::Fetched { object, .. } => self.fetch_meets(object.id, "fetched"),
            Event::FetchFailed { object, .. } => self.fetch_meets(object.id, "fetch failed"),
            Event::Started { execution, attempt, .. } => self.attempt_meets((*execution, *attempt), "started"),
            Event::NotStarted { execution, attempt, .. } => self.attempt_meets((*execution, *attempt), "not started"),
            Event::Exited { execution, attempt, .. } => self.attempt_meets((*execution, *attempt), "exited"),
            Event::OutputsSealed { execution, attempt, .. } => self.attempt_meets((*execution, *attempt), "sealed"),
            Event::OutputsStored { execution, attempt, result } => {
                let event = if result.is_ok() { "stored" } else { "could not be stored" };
                self.attempt_meets((*execution, *attempt), event);
            }
            Event::NullFinished { run, step, attempt, elements, .. } => {
                for element in elements.iter() {
                    self.attempt_meets((execution((*run, *step), element), *attempt), "nothing is done");
                }
            }
            Event::Pushed { transfer, .. } => self.push_meets(transfer, "pushed"),
            Event::PushFailed { transfer, .. } => self.push_meets(transfer, "push failed"),
            Event::EvictableFound { .. } | Event::Evicted { .. } | Event::Verified { .. } => {}
            Event::Damaged { .. } | Event::Measured { .. } | Event::NodesChanged { .. } => {}
            Event::TimeoutElapsed | Event::PilotsBarred { .. } => {}
        }
    }

    fn session_meets(&self, event: &'static str) {
        planted::seen("agent's session", self.session.probe_state(), event);
    }

    fn fetch_meets(&self, object: ObjectId, event: &'static str) {
        planted::seen("agent's fetch", self.stage.probe_state(object), event);
    }

    fn push_meets(&self, transfer: &atoll_model::id::TransferId, event: &'static str) {
        let state = match self.state.pushes.get(transfer) {
            None => "none",
            Some(push) if push.cancelled => "cancelled",
            Some(_) => "ordered",
        };
        planted::seen("agent's push", state, event);
    }

    fn attempt_meets(&self, key: AttemptKey, event: &'static str) {
        planted::seen("agent's attempt", self.attempt_state(key), event);
    }

    fn attempt_state(&self, key: AttemptKey) -> &'static str {
        let (execution, attempt) = key;
        if let Some(active) = self.state.active.get(&key) {
            let launched = self.launches.get(&key).map_or("being found", |launch| launch.probe_state());
            return match launched {
                _ if active.forgotten => "forgotten and active",
                _ if active.terms.is_none() => "orphaned",
                launched => launched,
            };
        }
        let step = (execution.run, execution.step);
        for (order, item) in self.state.steps.get(&step).into_iter().flat_map(|step| &step.items) {
            if item.attempt == attempt && item.elements.contains(execution.element) {
                let place = (*order, step);
                return match () {
                    () if item.ending.is_some() => "queued to end",
                    () if self.asked.contains(&(step, *order)) => "asked for",
                    () if self.ready.contains(place) => "ready",
                    () if self.waiting.contains(place) => "waiting",
                    () => "queued just now",
                };
            }
        }
        let ended = self.state.steps.get(&step).and_then(|step| step.ended.get(&attempt));
        if ended.is_some_and(|ended| ended.contains(execution.element)) { "ended" } else { "not known" }
    }

    /// Before a decision changes the state.
    pub(crate) fn probe_fact(&self, fact: &Fact) {
        match fact {
            Fact::OrphansFound { attempts } => {
                attempts.iter().for_each(|key| self.attempt_meets(*key, "found by a new journal"))
            }
            Fact::StartsWithdrawn { starts } => {
                starts.iter().for_each(|key| self.attempt_meets(*key, "start withdrawn"))
            }
            Fact::VerdictsAccepted { cancel, forget } => {
                cancel.iter().for_each(|key| self.attempt_meets(*key, "verdict: cancel"));
                forget.iter().for_each(|key| self.attempt_meets(*key, "verdict: forget"));
            }
            Fact::StartsIntended { run, step, starts } => {
                for (order, elements) in starts {
                    let Some(item) = self.state.item((*run, *step), *order) else { continue };
                    let attempt = item.attempt;
                    elements.iter().for_each(|element| {
                        self.attempt_meets((execution((*run, *step), element), attempt), "start intended")
                    });
                }
            }
            Fact::Ended { run, step, item, elements, .. } => {
                let Some(attempt) = self.state.item((*run, *step), *item).map(|item| item.attempt) else { return };
                elements.iter().for_each(|element| {
                    self.attempt_meets((execution((*run, *step), element), attempt), "ends unstarted")
                });
            }
            Fact::Finished { run, step, element } => {
                self.attempt_meets((execution((*run, *step), element.element), element.attempt), "finishes");
            }
            Fact::Retried { run, step, element, .. } => {
                self.attempt_meets(
                    (execution((*run, *step), element.element), element.attempt),
                    "fails, and is tried again",
                );
            }
            Fact::Dropped { attempts } => attempts.iter().for_each(|key| self.attempt_meets(*key, "dropped")),
            Fact::CommandsAccepted { commands, .. } => commands.iter().for_each(|command| self.probe_command(command)),
            _ => {}
        }
    }

    fn probe_command(&self, command: &atoll_model::session::SiteCommand) {
        use atoll_model::session::{DispatchElements, SiteCommand};
        match command {
            SiteCommand::Dispatch(dispatch) => {
                let elements = match &dispatch.elements {
                    DispatchElements::Plain(elements) => elements.clone(),
                    DispatchElements::Bound(bound) => bound.iter().map(|(element, _)| *element).collect(),
                };
                for element in elements.iter() {
                    let key = (execution((dispatch.run, dispatch.step), element), dispatch.attempt);
                    self.attempt_meets(key, "dispatched");
                }
            }
            SiteCommand::Cancel { run, step, elements, .. } => {
                for element in elements.iter() {
                    let of = execution((*run, *step), element);
                    let seen = self.state.steps.get(&(*run, *step)).map(|step| &step.seen);
                    let attempts = seen.into_iter().flatten().filter(|(_, known)| known.contains(element));
                    attempts.for_each(|(attempt, _)| self.attempt_meets((of, *attempt), "cancelled"));
                }
            }
            SiteCommand::Push { transfer, .. } => self.push_meets(transfer, "push ordered"),
            SiteCommand::CancelPush { transfer } => self.push_meets(transfer, "push cancelled"),
            SiteCommand::Withdraw { run, step, .. } => {
                let seen = self.state.steps.get(&(*run, *step)).map(|step| &step.seen);
                for (attempt, element) in seen.into_iter().flatten().flat_map(|(a, e)| e.iter().map(|e| (*a, e))) {
                    self.attempt_meets((execution((*run, *step), element), attempt), "step withdrawn");
                }
            }
            SiteCommand::Prepare(_)
            | SiteCommand::Forget { .. }
            | SiteCommand::Delegate(_)
            | SiteCommand::Evict { .. }
            | SiteCommand::ProposeEviction { .. }
            | SiteCommand::Replicate { .. }
            | SiteCommand::MakeReady(_)
            | SiteCommand::Verify { .. }
            | SiteCommand::Unknown { .. } => {}
        }
    }
}
