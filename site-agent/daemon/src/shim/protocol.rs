//! What an agent and a shim say to each other over the socket of a slot, and how a shim is started.
//!
//! Frames are a length (`u32`, little-endian) and a postcard body. The shim speaks first: a [`Hello`] that begins with
//! [`PROTOCOL_VERSION`]. A shim may be older than the agent, never newer; an agent that does not know the version leaves
//! the shim to end by itself. Only the newest connection counts; an older one is closed by the shim.

use std::path::PathBuf;
use std::time::Duration;

use atoll_model::action::{Service, Warm};
use atoll_model::id::{Attempt, ExecutionId};
use atoll_model::session::FailureReason;
use atoll_model::time::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::container::Container;
use super::job::evidence::Asked;
use super::spent::Spent;

/// Since the sixth version shims tell of an end also what was read from disks and written to them.
pub(crate) const PROTOCOL_VERSION: u8 = 7;
/// Shims tell small outputs since this version.
pub(crate) const TELLS_OUTPUTS: u8 = 2;
/// Shims have workers that are called ([`ToShim::Call`]) since this version.
pub(crate) const CALLS_WORKERS: u8 = 2;
/// Shims run containers ([`ToShim::Contain`]) since this version.
pub(crate) const RUNS_CONTAINERS: u8 = 3;

/// Shims hand on what sources emit ([`FromShim::Emitted`]) since this version.
pub(crate) const HANDS_ON_RECORDS: u8 = 3;
/// Shims know of [`ToShim::Under`] since this version.
pub(crate) const KEEPS_TERMS: u8 = 3;
/// Shims keep services alive ([`ToShim::Keep`]) since this version.
pub(crate) const KEEPS_SERVICES: u8 = 4;
/// Shims start things as other accounts ([`ToShim::As`]) since this version.
pub(crate) const TAKES_ON_ACCOUNTS: u8 = 5;
/// Shims have workers wait for their first call ([`ToShim::WarmUp`]) since this version.
pub(crate) const WARMS_UP: u8 = 7;

/// Longest frame either side reads: a batch of orders with their environments stays far below it.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// How a shim is to be set up; the one argument of the hidden command, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Setup {
    /// The slot's directory, absolute.
    pub slot: PathBuf,
    /// Folders that are shown read-only to what runs, before the slot is put over them writable.
    pub read_only: Vec<PathBuf>,
    /// Folders that are hidden from what runs.
    pub hidden: Vec<PathBuf>,
    /// Whether to do without namespaces even if they could be had.
    pub no_namespace: bool,
    pub cgroups: SlotCgroups,
}

/// How the shim of a slot of this machine is to be set up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotSetup {
    #[serde(flatten)]
    pub setup: Setup,
    /// Whether the shim and all that it starts give up what rights alone could do.
    pub confined: bool,
    /// Processes and threads at a time, where they can be counted; the usual number if nothing.
    pub processes_max: Option<u32>,
    /// How long what is run may go on without the agent having been heard; for ever if nothing. For machines that an agent may
    /// have to do without, and then starts their work elsewhere.
    pub leash: Option<Duration>,
}

/// The slot's control groups, of those that the agent could make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SlotCgroups {
    pub memory: Option<ControlGroup>,
    pub cpu: Option<ControlGroup>,
    pub pids: Option<ControlGroup>,
    /// In the second version's tree: everything in it can be ended at once.
    pub unified: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlGroup {
    pub folder: PathBuf,
    pub version: CgroupVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CgroupVersion {
    V1,
    V2,
}

/// One attempt at an execution: what every message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub execution: ExecutionId,
    pub attempt: Attempt,
}

impl Key {
    /// The name of the folders that belong to the attempt.
    pub(crate) fn folder(self) -> String {
        format!("{}.{}", self.execution, self.attempt)
    }
}

