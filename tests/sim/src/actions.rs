//! Actions that somebody pushes, for runs to use, and removes when nobody needs them any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::action::ActionKind;
use atoll_model::id::ObjectId;
use atoll_model::placement::Labels;
use atoll_model::time::Timestamp;
use control_plane_core::view::RunTags;
use control_plane_core::{ActionName, ActionVersion, Rejection, Request, Response};

use crate::clients::Want;
use crate::workload;
use crate::world::{BucketCopy, World, copy_name};

/// What becomes of an action, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Send,
    Push,
    Remove,
}

impl World {
    /// Somebody pushes these before he submits a run that uses them.
    pub(crate) fn wish_actions(&mut self, actions: &BTreeSet<u64>, at: Duration) {
        for action in actions {
            if !self.clients.bundles().contains(&bundle(*action)) {
                self.wish(at, Want::Action { action: *action, deed: Deed::Send });
            }
        }
    }

    pub(crate) fn action_request(&mut self, action: u64, deed: Deed) -> Request {
        let object = workload::bundle(action);
        let name = ActionName { project: RunTags::PROJECT.to_owned(), reference: workload::reference(action) };
        match deed {
            Deed::Send => {
                let copy = control_plane_core::BucketCopy { object, encryption: None };
                self.bucket.insert(copy_name(&copy), BucketCopy { corrupt: false });
                Request::RecordUpload { object, key: None }
            }
            Deed::Push => {
                let version = ActionVersion {
                    kind: ActionKind::Processor,
                    bundle: object,
                    manifest: Arc::from(format!("name: {}\nversion: \"1\"\n", name.reference.name)),
                    description: None,
                    labels: Labels::new(),
                    signatures: Vec::new(),
                    pushed_by: "somebody".to_owned(),
                    pushed_at: Timestamp::ZERO,
                    deprecated: None,
                };
                Request::PushAction { name, version: Box::new(version) }
            }
            Deed::Remove => Request::RemoveAction { name },
        }
    }

    /// Nobody removes what somebody would miss who submits a run later.
    pub(crate) fn is_action_missed(&self, action: u64) -> bool {
        self.clients
            .still_wanted()
            .any(|want| matches!(want, Want::Submit { drawn, .. } if drawn.actions.contains(&action)))
    }

    /// What follows from an answer.
    pub(crate) fn action_heard(&mut self, action: u64, deed: Deed, result: &Result<Response, Rejection>) {
        match (deed, result) {
            (Deed::Send, Ok(_)) => self.wish(Duration::ZERO, Want::Action { action, deed: Deed::Push }),
            (Deed::Push, Ok(_)) => {
                self.clients.pushed.insert(action);
                let delay = self.rng.spread(1_000_000, 600_000_000);
                self.wish(delay, Want::Action { action, deed: Deed::Remove });
            }
            // It was sent in more than an hour ago.
            (Deed::Push, Err(Rejection::Invalid(_))) => {
                self.wish(Duration::ZERO, Want::Action { action, deed: Deed::Send });
            }
            (Deed::Remove, Ok(_) | Err(Rejection::NotFound(_))) => {
                self.clients.pushed.remove(&action);
            }
            (_, Err(_)) => {}
        }
    }
}

/// Whether an answer is one that nothing else will follow.
pub(crate) fn is_settled(deed: Deed, result: &Result<Response, Rejection>) -> bool {
    match result {
        Ok(_) => true,
        // Removed by the request whose answer was lost.
        Err(Rejection::NotFound(_)) => deed == Deed::Remove,
        Err(Rejection::Invalid(_)) => deed == Deed::Push,
        // A live run uses it; or the bucket is just losing it.
        Err(Rejection::Conflict(_) | Rejection::Unavailable(_) | Rejection::Busy(_) | Rejection::Forbidden(_)) => false,
    }
}

pub(crate) fn bundle(action: u64) -> ObjectId {
    workload::bundle(action).id
}
