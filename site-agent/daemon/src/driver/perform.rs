//! Carries out what the core asks for, once it is durable.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{AgentId, TransferId};
use atoll_model::policy::BUCKET;
use atoll_model::session::{DirectShare, PushFailure};
use atoll_model::value::ObjectRef;
use site_agent_core::{Command, Event};
use storage_sync_engine::store::SiteStore;
use storage_sync_engine::transfer::{CredentialError, FetchError, PushError, Transfers};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Inbox;
use crate::clock::wall_clock;
use crate::executor::batch::Pilots;
use crate::executor::local::{Executor, Order, key};
use crate::link::LinkHandle;
use crate::telemetry::Meters;
use crate::withheld::Withheld;

pub(crate) struct Performer {
    pub(crate) inbox: Inbox,
    pub(crate) link: LinkHandle,
    pub(crate) executor: Executor,
    pub(crate) store: SiteStore,
    /// What was used within this time is not proposed to be let go.
    pub(crate) evict_idle: Duration,
    pub(crate) transfers: Transfers,
    pub(crate) runtime: Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) running: Running,
    pub(crate) meters: Arc<Meters>,
    pub(crate) withheld: Withheld,
    pub(crate) pilots: Option<Pilots>,
}

/// Fetches and pushes on their way, so that they can be cancelled.
#[derive(Default)]
pub(crate) struct Running {
    fetches: HashMap<ObjectRef, CancellationToken>,
    pushes: HashMap<TransferId, CancellationToken>,
    ordered: bool,
    /// What is meant for the link, until the executor was rung.
    for_link: Vec<Command>,
}

impl Performer {
    pub(super) fn perform(&mut self, commands: Vec<Command>) {
        for command in commands {
            if matches!(command, Command::Send { .. } | Command::Disconnect { .. }) {
                self.running.for_link.push(command);
            } else {
                self.perform_one(command);
            }
        }
    }