/// From an agent to a shim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToShim {
    /// Run these one after the other, after what was ordered before.
    Start { common: Common, orders: Vec<Order> },
    /// End the attempt: answered by its end, or as given back if it had not started.
    Kill(Key),
    /// Give back what has not started, from the end of the queue.
    GiveBack { count: u32 },
    /// The agent has made the ends of these durable; the shim need not remember them.
    Forget(Vec<Key>),
    /// Exit, unless there is work or an end that the agent has not said to forget.
    Quit,
    /// As [`ToShim::Start`], but a worker is called for each, with the inputs of the same place. Only for shims that know
    /// [`CALLS_WORKERS`].
    Call { common: Common, worker: Worker, orders: Vec<Order>, inputs: Vec<String> },
    /// Records up to this number have started their runs. Only for shims that know [`HANDS_ON_RECORDS`].
    Taken { key: Key, taken: Taken },
    /// A start or call, under terms. Only for shims that know [`KEEPS_TERMS`].
    Under { terms: Terms, start: Box<Self> },
    /// As [`ToShim::Start`], but each runs in a container of its own. Only for shims that know [`RUNS_CONTAINERS`].
    Contain { common: Common, container: Box<Container>, orders: Vec<Order> },
    /// A start of any kind, of a service: what runs is begun again when it ends, and has started when it is well. Only for
    /// shims that know [`KEEPS_SERVICES`].
    Keep { kept: Kept, start: Box<Self> },
    /// A start of any kind, as an account of the machine. Only for shims that know [`TAKES_ON_ACCOUNTS`].
    As { account: Account, start: Box<Self> },
    /// Have a worker wait for calls that are still to come, if there is nothing else to do. Only for shims that know
    /// [`WARMS_UP`].
    WarmUp { common: Common, worker: Worker },
}

/// How a service is kept alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub service: Service,
    /// Where it listens, if it does.
    pub port: Option<u16>,
}

/// What the control plane says of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub through: u64,
    /// How far the source has come with all its attempts, as JSON.
    pub offset: Option<String>,
    /// Why the first record behind them starts no run.
    pub refused: Option<String>,
}

/// What a source has emitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Each is larger than the one before.
    pub number: u64,
    /// As the source says it: JSON.
    pub record: String,
}

/// What executions are started under beside their limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// What each is kept from, if it is kept from everything else.
    pub enclosed: Option<Enclosed>,
    /// Bytes that each may write to its own folders.
    pub scratch_bytes: Option<u64>,
}

/// What an execution sees that is kept from everything else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Enclosed {
    pub network: bool,
    /// Folders of which it sees nothing but its own.
    pub hidden: Vec<PathBuf>,
    /// What it sees there all the same, read-only.
    pub shown: Vec<PathBuf>,
    /// The folder in which its inputs are, by its key.
    pub staged: PathBuf,
    /// Devices that it sees beside those that every program needs, by their names; what is not there is passed over.
    pub devices: Vec<String>,
}

/// A process that is called for one execution after the other (`docs/action-protocol.md`). It is started by the command
/// that the orders have in common, with the numbers of two descriptors as further arguments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Worker {
    /// What it is initialized with, as JSON, but for the folders, which the shim knows.
    pub initialize: String,
}

/// Variables of an environment: names and values.
pub(crate) type Variables = Vec<(Vec<u8>, Vec<u8>)>;

/// What the orders of one batch have in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Common {
    /// Program (an absolute path) and arguments; in a container as the image knows them, and none if its own are meant.
    pub command: Vec<Vec<u8>>,
    /// The environment, but for what an order adds or replaces.
    pub environment: Variables,
    pub memory_bytes: Option<u64>,
    pub cpu_millis: Option<u32>,
    pub time: Option<Duration>,
    /// Whether the claim must be on the disk before the start: for work that must never be started twice.
    pub synced_claim: bool,
    pub outputs: Outputs,
    /// Bytes of each log above which its middle is dropped.
    pub log_bytes_max: u64,
    /// Whether it is a source. Not for the shim: that hands on what anyone emits.
    #[serde(skip)]
    pub emits: bool,
    /// What is called instead of starting the command anew each time. It goes beside this in [`ToShim::Call`], since shims
    /// of the first version know nothing of it.
    #[serde(skip)]
    pub worker: Option<Worker>,
    /// What the command runs in, which goes beside this in [`ToShim::Contain`].
    #[serde(skip)]
    pub container: Option<Box<Container>>,
    /// What it is kept alive by, if it is a service, which goes beside this in [`ToShim::Keep`].
    #[serde(skip)]
    pub kept: Option<Kept>,
    /// How many of its workers wait. Not for the shim: that keeps its one until it is told otherwise.
    #[serde(skip)]
    pub warm: Option<Warm>,
    /// It goes beside this too, in [`ToShim::Under`].
    #[serde(skip)]
    pub terms: Terms,
    /// Whether what is started must not be able to do what rights alone could do. Slots are of one kind or the other, so
    /// their shims need not be told.
    #[serde(skip)]
    pub confined: bool,
    /// Who it runs as, if not as the agent's user; it goes beside this in [`ToShim::As`].
    #[serde(skip)]
    pub account: Option<Account>,
    /// What a job of a cluster is submitted with, which is noted with the submission.
    #[serde(skip)]
    pub asked: Asked,
}

