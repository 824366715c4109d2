//! What a journal that several servers share promises beside the contract of every journal.
#![expect(clippy::unwrap_used, reason = "a failed assertion is the result of a test")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use contract_tests::journals::{Database, statement};
use control_plane_postgres::{Address, Contents, Ended, News, OpenError, PostgresJournal, Standby};
use storage_sync_journal::{BatchSeq, JournalError};

fn follow(database: &Database, name: &str) -> (Standby, Contents) {
    Standby::open(database.address.clone(), Database::member(name), 1).unwrap()
}

fn lead(database: &Database, name: &str) -> PostgresJournal {
    let (mut standby, _) = follow(database, name);
    standby.try_lead().unwrap().expect("nobody leads").journal
}

/// Leads as if the leader's lease had not been renewed in time, of which its own clock has not told it yet. A renewal may
/// come between its end and the takeover: then it is made to end again.
fn supersede(database: &Database, mut standby: Standby) -> PostgresJournal {
    for _ in 0..100 {
        statement(&database.address.to_string(), "UPDATE atoll.lease SET expires_at = '-infinity'").unwrap();
        standby.poll().unwrap();
        if let Some(taken) = standby.try_lead().unwrap() {
            return taken.journal;
        }
    }
    panic!("{} keeps its lease", standby.leader().name);
}

#[test]
fn b3_the_database_refuses_what_a_superseded_leader_writes() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let mut first = lead(&database, "first");
    first.append(b"kept").unwrap();
    first.barrier().unwrap();
    let (standby, _) = follow(&database, "second");
    assert_eq!(standby.leader().name, "first");
    let mut second = supersede(&database, standby);
    assert!(second.epoch() > first.epoch());
    first.append(b"stale").unwrap();
    let refused = first.barrier().unwrap_err();
    assert!(matches!(&refused, JournalError::Store(message) if message.contains("another server leads")), "{refused}");
    assert!(matches!(first.append(b"more"), Err(JournalError::Failed)));
    second.append(b"fresh").unwrap();
    second.barrier().unwrap();
    // Neither may it put a checkpoint in the place of what came since.
    let end = first.take_end().unwrap();
    assert!(matches!(end.blocking_recv(), Ok(Ended::Superseded { .. })));
    drop((first, second));
    let (_, contents) = follow(&database, "third");
    assert_eq!(contents.batches, [(BatchSeq(1), b"kept".to_vec()), (BatchSeq(2), b"fresh".to_vec())]);
}

#[test]
fn b3_a_superseded_leader_writes_no_checkpoint() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let mut first = lead(&database, "first");
    first.append(b"one").unwrap();
    first.barrier().unwrap();
    let (standby, _) = follow(&database, "second");
    let second = supersede(&database, standby);
    first.checkpoint(b"stale").unwrap_err();
    drop((first, second));
    let (_, contents) = follow(&database, "third");
    assert_eq!(contents, Contents { checkpoint: None, batches: vec![(BatchSeq(1), b"one".to_vec())], format: 1 });
}

#[test]
fn a_standby_follows_batch_by_batch_and_over_checkpoints() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let mut leader = lead(&database, "leader");
    let (mut standby, contents) = follow(&database, "standby");
    assert_eq!(contents, Contents { checkpoint: None, batches: Vec::new(), format: 1 });
    assert_eq!(standby.poll().unwrap(), News::Nothing);
    leader.append(b"one").unwrap();
    assert_eq!(standby.poll().unwrap(), News::Nothing, "it is not durable yet");
    leader.append(b"two").unwrap();
    leader.barrier().unwrap();
    let both = vec![(BatchSeq(1), b"one".to_vec()), (BatchSeq(2), b"two".to_vec())];
    assert_eq!(standby.poll().unwrap(), News::Batches(both));
    leader.checkpoint(b"state").unwrap();
    assert_eq!(standby.poll().unwrap(), News::Nothing, "it knows everything that the checkpoint stands for");
    leader.append(b"three").unwrap();
    leader.checkpoint(b"later").unwrap();
    leader.append(b"four").unwrap();
    leader.barrier().unwrap();
    let anew = Contents {
        checkpoint: Some((BatchSeq(3), b"later".to_vec())),
        batches: vec![(BatchSeq(4), b"four".to_vec())],
        format: 1,
    };
    assert_eq!(standby.poll().unwrap(), News::Anew(anew));
    assert!(standby.leader().is_alive && standby.try_lead().unwrap().is_none());
    drop(leader);
    standby.poll().unwrap();
    assert!(!standby.leader().is_alive, "a leader that ends gives its lease back");
    assert_eq!(standby.try_lead().unwrap().unwrap().journal.durable(), BatchSeq(4));
}

