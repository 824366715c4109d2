//! A process that is called for one execution after the other, and what is said to it and by it: the shim's end of
//! `docs/action-protocol.md`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use atoll_model::session::FailureReason;
use nix::sys::time::TimeValLike as _;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use site_agent_spawn::{Child, Circumstances, Program, Spawner};

use super::account::Account;
use super::directory::SlotDirectory;
use super::emitting::{Asked, Emitting};
use super::enclosure::enclosure;
use super::own_tmp::{OwnTmp, Tmp};
use super::protocol::{Common, EndKind, Key, Order, Record, Taken};
use super::spent::Counted;
use super::tree;

/// Versions of the action protocol that are spoken here.
const PROTOCOLS: [u32; 1] = [1];
/// Of the answer to `initialize`; calls are counted from the next one on.
const INITIALIZE: u64 = 0;
const READ_BYTES: usize = 64 << 10;
/// Longest answer that is read, and longest header.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const HEADER_BYTES_MAX: usize = 4 << 10;
/// Of the reason that an answer gives.
const MESSAGE_CHARS_MAX: usize = 2_000;

const CANCELLED: i64 = -32_002;
const INVALID_OUTPUT: i64 = -32_003;
const MISSING_OUTPUT: i64 = -32_004;
const OUT_OF_MEMORY: i64 = -32_005;

/// A worker, called or waiting.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) child: Child,
    requests: File,
    answers: File,
    /// It has said its last word.
    closed: bool,
    output: Vec<u8>,
    input: Vec<u8>,
    common: Rc<Common>,
    calls: u64,
    logs_made: u32,
    tmp_made: u32,
    status: File,
    children: Option<(File, File)>,
    /// What it has read and written; nothing where that cannot be seen.
    io: Option<File>,
    /// What was told of.
    told: Counted,
    /// What it asks for while it is called.
    emitting: Emitting,
}

/// What a worker answers to a call, or instead of one.
#[derive(Debug)]
pub(super) enum Answer {
    Outputs(Map<String, Json>),
    Failed(EndKind),
    /// Its handler could not be loaded, and never will be.
    Unusable(EndKind),
    /// It will say nothing more.
    Closed,
}

/// What a worker is when it has answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// What it has in memory, and the most that it ever had.
    pub(super) now_bytes: u64,
    pub(super) most_bytes: u64,
    /// Whether it has left nothing else running.
    pub(super) is_alone: bool,
}

#[derive(Deserialize)]
struct Message {
    id: u64,
    method: Option<String>,
    #[serde(default)]
    params: Json,
    result: Option<Returned>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Returned {
    #[serde(default)]
    outputs: Map<String, Json>,
    protocol: Option<u32>,
}

#[derive(Deserialize)]
struct Fault {
    code: i64,
    message: String,
}

impl Worker {
    /// Starts one for this execution and those after it, or for some that are still to come, and tells it what it will be called
    /// for.
    pub(super) fn start(
        common: &Rc<Common>,
        slot: &SlotDirectory,
        spawner: &mut Spawner,
        own_tmp: &OwnTmp,
        key: Option<Key>,
    ) -> io::Result<Self> {
        let terms = common.worker.as_ref().ok_or_else(|| io::Error::other("no worker is asked for"))?;
        let mut params: Map<String, Json> = serde_json::from_str(&terms.initialize)?;
        let folders = slot.folders().map(|(name, path)| (name.to_owned(), json!(path)));
        params.insert("protocols".to_owned(), json!(PROTOCOLS));
        params.insert("folders".to_owned(), Json::Object(folders.into_iter().collect()));
        let (theirs_in, requests) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, theirs_out) = pipe_with(PipeFlags::CLOEXEC)?;
        for ours in [&requests, &answers] {
            let flags = rustix::fs::fcntl_getfl(ours)?;
            rustix::fs::fcntl_setfl(ours, flags | OFlags::NONBLOCK)?;
        }
        let mut command = common.command.clone();
        for theirs in [&theirs_in, &theirs_out] {
            command.push(theirs.as_raw_fd().to_string().into_bytes());
            // Nothing else is started before both are closed here.
            rustix::io::fcntl_setfd(theirs, FdFlags::empty())?;
        }
        let tmp = match &common.terms.enclosed {
            // It sees the slot's temporary folder.
            Some(_) => None,
            None => Tmp::of(own_tmp, slot, common.account.is_some(), &mut params, &command)?,
        };
        let child = spawn(&command, common, slot, spawner, (tmp.as_ref(), key))?;
        let mut worker = Self {
            status: File::open(format!("/proc/{}/status", child.id()))?,
            io: File::open(format!("/proc/{}/io", child.id())).ok(),
            children: children_lists(child.id()),
            child,
            requests: File::from(requests),
            answers: File::from(answers),
            closed: false,
            output: Vec::new(),
            input: Vec::new(),
            common: Rc::clone(common),
            calls: INITIALIZE,
            logs_made: slot.logs_made(),
            tmp_made: slot.tmp_made(),
            told: Counted::default(),
            emitting: Emitting::default(),
        };
        let message = json!({ "jsonrpc": "2.0", "id": INITIALIZE, "method": "initialize", "params": params });
        worker.say(message.to_string().as_bytes());
        Ok(worker)
    }