impl Common {
    /// Whether a worker that was started for the one can be called for the other.
    pub(crate) fn shares_worker(&self, other: &Self) -> bool {
        self.of_worker() == other.of_worker()
    }

    /// The version of this protocol that a shim has to speak for it.
    pub(crate) fn version(&self) -> u8 {
        let needs = [
            (self.worker.is_some(), CALLS_WORKERS),
            (self.container.is_some(), RUNS_CONTAINERS),
            (self.emits, HANDS_ON_RECORDS),
            (self.kept.is_some(), KEEPS_SERVICES),
            (self.terms != Terms::default(), KEEPS_TERMS),
            (self.account.is_some(), TAKES_ON_ACCOUNTS),
        ];
        needs.into_iter().filter_map(|(needed, version)| needed.then_some(version)).max().unwrap_or_default()
    }

    /// What makes up a worker.
    pub(crate) fn of_worker(&self) -> OfWorker<'_> {
        OfWorker {
            command: &self.command,
            environment: &self.environment,
            memory_bytes: self.memory_bytes,
            cpu_millis: self.cpu_millis,
            worker: self.worker.as_ref(),
            terms: &self.terms,
            confined: self.confined,
            account: self.account.as_ref(),
        }
    }
}

/// What makes up a worker: another of it needs another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct OfWorker<'a> {
    command: &'a [Vec<u8>],
    environment: &'a [(Vec<u8>, Vec<u8>)],
    memory_bytes: Option<u64>,
    cpu_millis: Option<u32>,
    worker: Option<&'a Worker>,
    terms: &'a Terms,
    confined: bool,
    account: Option<&'a Account>,
}

/// What becomes of the outputs folder when the process has succeeded. Version 1 said the first two as `false` and `true`,
/// which are the same bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outputs {
    /// Nothing of it counts.
    #[default]
    Ignored,
    /// It is moved aside.
    Kept,
    /// Files in it are values: if they are few and small they are told, and the folder stays where it is.
    Told,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub key: Key,
    pub environment: Variables,
    /// What a worker is called with, as a JSON object; it goes beside this as [`Common::worker`] does.
    #[serde(skip)]
    pub inputs: String,
}

/// From a shim to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum FromShim {
    Hello(Hello),
    /// What has happened, in order.
    Notices(Vec<Notice>),
    /// The attempt has emitted these; without any, it asks how far the source has come. What was not answered is said again on
    /// the next connection.
    Emitted {
        key: Key,
        records: Vec<Record>,
    },
}

/// First frame of each connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub version: u8,
    pub pid: u32,
    pub isolation: Isolation,
    /// What could not be set up as asked, in words for the log.
    pub complaints: Vec<String>,
    pub queued: Vec<Key>,
    pub running: Option<(Key, Timestamp)>,
    /// Ends that no agent has said to forget.
    pub ended: Vec<(Key, End)>,
}

/// How far what runs in a slot is kept from what it must not touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Isolation {
    /// In a mount namespace of its own.
    Mounts,
    /// In a user and mount namespace of its own.
    UserMounts,
    /// Lent files are checked after each execution instead.
    Nothing,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Notice {
    Started {
        key: Key,
        at: Timestamp,
    },
    Ended {
        key: Key,
        end: End,
    },
    /// Taken out of the queue before it started.
    GivenBack {
        key: Key,
        killed: bool,
    },
}

