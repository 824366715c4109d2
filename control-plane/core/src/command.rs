//! What the control plane asks of its shell. All of it may be lost with the process, and is asked for again after it.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{AgentId, RunId, SiteName, TransferId};
use atoll_model::session::ControlFrame;
use atoll_model::value::ObjectRef;

use crate::encryption::{BucketCopy, WrappedKey};
use crate::event::{ConnectionId, RequestId};
use crate::finished::FinishedRun;

#[derive(Debug, Clone)]
pub enum Command {
    Reply {
        request: RequestId,
        result: Result<Response, Rejection>,
    },
    /// Send a frame on the stream of this connection; dropped if it is gone.
    Send {
        connection: ConnectionId,
        frame: ControlFrame,
    },
    /// End the stream after what was sent on it.
    Close {
        connection: ConnectionId,
    },
    /// Nobody needs this object in the bucket any more. The shell goes on until it is gone, and answers then; it is asked
    /// again only after a restart.
    DeleteFromBucket {
        copy: BucketCopy,
    },
    /// Say whether the object is in the bucket: the push came to nothing as far as its site knows, or never told.
    LookInBucket {
        copy: BucketCopy,
        transfer: TransferId,
    },
    /// Put the run into the history. It is asked for when the run has ended, so that a history may show it at once, and
    /// for the last time when it is to leave the memory: that one is answered with [`crate::Event::RunKept`], and
    /// repeated after a restart.
    KeepRun {
        run: FinishedRun,
        last: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    Submitted {
        run: RunId,
    },
    Enrolled {
        agent: AgentId,
        site: SiteName,
        join_counter: u64,
    },
    /// Certificates and recoveries: for this site, with this counter from now on.
    Certify {
        agent: AgentId,
        site: SiteName,
        join_counter: u64,
    },
    /// The object may be read from, or written to, the bucket.
    Authorised {
        copy: BucketCopy,
        /// If it is not there by itself, it is to be taken out of this directory, which is there.
        within: Option<BucketCopy>,
    },
    /// These agents may be asked for the object, the best first; nobody while it is to be had from the bucket, or on its
    /// way there.
    Offered {
        object: ObjectRef,
        holders: Vec<HolderOffer>,
        /// To be asked again after this time: another site is being given the object, and has a better link.
        ask_again: Option<Duration>,
    },
    /// The object is in the bucket.
    Staged {
        copy: BucketCopy,
    },
    /// These records of the attempt have started their runs, up to this number; the one behind it was refused, if this says
    /// why. How far the source has come, with all attempts.
    Emitted {
        through: u64,
        offset: Option<Arc<str>>,
        refused: Option<String>,
    },
    /// The key that is kept.
    ProjectKey {
        wrapped: WrappedKey,
    },
    Done,
}

/// An agent that may be asked for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderOffer {
    pub agent: AgentId,
    /// IP and port, as the agent says.
    pub addresses: Vec<String>,
}

/// Why a request was refused. The message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("{0}")]
    NotFound(String),
    /// The request contradicts the state of things.
    #[error("{0}")]
    Conflict(String),
    /// The request can never be carried out as it stands.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Forbidden(String),
    /// Not now: there is too much already, and nothing was done. Whoever asks again later is answered as if for the first
    /// time.
    #[error("{0}")]
    Busy(String),
    /// Not now; the object or the site is not there at present.
    #[error("{0}")]
    Unavailable(String),
}