    /// Makes the executor look at what it was handed, and hands over what is for the link. In this order: a chain waits for
    /// the process that the one starts, and for nothing of what the other does with the same core meanwhile.
    pub(super) fn flush(&mut self) {
        if std::mem::take(&mut self.running.ordered) {
            self.executor.ring();
        }
        for command in std::mem::take(&mut self.running.for_link) {
            self.perform_one(command);
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        self.executor.order(order);
        self.running.ordered = true;
    }

    fn perform_one(&mut self, command: Command) {
        match command {
            Command::Send { frame } => self.link.send(frame),
            Command::Disconnect { give_up } => self.link.disconnect(give_up),
            Command::Locate { object } => self.order(Order::Locate(object)),
            Command::Fetch { object, intent } => self.fetch(object, intent),
            Command::ForgetArrival { object, intent } => self.forget_arrival(object, intent),
            Command::CancelFetch { object } => {
                if let Some(token) = self.running.fetches.get(&object) {
                    token.cancel();
                }
            }
            Command::Push { transfer, object } => self.push(transfer, object),
            Command::CancelPush { transfer } => {
                if let Some(token) = self.running.pushes.get(&transfer) {
                    token.cancel();
                }
            }
            Command::Start { execution, attempt, template, inputs, node, ahead } => {
                self.order(Order::Start { key: key(execution, attempt), template, inputs, node, ahead });
            }
            Command::WantPilots { count } => {
                if let Some(pilots) = &self.pilots {
                    pilots.want(count);
                }
            }
            Command::StartNull { .. } => unreachable!("the core's thread answers it by itself"),
            Command::Kill { execution, attempt } => self.order(Order::Kill(key(execution, attempt))),
            Command::Collect { execution, attempt, template, outputs } => {
                self.order(Order::Collect { key: key(execution, attempt), template, outputs });
            }
            Command::Release { execution, attempt } => self.order(Order::Release(key(execution, attempt))),
            Command::FindEvictable { bytes, objects, actions } => self.find_evictable(bytes, objects, actions),
            Command::Evict { order, objects } => self.evict(order, objects),
            Command::Verify { order, objects } => self.verify(order, objects),
            Command::DropSealed { seals } => self.order(Order::DropSealed(seals)),
            Command::MakeReady { template } => self.order(Order::MakeReady(template)),
        }
    }

    fn spawn(&self, transfer: impl Future<Output = Event> + Send + 'static) {
        let inbox = self.inbox.clone();
        self.tasks.spawn_on(async move { inbox.tell(vec![transfer.await]) }, &self.runtime);
    }

    fn fetch(&mut self, object: ObjectRef, intent: u64) {
        let token = CancellationToken::new();
        self.running.fetches.retain(|_, token| !token.is_cancelled());
        self.running.fetches.insert(object, token.clone());
        let (transfers, meters) = (self.transfers.clone(), Arc::clone(&self.meters));
        self.spawn(async move {
            let fetched = token.run_until_cancelled(transfers.fetch_noted(object, intent)).await;
            token.cancel();
            match fetched {
                Some(Ok(fetched)) => {
                    meters.fetched_bytes.inc_by(fetched.wire_bytes);
                    meters.taken_bytes.inc_by(fetched.direct.map_or(0, |(_, bytes)| bytes));
                    let (wire_bytes, direct) = (fetched.wire_bytes, direct_share(fetched.direct));
                    Event::Fetched { object, wire_bytes, direct, at: wall_clock() }
                }
                Some(Err(error)) => {
                    meters.transfers_failed.inc();
                    let corrupt = matches!(error, FetchError::Corrupt { .. });
                    let permanent = matches!(error, FetchError::Credentials(CredentialError::Refused(_)));
                    Event::FetchFailed { object, message: error.to_string(), corrupt, permanent }
                }
                // It may have come to its end all the same.
                None => match transfers.arrival(object, intent) {
                    Ok(Some(noted)) => {
                        let (wire_bytes, direct) = (noted.wire_bytes, direct_share(noted.direct));
                        Event::Fetched { object, wire_bytes, direct, at: wall_clock() }
                    }
                    Ok(None) | Err(_) => {
                        Event::FetchFailed { object, message: "cancelled".to_owned(), corrupt: false, permanent: false }
                    }
                },
            }
        });
    }

    fn forget_arrival(&self, object: ObjectRef, intent: u64) {
        if let Err(error) = self.transfers.forget_arrival(object, intent) {
            tracing::warn!(object = %object.id, error = &error as &dyn std::error::Error, "the note of an arrival stays behind");
        }
    }

    fn push(&mut self, transfer: TransferId, object: ObjectRef) {
        // Files of a tree that stays are known here only.
        if let Some(message) = self.withheld.object_to(object.id, BUCKET) {
            let reason = PushFailure::Forbidden;
            self.inbox.tell(vec![Event::PushFailed { transfer, object, reason, message }]);
            return;
        }
        let token = CancellationToken::new();
        self.running.pushes.retain(|_, token| !token.is_cancelled());
        self.running.pushes.insert(transfer, token.clone());
        let (transfers, meters) = (self.transfers.clone(), Arc::clone(&self.meters));
        let inbox = self.inbox.clone();
        self.spawn(async move {
            let pushed = token.run_until_cancelled(transfers.push(transfer, object)).await;
            token.cancel();
            let (reason, message) = match pushed {
                Some(Ok(pushed)) => {
                    meters.pushed_bytes.inc_by(pushed.wire_bytes);
                    return Event::Pushed { transfer, object, wire_bytes: pushed.wire_bytes, at: wall_clock() };
                }
                Some(Err(error)) => {
                    meters.transfers_failed.inc();
                    if let PushError::Damaged { object, message } = &error {
                        inbox.tell(vec![Event::Damaged {
                            object: object.id,
                            kind: object.kind,
                            message: message.clone(),
                        }]);
                    }
                    (push_failure(&error), error.to_string())
                }
                None => (PushFailure::Cancelled, "cancelled".to_owned()),
            };
            if let Err(error) = transfers.forget_push(transfer) {
                tracing::warn!(%transfer, %error, "an unfinished push could not be cleared up");
            }
            Event::PushFailed { transfer, object, reason, message }
        });
    }
}

/// What of a fetch came from another site.
pub(crate) fn direct_share(direct: Option<(AgentId, u64)>) -> Option<DirectShare> {
    direct.map(|(holder, wire_bytes)| DirectShare { holder, wire_bytes })
}

fn push_failure(error: &PushError) -> PushFailure {
    match error {
        PushError::Missing(_) | PushError::Damaged { .. } => PushFailure::Unavailable,
        PushError::Credentials(_) | PushError::Unreachable { .. } | PushError::Store(_) => PushFailure::Refused,
    }
}