#[test]
fn of_two_standbys_one_takes_the_lead() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let (mut one, _) = follow(&database, "one");
    let (mut other, _) = follow(&database, "other");
    let taken = one.try_lead().unwrap().expect("nobody leads");
    assert!(other.try_lead().unwrap().is_none(), "it has looked before, and is too late");
    other.poll().unwrap();
    assert_eq!(other.leader().name, "one");
    drop(taken);
}

#[test]
fn a_leader_whose_connection_breaks_goes_on_under_the_same_epoch() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let mut leader = lead(&database, "leader");
    for round in 1..=5u64 {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        leader.append(&round.to_be_bytes()).unwrap();
        statement(&database.address.to_string(), cut).unwrap();
        leader.barrier().unwrap();
    }
    let (_, contents) = follow(&database, "reader");
    assert_eq!(contents.batches.len(), 5);
    assert!(contents.batches.iter().all(|(seq, batch)| *batch == seq.0.to_be_bytes()));
}

#[test]
fn b4_a_batch_whose_commit_was_answered_and_not_heard_is_written_once() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let relay = Relay::start(&database, b"marked");
    let (mut standby, _) = Standby::open(relay.address.clone(), Database::member("leader"), 1).unwrap();
    let mut leader = standby.try_lead().unwrap().expect("nobody leads").journal;
    leader.append(b"before").unwrap();
    leader.barrier().unwrap();
    leader.append(b"marked").unwrap();
    leader.append(b"with it").unwrap();
    let epoch = leader.epoch();
    let writing = std::thread::spawn(move || leader.barrier().map(|()| leader));
    relay.swallowed.recv().unwrap();
    // The database has committed; its answer is lost, and so is the connection.
    let count = "SELECT 1 / (count(*) = 3)::int FROM atoll.batches";
    statement(&database.address.to_string(), count).unwrap();
    relay.go_on.send(()).unwrap();
    let mut leader = writing.join().unwrap().unwrap();
    assert_eq!((leader.epoch(), leader.durable()), (epoch, BatchSeq(3)));
    leader.append(b"after").unwrap();
    leader.barrier().unwrap();
    drop(leader);
    let (_, contents) = follow(&database, "reader");
    let expected = [&b"before"[..], b"marked", b"with it", b"after"];
    let batches: Vec<_> = contents.batches.iter().map(|(_, batch)| batch.as_slice()).collect();
    assert_eq!(batches, expected);
}

/// A way to the database on which the answer to what holds certain bytes is lost once, with the connection.
struct Relay {
    address: Address,
    /// Hears when that has happened.
    swallowed: Receiver<()>,
    /// Lets connections through again.
    go_on: Sender<()>,
}

impl Relay {
    fn start(database: &Database, mark: &'static [u8]) -> Self {
        let text = database.address.to_string();
        let (scheme, rest) = text.split_once("://").unwrap();
        let (user, place) = rest.split_once('@').unwrap();
        let (server, path) = place.split_once('/').unwrap();
        let server = server.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let address = format!("{scheme}://{user}@{own}/{path}").parse().unwrap();
        let (swallow, swallowed) = channel();
        let (go_on, gate) = channel();
        let state = Arc::new((AtomicBool::new(true), swallow, Mutex::new(gate)));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                carry(client, server, mark, Arc::clone(&state));
            }
        });
        Self { address, swallowed, go_on }
    }
}

type Swallowing = (AtomicBool, Sender<()>, Mutex<Receiver<()>>);