    /// Whether it can be called for executions with this in common.
    pub(super) fn serves(&self, common: &Rc<Common>, slot: &SlotDirectory) -> bool {
        let is_asked_for = || common.worker.is_some() && common.shares_worker(&self.common);
        !self.closed && self.tmp_made == slot.tmp_made() && (Rc::ptr_eq(common, &self.common) || is_asked_for())
    }

    /// Asks it to carry out an execution.
    pub(super) fn call(&mut self, common: &Rc<Common>, order: &Order, slot: &SlotDirectory) {
        self.calls += 1;
        self.emitting = Emitting::default();
        // What it is started for next is compared by its address first.
        self.common = Rc::clone(common);
        let text = |bytes: &[u8]| Json::from(String::from_utf8_lossy(bytes));
        let environment: Map<String, Json> = order
            .environment
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), text(value)))
            .collect();
        let logs = std::mem::replace(&mut self.logs_made, slot.logs_made()) != slot.logs_made();
        let message = format!(
            r#"{{"jsonrpc":"2.0","id":{},"method":"execute","params":{{"inputs":{},"environment":{},"logs":{logs}}}}}"#,
            self.calls,
            order.inputs,
            Json::Object(environment),
        );
        self.say(message.as_bytes());
        self.send();
    }

    /// Asks it to give up what it was called for.
    pub(super) fn cancel(&mut self) {
        let message = json!({ "jsonrpc": "2.0", "method": "cancel", "params": { "id": self.calls } });
        self.say(message.to_string().as_bytes());
        self.send();
    }

    /// What it has emitted and nobody was told of yet; nothing if it has asked for nothing.
    pub(super) fn take_emitted(&mut self) -> Option<Vec<Record>> {
        self.emitting.take()
    }

    /// Whoever was told of what it has emitted is gone, and may not have handed it on.
    pub(super) fn emit_again(&mut self) {
        self.emitting.again();
    }

    /// Answers what it has asked for, as far as that is known now.
    pub(super) fn taken(&mut self, taken: &Taken) {
        for answer in self.emitting.answers(taken) {
            self.say(answer.as_bytes());
        }
        self.send();
    }

    /// Asks it to end.
    pub(super) fn shut_down(mut self) -> Child {
        self.say(br#"{"jsonrpc":"2.0","method":"shutdown"}"#);
        // One that does not hear it sees that there is nothing more to hear.
        self.send();
        self.child
    }

    /// What was told of with its earlier executions.
    pub(super) const fn told(&self) -> Counted {
        self.told
    }

    /// What becomes ready when there is something to do for it while it is called.
    pub(super) fn sources(&self) -> impl Iterator<Item = PollFd<'_>> {
        let answers = (!self.closed).then(|| PollFd::new(&self.answers, PollFlags::IN));
        let requests = (!self.output.is_empty()).then(|| PollFd::new(&self.requests, PollFlags::OUT));
        answers.into_iter().chain(requests)
    }

    fn say(&mut self, body: &[u8]) {
        self.output.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        self.output.extend_from_slice(body);
    }

    /// Writes what there is to say, as far as it is taken.
    pub(super) fn send(&mut self) {
        while !self.output.is_empty() {
            match self.requests.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It hears nothing any more; that it has ended is seen elsewhere.
                Err(_) => self.output.clear(),
            }
        }
    }

    /// Says what there is to say, as far as it is taken, and hears what is answered to the last call.
    ///
    /// # Errors
    /// When what it says is not of the protocol; the message says what.
    pub(super) fn exchange(&mut self) -> Result<Option<Answer>, String> {
        self.send();
        loop {
            while let Some(message) = self.take_message()? {
                if let Some(answer) = self.heard(message)? {
                    return Ok(Some(answer));
                }
            }
            let start = self.input.len();
            self.input.resize(start + READ_BYTES, 0);
            let read = self.answers.read(&mut self.input[start..]);
            self.input.truncate(start + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    self.closed = true;
                    return Ok(Some(Answer::Closed));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("its answers cannot be read: {error}")),
            }
        }
    }

    fn heard(&mut self, message: Message) -> Result<Option<Answer>, String> {
        match message {
            Message { id, method: Some(method), params, .. } => {
                let asked = Asked::new(&method, params)?;
                self.emitting.ask(id, asked).map(|()| None)
            }
            Message { id: INITIALIZE, error: Some(fault), .. } => Ok(Some(Answer::Unusable(fault.end()))),
            Message { id: INITIALIZE, result: Some(Returned { protocol: Some(protocol), .. }), .. }
                if PROTOCOLS.contains(&protocol) =>
            {
                Ok(None)
            }
            Message { id: INITIALIZE, .. } => {
                Err("its answer to `initialize` names no version that it was offered".to_owned())
            }
            Message { id, .. } if id != self.calls => Err(format!("it answers {id}, and {} was asked", self.calls)),
            Message { error: Some(fault), .. } => Ok(Some(Answer::Failed(fault.end()))),
            Message { result: Some(returned), .. } => Ok(Some(Answer::Outputs(returned.outputs))),
            Message { .. } => Err("it answers with neither a result nor an error".to_owned()),
        }
    }

    fn take_message(&mut self) -> Result<Option<Message>, String> {
        let Some(end) = self.input.windows(4).position(|window| window == b"\r\n\r\n") else {
            return if self.input.len() > HEADER_BYTES_MAX { Err(self.not_of_protocol()) } else { Ok(None) };
        };
        let length = content_length(&self.input[..end]).filter(|length| *length <= ANSWER_BYTES_MAX);
        let Some(length) = length else { return Err(self.not_of_protocol()) };
        let body = end + 4..end + 4 + length;
        let Some(bytes) = self.input.get(body.clone()) else { return Ok(None) };
        let message = serde_json::from_slice(bytes).map_err(|error| format!("its answer cannot be read: {error}"))?;
        self.input.drain(..body.end);
        Ok(Some(message))
    }

    fn not_of_protocol(&self) -> String {
        let shown: String = String::from_utf8_lossy(&self.input).chars().take(60).collect();
        format!("it says {shown:?}, which is no message of the action protocol")
    }

    /// What it has used since it was last asked.
    pub(super) fn take_counted(&mut self) -> Counted {
        let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(self.child.id()));
        let used = clock.and_then(nix::time::clock_gettime).map_or(0, |used| used.num_microseconds());
        let disks = self.io.as_ref().map(Counted::of_disks).unwrap_or_default();
        let counted = Counted { cpu_micros: u64::try_from(used).unwrap_or(0), ..disks };
        counted.since(std::mem::replace(&mut self.told, counted))
    }

    /// What it holds, and whether nothing else runs below this process.
    pub(super) fn state(&self) -> State {
        let mut buffer = [0; 2048];
        let read = self.status.read_at(&mut buffer, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..read]);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let bytes = |name: &str| field(name)?.strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10);
        State {
            now_bytes: bytes("VmRSS:").unwrap_or(0),
            most_bytes: bytes("VmHWM:").unwrap_or(0),
            is_alone: self.is_alone(field("Threads:") == Some("1")),
        }
    }

    /// Whether it has anything in a folder open or mapped, so that it could be changed after it was moved. What cannot be
    /// looked at counts as held.
    pub(super) fn holds(&self, folder: &Path) -> bool {
        let own = PathBuf::from(format!("/proc/{}", self.child.id()));
        let Ok(open) = fs::read_dir(own.join("fd")) else { return true };
        let is_inside = |path: PathBuf| path.starts_with(folder);
        let is_open = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).any(is_inside);
        let Ok(maps) = fs::read(own.join("maps")) else { return true };
        let folder = folder.as_os_str().as_bytes();
        is_open || maps.windows(folder.len()).any(|window| window == folder)
    }

    fn is_alone(&self, has_one_thread: bool) -> bool {
        let Some(pid) = Pid::from_raw(self.child.id()) else { return false };
        let Some((own, below)) = self.children.as_ref().filter(|_| has_one_thread) else {
            return !tree::has_more_than(pid);
        };
        let mut buffer = [0; 64];
        // A list that does not fit is one of more than one.
        let mut list = |file: &File| {
            file.read_at(&mut buffer, 0).map(|read| String::from_utf8_lossy(&buffer[..read]).trim().to_owned())
        };
        list(below).is_ok_and(|list| list.is_empty())
            && list(own).is_ok_and(|list| list == pid.as_raw_nonzero().to_string())
    }
}

