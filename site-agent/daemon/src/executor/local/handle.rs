//! The way to the executor, and what it is asked for.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, ObjectId};
use atoll_model::session::StepTemplate;
use atoll_model::value::ObjectRef;
use site_agent_core::command::StartInput;
use site_agent_core::event::{NodeId, Seal};
use storage_sync_engine::store::Stored;

use super::actions::ReadyAction;
use super::preparing::Staged;
use super::staging;
use crate::nodes::Tidings;
use crate::shim::protocol::{Key, Notice, Taken};

/// What the executor is asked for, by the core or by its own helpers.
pub(crate) enum Order {
    Start {
        key: Key,
        template: Arc<StepTemplate>,
        inputs: Vec<StartInput>,
        node: NodeId,
        ahead: Option<u32>,
    },
    Kill(Key),
    Collect {
        key: Key,
        template: Arc<StepTemplate>,
        outputs: bool,
    },
    Release(Key),
    Locate(ObjectRef),
    /// An execution of the step is certain to come.
    MakeReady(Arc<StepTemplate>),
    LetActionsGo(LetActionsGo),
    DropSealed(Vec<Seal>),
    /// The action of a step is ready, and processes of it are to wait.
    WarmUp(Arc<StepTemplate>, ReadyAction),
    Staged(Key, Staged),
    Imported(Key, Result<Stored, staging::StagingFailure>),
    Exported(Key, Result<(), staging::StagingFailure>),
    /// A slot whose shim had died is empty again.
    Cleared {
        slot: u32,
        ended: Vec<(Key, crate::shim::protocol::End)>,
    },
    /// What has happened to attempts that are jobs.
    OfJobs(Vec<Notice>),
    /// What the control plane says of what an attempt has emitted.
    Taken(Key, Taken),
    /// What is heard of other machines of the site.
    OfNodes(Tidings),
    Quit,
}

/// The folders of actions that are not among these, and were not used for so long, may go; then something else is done.
pub(crate) struct LetActionsGo {
    pub needed: BTreeSet<ObjectId>,
    pub idle: Duration,
    /// Whether what is made of them beside the store is to go as well, for room on the disk.
    pub for_room: bool,
    pub then: Box<dyn FnOnce() + Send>,
}

pub(crate) fn key(execution: ExecutionId, attempt: Attempt) -> Key {
    Key { execution, attempt }
}

/// The way to the executor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(super) orders: Sender<Order>,
    pub(super) bell: Arc<OwnedFd>,
    pub(super) has_python: bool,
    pub(super) has_containers: bool,
    pub(super) has_components: bool,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Executor").finish_non_exhaustive()
    }
}

impl Executor {
    /// Hands an order over; [`Executor::ring`] makes the executor look.
    pub(crate) fn order(&self, order: Order) {
        // An executor that has ended does nothing more.
        let _ = self.orders.send(order);
    }

    /// Whether actions in Python can run here.
    pub(crate) fn has_python(&self) -> bool {
        self.has_python
    }

    /// Whether containers can run here.
    pub(crate) fn has_containers(&self) -> bool {
        self.has_containers
    }

    /// Whether components of WebAssembly can run here.
    pub(crate) fn has_components(&self) -> bool {
        self.has_components
    }

    pub(crate) fn ring(&self) {
        // A counter that is full rings as well.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }
}
