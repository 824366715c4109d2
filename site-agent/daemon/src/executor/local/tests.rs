//! The executor beside shims that a test plays.

#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
use atoll_model::time::Timestamp;
use site_agent_core::Event;
use site_agent_core::event::FoundState;
use storage_sync_engine::store::SiteStore;
use tokio_util::sync::CancellationToken;

use super::{Confining, LocalOptions, Order, key, start};
use crate::config::{Exports, Imports, IsolationSettings, ShimProgram};
use crate::shim::SOCKET;
use crate::shim::protocol::{End, EndKind, FromShim, Hello, Isolation, Left, Notice, PROTOCOL_VERSION, encode};
use crate::shim::spent::Spent;
use crate::telemetry::Meters;
use crate::withheld::Withheld;

/// An executor that starts no shims, in this directory, and what it tells.
fn options(data_dir: &Path) -> (LocalOptions, Receiver<Vec<Event>>) {
    let (sender, told) = channel();
    let store = SiteStore::open(&data_dir.join("store")).unwrap();
    let options = LocalOptions {
        site: "lab".parse().unwrap(),
        data_dir: data_dir.to_owned(),
        slots_dir: data_dir.join("slots"),
        program: ShimProgram { program: "/bin/false".into(), arguments: Vec::new() },
        imports: Imports::default(),
        exports: Exports::default(),
        withheld: Withheld::new(store.clone()),
        store,
        python: None,
        engine: None,
        components: None,
        log_bytes_max: 1 << 20,
        logs: Arc::default(),
        ledger: Default::default(),
        tell: Arc::new(move |events| sender.send(events).unwrap()),
        meters: Arc::new(Meters::new()),
        spans: None,
        emitted: tokio::sync::mpsc::unbounded_channel().0,
        nodes: None,
        pilots: None,
        accounts: None,
        batch: None,
        isolation: Confining { settings: IsolationSettings::default(), strict: Ok(()) },
        gpus: Vec::new(),
        failed: CancellationToken::new(),
    };
    (options, told)
}

#[test]
fn what_a_shim_says_in_one_breath_with_its_greeting_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let slot = folder.path().join("slots/0");
    fs::create_dir_all(&slot).unwrap();
    let listener = UnixListener::bind(slot.join(SOCKET)).unwrap();
    let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 0 };
    let (key, since) = (key(execution, Attempt::FIRST), Timestamp::from_micros(1_000_000));
    let end = End {
        started_at: since,
        finished_at: since,
        how: EndKind::Code(0),
        spent: Spent::default(),
        left: Left::default(),
    };
    let hello = Hello {
        version: PROTOCOL_VERSION,
        pid: std::process::id(),
        isolation: Isolation::Nothing,
        complaints: Vec::new(),
        queued: Vec::new(),
        running: Some((key, since)),
        ended: Vec::new(),
    };
    let shim = std::thread::spawn(move || {
        let (mut agent, _) = listener.accept().unwrap();
        let mut said = Vec::new();
        encode(&FromShim::Hello(hello), &mut said);
        encode(&FromShim::Notices(vec![Notice::Ended { key, end }]), &mut said);
        agent.write_all(&said).unwrap();
        // It lives on and has nothing more to say.
        agent.read_to_end(&mut Vec::new()).unwrap();
    });
    let (options, told) = options(folder.path());
    let super::Started { executor, found, thread: executing, .. } = start(options).unwrap();
    assert!(matches!(found[..], [ref one] if one.state == FoundState::Running { since }));
    let events = told.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(events[..], [Event::Exited { execution: ended, .. }] if ended == execution), "{events:?}");
    executor.order(Order::Quit);
    executor.ring();
    executing.join().unwrap();
    shim.join().unwrap();
}
