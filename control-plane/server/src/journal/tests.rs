#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::os::unix::fs::FileExt as _;

use atoll_model::id::TokenId;
use atoll_model::time::Timestamp;
use control_plane_core::{Event, Request, RequestId};
use storage_sync_journal::{Journal, Opened, open};

use super::*;

const T0: Timestamp = Timestamp(1_800_000_000_000_000);

fn options(data_dir: &Path, backend: Backend, format: u16) -> Options {
    Options { ballast_bytes: 0, ..Options::new(data_dir.join("journal"), backend, format) }
}

fn opened(data_dir: &Path, backend: Backend) -> Journal {
    let Opened { journal, .. } = open(options(data_dir, backend, JOURNAL_FORMAT)).unwrap();
    journal
}

/// The facts of a token for a site, encoded as a batch.
fn batch(core: &mut ControlPlane, number: u64) -> Vec<u8> {
    let body = Request::CreateToken {
        token: TokenId::from_bits(u128::from(number)),
        secret_hash: [1; 32],
        site: format!("site-{number}").parse().unwrap(),
        labels: Default::default(),
        lifetime: std::time::Duration::from_secs(60),
    };
    let step = core.handle(Event::Request { request: RequestId(number), body }, T0);
    step.facts.iter().flat_map(|fact| postcard::to_stdvec(fact).unwrap()).collect()
}

/// A journal with a checkpoint after its second batch, and three more.
fn written(data_dir: &Path, backend: Backend) {
    let mut core = ControlPlane::recover(Config::default(), None, [], T0);
    let mut journal = opened(data_dir, backend);
    for number in 1..=5 {
        journal.append(&batch(&mut core, number)).unwrap();
        if number == 2 {
            journal.checkpoint(&postcard::to_stdvec(&core.snapshot()).unwrap()).unwrap();
        }
        journal.barrier().unwrap();
    }
}

#[test]
fn a_sound_journal_is_said_to_be_so_and_is_as_it_was() {
    for backend in [Backend::Sled, Backend::Redb] {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path(), backend);
        let found = StoredJournal::read(folder.path()).unwrap().verify();
        assert_eq!(found.problem, None);
        assert_eq!((found.sound, found.checkpoint_batch, found.batches, found.facts), (true, Some(2), 3, 3));
        assert_eq!((found.last_batch, found.acknowledged_batch, found.torn_batch), (5, Some(5), None));
        let journal = StoredJournal::read(folder.path()).unwrap();
        let facts: Vec<_> = journal.facts().map(Result::unwrap).collect();
        assert_eq!(facts.iter().map(|fact| (fact.batch, fact.number)).collect::<Vec<_>>(), [(3, 1), (4, 1), (5, 1)]);
        let line = serde_json::to_value(&facts[0]).unwrap();
        assert_eq!(line["fact"]["TokenCreated"]["site"], "site-3");
        assert_eq!(line["fact"]["TokenCreated"]["token"], TokenId::from_bits(3).to_string());
        let figures = journal.figures();
        assert_eq!((figures.store.as_str(), figures.facts_by_kind["TokenCreated"]), (backend.to_string().as_str(), 3));
        drop(journal);
        let again = open(options(folder.path(), backend, JOURNAL_FORMAT)).unwrap();
        assert_eq!((again.batches.len(), again.repaired.len()), (3, 0));
    }
}

#[test]
fn a_journal_that_is_not_there_or_in_use_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nothing");
    assert!(matches!(StoredJournal::read(&missing), Err(LookError::Absent(path)) if path == missing));
    assert!(!missing.exists());
    let journal = opened(folder.path(), Backend::Sled);
    let message = StoredJournal::read(folder.path()).unwrap_err().to_string();
    assert!(message.contains("is in use by process"), "{message}");
    drop(journal);
    assert!(StoredJournal::read(folder.path()).is_ok());
}