/// How an attempt ended. What it left is in the slot's `kept/KEY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub how: EndKind,
    pub spent: Spent,
    pub left: Left,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EndKind {
    Code(i32),
    Signal(i32),
    TimedOut,
    OutOfMemory,
    Killed,
    /// It could not be started.
    NotStarted {
        message: String,
        no_space: bool,
    },
    /// Nobody saw the end. Never said by a shim; concluded by an agent from the log of one that has died.
    Interrupted {
        message: String,
    },
    /// A worker answered, and all that is left are values: a JSON object.
    Returned {
        outputs: Vec<u8>,
    },
    /// A worker answered that it failed, or did not answer.
    Failed {
        reason: FailureReason,
        message: String,
    },
}

/// What an attempt left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    pub outputs: LeftOutputs,
    /// In `kept/KEY`, as is `stderr`.
    pub stdout: bool,
    pub stderr: bool,
}

/// What an attempt left in its outputs folder. Version 1 said the first two as `false` and `true`, which are the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LeftOutputs {
    #[default]
    Nothing,
    /// It is in `kept/KEY`.
    Kept,
    /// All of it.
    Told(Vec<SmallOutput>),
}

/// A file of the outputs folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SmallOutput {
    pub name: Vec<u8>,
    pub content: Vec<u8>,
}

impl Left {
    /// Whether there is anything in `kept/KEY`.
    pub(crate) fn is_kept(&self) -> bool {
        self.outputs == LeftOutputs::Kept || self.stdout || self.stderr
    }
}

/// Appends a message to `buffer` as a frame.
pub(crate) fn encode(message: &impl Serialize, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    let taken = std::mem::take(buffer);
    *buffer = postcard::to_extend(message, taken).expect("messages hold nothing that postcard cannot encode");
    let length = u32::try_from(buffer.len() - start - 4).expect("a frame stays far below 4 GiB");
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// What came over the socket is no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a frame on the socket of a slot cannot be read: {0}")]
pub(crate) struct BrokenFrame(String);

/// Takes the next whole message from the front of `buffer[*position..]`, if it is there.
pub(crate) fn decode<Message: DeserializeOwned>(
    buffer: &[u8],
    position: &mut usize,
) -> Result<Option<Message>, BrokenFrame> {
    let rest = &buffer[*position..];
    let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(BrokenFrame(format!("it would be {length} bytes long")));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let message = postcard::from_bytes(body).map_err(|error| BrokenFrame(error.to_string()))?;
    *position += 4 + length;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use atoll_model::id::{RunId, StepIndex};

    use super::*;

    fn key() -> Key {
        let execution = ExecutionId { run: RunId::from_bits(7), step: StepIndex(3), element: 11 };
        Key { execution, attempt: Attempt(2) }
    }

    #[test]
    fn a_frame_comes_back_whole_and_a_part_of_one_does_not() {
        let mut buffer = Vec::new();
        encode(&ToShim::Kill(key()), &mut buffer);
        encode(&ToShim::Quit, &mut buffer);
        let mut position = 0;
        assert_eq!(decode::<ToShim>(&buffer, &mut position).unwrap(), Some(ToShim::Kill(key())));
        let whole = position;
        assert_eq!(decode::<ToShim>(&buffer[..buffer.len() - 1], &mut position).unwrap(), None);
        assert_eq!(position, whole);
        assert_eq!(decode::<ToShim>(&buffer, &mut position).unwrap(), Some(ToShim::Quit));
        assert_eq!(position, buffer.len());
    }

    #[test]
    fn what_a_shim_of_the_first_version_says_of_outputs_is_understood() {
        for (said, outputs) in [(false, LeftOutputs::Nothing), (true, LeftOutputs::Kept)] {
            let first = postcard::to_stdvec(&(said, true, false)).unwrap();
            let left = Left { outputs, stdout: true, stderr: false };
            assert_eq!(postcard::from_bytes::<Left>(&first).unwrap(), left);
        }
        for (outputs, heard) in [(Outputs::Ignored, false), (Outputs::Kept, true)] {
            let now = postcard::to_stdvec(&outputs).unwrap();
            assert_eq!(postcard::from_bytes::<bool>(&now).unwrap(), heard);
        }
    }

    #[test]
    fn an_absurd_length_is_refused() {
        assert!(decode::<ToShim>(&[255, 255, 255, 255, 0], &mut 0).is_err());
    }
}
