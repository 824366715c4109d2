//! The shim: a small process of one thread that owns a slot and runs what it is handed there. It outlives the agent that
//! started it, and answers the next one. See `ARCHITECTURE.md`, "Shims and slots".

pub(crate) mod account;
pub(crate) mod connection;
pub(crate) mod container;
mod directory;
mod emitting;
mod enclosure;
mod isolation;
pub(crate) mod job;
mod limits;
pub(crate) mod log;
mod looks;
mod outputs;
mod own_tmp;
mod prepared;
pub(crate) mod protocol;
mod runner;
mod scratch;
mod server;
pub(crate) mod spent;
pub(crate) mod tree;
mod watch;
mod worker;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

pub(crate) use isolation::UNPROTECTED;

pub(crate) use directory::{KEPT, OUT, SOCKET, STDERR, STDOUT, keep_logs, make_private, remove_whatever};

use directory::SlotDirectory;
use limits::Limits;
use log::SlotLog;
use protocol::{Isolation, SlotSetup};
use runner::Runner;
use server::{Asked, Server};

/// Where a shim that cannot go on says why, in its slot.
pub(crate) const LAST_WORDS: &str = "shim.error";

/// The argument of a process that only finds out which namespaces it gets.
pub(crate) const NAMESPACES: &str = "namespaces";

/// The first argument of a process that runs, or compiles, a component of WebAssembly. Only a program that was built with
/// what runs components knows it.
pub const COMPONENT: &str = "component";

/// The argument of a process that only tries whether a program can be kept from everything else.
pub(crate) const STRICT: &str = "strict";

/// The first argument of a process that only tries whether a program can be run as an account, which is the second; folders
/// that it must reach follow.
pub(crate) const ACCOUNT: &str = "account";

/// The first argument of a process that is a job of a batch system.
pub(crate) const JOB: &str = "job";

/// The one argument is a [`SlotSetup`]; standard input is the listening socket of the slot.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    if arguments.first().is_some_and(|argument| argument == NAMESPACES) {
        return try_namespaces();
    }
    if arguments.first().is_some_and(|argument| argument == STRICT) {
        return try_strict();
    }
    if arguments.first().is_some_and(|argument| argument == COMPONENT) {
        return refuse("this program was built without what runs components of WebAssembly (cargo feature `wasm`)");
    }
    if let Some((_, trial)) = arguments.split_first().filter(|(first, _)| *first == ACCOUNT) {
        return account::try_out(trial);
    }
    if let Some((_, of_job)) = arguments.split_first().filter(|(first, _)| *first == JOB) {
        return job::main(of_job);
    }
    let setup: SlotSetup = match arguments.as_slice() {
        [setup] => match serde_json::from_slice(setup.as_encoded_bytes()) {
            Ok(setup) => setup,
            Err(error) => return refuse(&format!("its argument is not a setup: {error}")),
        },
        _ => return refuse("it takes one argument"),
    };
    let last_words = setup.setup.slot.join(LAST_WORDS);
    std::panic::set_hook(Box::new({
        let last_words = last_words.clone();
        // Standard error is the log of what runs in the slot.
        move |panic| drop(fs::write(&last_words, format!("{panic}\n")))
    }));
    match serve(&setup) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody else could be told.
            let _ = fs::write(&last_words, format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn try_namespaces() -> ExitCode {
    match isolation::enter_namespace() {
        Ok(Isolation::Mounts) => println!("mount namespaces, by a right of this user"),
        Ok(Isolation::UserMounts | Isolation::Nothing) => println!("user and mount namespaces"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn try_strict() -> ExitCode {
    match isolation::enter_namespace().and_then(|_| enclosure::try_out()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("atoll shim is started by an agent, never by hand: {why}");
    ExitCode::from(2)
}

fn serve(wanted: &SlotSetup) -> io::Result<()> {
    let setup = &wanted.setup;
    // A leader of a session of its own hears nothing of the terminal or the service that started the agent. It fails
    // only for one that is such a leader already.
    let _ = nix::unistd::setsid();
    // One on a leash is on another machine, which may be given to others.
    let asked = wanted.leash.map(|_| Asked::listen()).transpose()?;
    let listener = UnixListener::from(rustix::stdio::stdin().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut complaints = Vec::new();
    let limits = Limits::join(setup.cgroups.clone(), wanted.processes_max, &mut complaints);
    let isolation = isolation::isolate(setup, &mut complaints);
    if wanted.confined {
        isolation::give_up_rights(&mut complaints);
    }
    let ended = log::read(&setup.slot)?.ended;
    let log = SlotLog::open(&setup.slot)?;
    let slot = SlotDirectory::prepare(&setup.slot)?;
    let own_tmp = own_tmp::own_tmp(setup, isolation);
    let runner = Runner::new(slot, log, limits, ended, own_tmp);
    let served = Server::new(listener, runner, (isolation, complaints), (wanted.leash, asked)).serve();
    // The agent takes the socket away when it prepares the slot again; in the namespace it is hidden.
    served.map_err(io::Error::from)
}