/// The lists of the children of this process and of a thread, where the kernel has them.
fn children_lists(pid: i32) -> Option<(File, File)> {
    let list = |pid: i32| File::open(format!("/proc/{pid}/task/{pid}/children")).ok();
    Some((list(rustix::process::getpid().as_raw_nonzero().get())?, list(pid)?))
}

impl Fault {
    fn end(self) -> EndKind {
        let reason = match self.code {
            CANCELLED => return EndKind::Killed,
            OUT_OF_MEMORY => return EndKind::OutOfMemory,
            INVALID_OUTPUT => FailureReason::InvalidOutput,
            MISSING_OUTPUT => FailureReason::MissingOutput,
            _ => FailureReason::ActionFailed,
        };
        EndKind::Failed { reason, message: self.message.chars().take(MESSAGE_CHARS_MAX).collect() }
    }
}

fn spawn(
    command: &[Vec<u8>],
    common: &Common,
    slot: &SlotDirectory,
    spawner: &mut Spawner,
    (tmp, key): (Option<&Tmp>, Option<Key>),
) -> io::Result<Child> {
    let of_slot = slot.environment();
    let of_slot = of_slot.iter().map(|(name, path)| (name.as_bytes(), path.as_os_str().as_bytes()));
    let of_step = common.environment.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    let program = Program::new(command, of_slot.chain(of_step))?;
    const NOTHING_MORE: &[(&[u8], &[u8])] = &[];
    let enclosed = common.terms.enclosed.as_ref();
    let enclosure = enclosed.map(|enclosed| enclosure(enclosed, slot.own_folders(), key)).transpose()?;
    let kept: Vec<_> =
        tmp.iter().flat_map(|tmp| &tmp.kept).map(|(from, at)| (from.as_c_str(), at.as_c_str())).collect();
    let identity = common.account.as_ref().map(Account::identity);
    let circumstances = Circumstances {
        tmp: tmp.map(|tmp| tmp.folder.as_c_str()),
        kept: &kept,
        enclosure: enclosure.as_ref(),
        identity: identity.as_ref(),
        file_bytes_max: common.terms.scratch_bytes,
    };
    spawner.spawn_under(&program, NOTHING_MORE, circumstances)
}

fn content_length(header: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(header).ok()?;
    let mut fields = text.split("\r\n").filter_map(|line| line.split_once(':'));
    let (_, length) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    length.trim().parse().ok()
}