fn carry(client: TcpStream, server: TcpStream, mark: &'static [u8], state: Arc<Swallowing>) {
    let armed = Arc::new(AtomicBool::new(false));
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (arm, is_wanted) = (Arc::clone(&armed), Arc::clone(&state));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let is_marked = buffer[..count].windows(mark.len()).any(|bytes| bytes == mark);
            if is_marked && is_wanted.0.swap(false, Ordering::SeqCst) {
                arm.store(true, Ordering::SeqCst);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (server, client);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if armed.load(Ordering::SeqCst) {
                state.1.send(()).unwrap();
                state.2.lock().unwrap().recv().unwrap();
                break;
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_batch_that_is_damaged_or_gone_is_named() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let mut leader = lead(&database, "leader");
    for _ in 0..3 {
        leader.append(b"batch").unwrap();
        leader.barrier().unwrap();
    }
    drop(leader);
    let server = database.address.to_string();
    let opened = || Standby::open(database.address.clone(), Database::member("reader"), 1);
    statement(&server, "UPDATE atoll.batches SET bytes = 'botch' WHERE seq = 2").unwrap();
    let error = opened().unwrap_err();
    assert!(
        matches!(&error, OpenError::Damaged(fault) if fault.to_string().contains("batch 2 is damaged")),
        "{error:?}"
    );
    statement(&server, "DELETE FROM atoll.batches WHERE seq = 2").unwrap();
    let error = opened().unwrap_err();
    assert!(
        matches!(&error, OpenError::Damaged(fault) if fault.to_string().contains("batch 2 is missing")),
        "{error:?}"
    );
}

#[test]
fn servers_with_different_cas_do_not_share_a_database() {
    let Some(database) = Database::fresh().unwrap() else { return };
    drop(lead(&database, "one"));
    let mut stranger = Database::member("stranger");
    stranger.authority = "other".to_owned();
    let refused = Standby::open(database.address.clone(), stranger, 1).unwrap_err();
    assert!(matches!(refused, OpenError::OtherAuthority { .. }), "{refused:?}");
}

#[test]
fn tables_of_the_first_version_are_brought_up_to_date_with_what_is_in_them() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let server = database.address.to_string();
    let first = include_str!("../../../control-plane/postgres/src/schema/0001_journal.sql");
    let version =
        "CREATE TABLE schema_version (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
        INSERT INTO schema_version (version) VALUES (1);";
    statement(&server, &format!("CREATE SCHEMA atoll; SET search_path TO atoll; {version} {first}")).unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'atoll' AND tablename IN ('runs', 'executions')";
    assert_eq!(statement(&server, tables).unwrap().trim(), "0");
    // What a server of that version has written: the journal's tables are the same since.
    let mut leader = lead(&database, "first");
    leader.append(b"one").unwrap();
    leader.checkpoint(b"state").unwrap();
    leader.append(b"two").unwrap();
    leader.barrier().unwrap();
    drop(leader);
    statement(&server, "DROP TABLE atoll.executions, atoll.runs; DELETE FROM atoll.schema_version WHERE version > 1")
        .unwrap();
    let (_, contents) = follow(&database, "second");
    assert_eq!(contents.checkpoint, Some((BatchSeq(1), b"state".to_vec())));
    assert_eq!(contents.batches, [(BatchSeq(2), b"two".to_vec())]);
    assert_eq!(statement(&server, tables).unwrap().trim(), "2");
    let newest = "SELECT max(version) FROM atoll.schema_version";
    let newest: u32 = statement(&server, newest).unwrap().trim().parse().unwrap();
    assert_eq!(newest, control_plane_postgres::SCHEMA_VERSION);
    statement(&server, "INSERT INTO atoll.schema_version (version) VALUES (1000)").unwrap();
    let newer = Standby::open(database.address.clone(), Database::member("older"), 1).unwrap_err();
    assert!(newer.to_string().contains("run the newer program"), "{newer}");
}

#[test]
fn an_inspection_sees_all_and_changes_nothing_while_a_leader_writes() {
    let Some(database) = Database::fresh().unwrap() else { return };
    let look = || control_plane_postgres::inspect(&database.address, 1).unwrap();
    assert!(look().is_none(), "there is nothing to look at, and nothing is made");
    let mut leader = lead(&database, "leader");
    leader.append(b"one").unwrap();
    leader.checkpoint(b"state").unwrap();
    leader.append(b"two").unwrap();
    leader.append(b"three").unwrap();
    leader.barrier().unwrap();
    let found = look().expect("a journal");
    assert!(found.fault.is_none());
    assert_eq!(found.checkpoint, Some((BatchSeq(1), Some(b"state".to_vec()))));
    assert_eq!(found.batches, [(BatchSeq(2), b"two".to_vec()), (BatchSeq(3), b"three".to_vec())]);
    statement(&database.address.to_string(), "UPDATE atoll.batches SET bytes = 'botch' WHERE seq = 3").unwrap();
    let found = look().expect("a journal");
    assert_eq!(found.batches.len(), 1);
    assert!(found.fault.is_some_and(|fault| fault.to_string().contains("batch 3")));
}