#[test]
fn e3_a_journal_of_a_newer_version_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let newer = JOURNAL_FORMAT + 1;
    drop(open(options(folder.path(), Backend::Sled, newer)).unwrap());
    let message = StoredJournal::read(folder.path()).unwrap_err().to_string();
    assert!(message.contains(&format!("format {newer}")) && message.contains("run the newer program"), "{message}");
    assert!(open(options(folder.path(), Backend::Sled, JOURNAL_FORMAT)).is_err());
    assert_eq!(open(options(folder.path(), Backend::Sled, newer)).unwrap().format, newer);
}

/// What the second of three batches of [`damaged`] holds.
const MARK: &[u8] = b"a batch that is easy to find in a file";

/// A journal of three batches with the second's bytes changed in one of its files.
fn damaged(data_dir: &Path, file: &str) -> StoredJournal {
    let mut core = ControlPlane::recover(Config::default(), None, [], T0);
    // The first barrier of a process is the store's; the batches after it stand in the log.
    let mut journal = opened(data_dir, Backend::Redb);
    journal.append(&batch(&mut core, 1)).unwrap();
    journal.barrier().unwrap();
    for bytes in [MARK.to_vec(), batch(&mut core, 3)] {
        journal.append(&bytes).unwrap();
        journal.barrier().unwrap();
    }
    drop(journal);
    if file != "ahead" {
        // The next process hands the log over to the store.
        drop(opened(data_dir, Backend::Redb));
    }
    let undecodable = StoredJournal::read(data_dir).unwrap().verify();
    let problem = undecodable.problem.unwrap();
    assert_eq!((undecodable.sound, problem.place.as_str()), (false, "batch 2, fact 1, byte 0"));

    let path = data_dir.join("journal/journal.1").join(file);
    let content = std::fs::read(&path).unwrap();
    let places: Vec<usize> =
        content.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK).map(|(place, _)| place).collect();
    assert!(!places.is_empty(), "the batch is in {file}");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for place in places {
        file.write_all_at(b"A", place as u64).unwrap();
    }
    StoredJournal::read(data_dir).unwrap()
}

#[test]
fn a16_damage_in_the_middle_is_reported_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let journal = damaged(folder.path(), "journal.redb");
    let found = journal.verify();
    let problem = found.problem.unwrap();
    assert_eq!(problem.place, "batch 2, part 0", "{problem}");
    assert!(problem.message.contains("checksum"), "{problem}");
    assert_eq!((found.sound, found.batches, found.last_batch), (false, 1, 1));
    assert_eq!(journal.facts().count(), 1, "what stands before the damage is there");
    assert!(open(options(folder.path(), Backend::Redb, JOURNAL_FORMAT)).is_err(), "and no server starts on it");
}

#[test]
fn a16_damage_in_the_log_ahead_of_the_store_is_reported_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let journal = damaged(folder.path(), "ahead");
    let found = journal.verify();
    let problem = found.problem.unwrap();
    assert_eq!(problem.place, "batch 2, part 0", "{problem}");
    assert_eq!((found.sound, found.batches, found.last_batch), (false, 1, 1));
    assert_eq!(journal.facts().count(), 1, "what stands before the damage is there");
    assert!(open(options(folder.path(), Backend::Redb, JOURNAL_FORMAT)).is_err(), "and no server starts on it");
}

#[test]
fn facts_that_contradict_each_other_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = opened(folder.path(), Backend::Sled);
    let fact = Fact::RunTagged { run: atoll_model::id::RunId::from_bits(1), tags: Default::default() };
    journal.append(&postcard::to_stdvec(&fact).unwrap()).unwrap();
    let fact = Fact::SiteDrained { site: atoll_model::id::SiteId(9), drained: true };
    journal.append(&postcard::to_stdvec(&fact).unwrap()).unwrap();
    journal.barrier().unwrap();
    drop(journal);
    let problem = StoredJournal::read(folder.path()).unwrap().verify().problem.unwrap();
    assert_eq!(problem.place, "the state");
    assert!(problem.message.contains("facts name sites that exist"), "{problem}");
}
