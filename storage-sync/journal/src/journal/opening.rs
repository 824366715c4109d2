//! Opening a journal: guarded, checked whole, and put right where nothing that was acknowledged is at stake.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::backend::Backend;
use crate::directory::{Current, Directory, io_error};
use crate::error::{IntegrityFault, OpenError};
use crate::frame::FRAME_VERSION;
use crate::generation::{self, Contents, Description, LoadError, Looked};
use crate::guard::with_watchdog;
use crate::journal::{Home, Journal, LookedAt, make_generation, make_memory_generation};
use crate::options::{BatchSeq, JournalStats, Opened, Options, Repair};
use crate::space::Ballast;
use crate::store::{Store, StoreError, directory_bytes, open_store};
use crate::watermark::{Stood, Watermark};

/// Bytes that opening is given a further second for: far below what any disk reads.
const BYTES_PER_SECOND_OF_PATIENCE: u64 = 16 << 20;

type Loaded = (Box<dyn Store>, Contents);

/// A generation that was found and read.
struct Found {
    generation: u64,
    backend: Backend,
    store: Box<dyn Store>,
    contents: Contents,
}

/// Opens the journal in [`Options::directory`], making it if there is none.
///
/// # Errors
/// [`OpenError::Damaged`] leaves everything in place: an agent may then call [`crate::set_aside`] and open again, which
/// starts a journal with a new identity; a server has to ask a person.
pub fn open(options: Options) -> Result<Opened, OpenError> {
    match options.backend {
        Backend::Memory => open_in_memory(options),
        Backend::Sled | Backend::Redb => open_on_disk(options),
    }
}

fn open_on_disk(options: Options) -> Result<Opened, OpenError> {
    let path = options.directory.clone();
    let directory = Directory::acquire(&path, options.allow_network_file_system)?;
    let mut repaired = Vec::new();
    let stood = Watermark::read(&path).map_err(io_error("read", &Watermark::path_in(&path)))?;
    let found = find(&options, &directory, stood, &mut repaired)?;
    let created = found.is_none();
    let mut found = match found {
        Some(found) => found,
        None => create(&options, &directory)?,
    };
    let written_format = found.contents.description.format;
    if written_format > options.format {
        return Err(OpenError::Newer { found: written_format, supported: options.format });
    }
    let identity = found.contents.description.identity;
    let last = found.contents.last();
    check_watermark(&path, stood, identity, last, created, &mut repaired)?;
    bring_up_to_date(&options, &directory, &mut found, &mut repaired).map_err(|error| failed(&path, error))?;
    let watermark = Watermark::open(&path, identity, last).map_err(io_error("write", &Watermark::path_in(&path)))?;
    for generation in directory.generations().map_err(io_error("read", &path))? {
        if generation != found.generation {
            directory.remove_generation(generation);
        }
    }
    let ballast = Ballast::hold(&path, options.ballast_bytes);
    let home = Home::Disk { directory, watermark, ballast };
    Ok(opened(options, home, found, written_format, created, repaired))
}

fn opened(options: Options, home: Home, found: Found, format: u16, created: bool, repaired: Vec<Repair>) -> Opened {
    for repair in &repaired {
        tracing::warn!(directory = %options.directory.display(), "the journal was repaired: {repair}");
    }
    let Contents { description, checkpoint, batches, live_bytes, torn: _ } = found.contents;
    let last = batches.last().map_or(description.base(), |(seq, _)| *seq);
    let batch_bytes = batches.iter().map(|(_, batch)| batch.len() as u64).sum();
    let mut journal = Journal {
        options,
        home,
        store: Some(found.store),
        generation: found.generation,
        description,
        last,
        durable: last,
        pending: Vec::new(),
        pending_bytes: 0,
        failed: false,
        stats: JournalStats { live_bytes, batch_bytes, ..JournalStats::default() },
        looked_at: LookedAt::default(),
    };
    journal.look_at_disk();
    Opened {
        journal,
        checkpoint: checkpoint.map(|state| (BatchSeq(description.base()), state)),
        batches: batches.into_iter().map(|(seq, batch)| (BatchSeq(seq), batch)).collect(),
        format,
        created,
        repaired,
    }
}

/// Finds the generation that counts. None means that there is no journal here yet.
fn find(
    options: &Options,
    directory: &Directory,
    stood: Stood,
    repaired: &mut Vec<Repair>,
) -> Result<Option<Found>, OpenError> {
    let path = directory.path();
    match directory.current().map_err(io_error("read", &path.join("CURRENT")))? {
        Some(Ok(current)) => load_current(options, directory, current, repaired).map(Some),
        Some(Err(fault)) => {
            let found = find_without_pointer(options, directory)?;
            let Some(found) = found else { return Err(damaged(path, fault)) };
            repaired.push(Repair(format!("{fault}; generation {} is whole and was taken", found.generation)));
            Ok(Some(found))
        }
        None => match find_without_pointer(options, directory)? {
            Some(found) => Ok(Some(found)),
            // The pointer is written before the watermark: with neither, making the journal was cut short.
            None if matches!(stood, Stood::Absent) => Ok(None),
            None => Err(damaged(path, IntegrityFault::Description("CURRENT is missing".to_owned()))),
        },
    }
}

fn load_current(
    options: &Options,
    directory: &Directory,
    current: Current,
    repaired: &mut Vec<Repair>,
) -> Result<Found, OpenError> {
    let path = directory.path();
    let Current { generation, backend } = current;
    let home = directory.generation_path(generation);
    if !home.is_dir() {
        return Err(damaged(path, IntegrityFault::Description(format!("{} is missing", home.display()))));
    }
    let mut loaded = load(options, backend, &home, generation);
    if matches!(loaded, Err(LoadError::NoSpace)) {
        // Opening writes a little, and on a full disk the ballast is there for that.
        let _ = fs::remove_file(path.join("ballast"));
        loaded = load(options, backend, &home, generation);
    }
    if let (Err(LoadError::Fault(fault)), Backend::Sled) = (&loaded, backend)
        && move_derived_files_aside(&home).map_err(io_error("move a file in", &home))?
    {
        repaired
            .push(Repair(format!("{fault}; sled's snapshot and settings were moved aside and its log read instead")));
        loaded = load(options, backend, &home, generation);
    }
    let (store, contents) = loaded.map_err(|error| load_failed(path, error))?;
    Ok(Found { generation, backend, store, contents })
}

/// The newest generation that is whole. A generation is made whole before the pointer moves to it, and nothing is
/// appended to it before, so the newest whole one never knows less than the one that the pointer named.
fn find_without_pointer(options: &Options, directory: &Directory) -> Result<Option<Found>, OpenError> {
    let path = directory.path();
    for generation in directory.generations().map_err(io_error("read", path))?.into_iter().rev() {
        let home = directory.generation_path(generation);
        let backend = if home.join("journal.redb").exists() { Backend::Redb } else { Backend::Sled };
        match load(options, backend, &home, generation) {
            Ok((store, contents)) => {
                directory.set_current(Current { generation, backend }).map_err(io_error("write CURRENT in", path))?;
                return Ok(Some(Found { generation, backend, store, contents }));
            }
            Err(LoadError::Fault(fault)) => {
                tracing::warn!(generation, %fault, "a generation that no pointer names is not whole");
            }
            Err(error @ (LoadError::Newer(_) | LoadError::NoSpace)) => return Err(load_failed(path, error)),
        }
    }
    Ok(None)
}

fn create(options: &Options, directory: &Directory) -> Result<Found, OpenError> {
    let generation = 1;
    let description = new_description(options);
    let (store, live_bytes) = make_generation(options, directory, generation, description, None, &[])
        .map_err(|error| failed(directory.path(), error))?;
    let contents = Contents { description, checkpoint: None, batches: Vec::new(), live_bytes, torn: None };
    Ok(Found { generation, backend: options.backend, store, contents })
}

fn new_description(options: &Options) -> Description {
    Description { identity: uuid::Uuid::new_v4().as_u128(), format: options.format, checkpoint: None }
}

fn check_watermark(
    path: &Path,
    stood: Stood,
    identity: u128,
    last: u64,
    created: bool,
    repaired: &mut Vec<Repair>,
) -> Result<(), OpenError> {
    match stood {
        Stood::At { identity: marked, seq } if marked == identity && seq > last => {
            Err(damaged(path, IntegrityFault::AcknowledgedMissing { last, acknowledged: seq }))
        }
        Stood::At { identity: marked, .. } if marked != identity => {
            repaired.push(Repair("the watermark was of another journal and was replaced".to_owned()));
            Ok(())
        }
        Stood::Absent if !created => {
            repaired.push(Repair("there was no watermark; it was made again".to_owned()));
            Ok(())
        }
        Stood::Unreadable => {
            repaired.push(Repair("the watermark could not be read and was made again".to_owned()));
            Ok(())
        }
        Stood::At { .. } | Stood::Absent => Ok(()),
    }
}

/// Makes what was read durable, leaves the torn end behind, and carries the rest over to the wanted store and the owner's
/// newer format.
fn bring_up_to_date(
    options: &Options,
    directory: &Directory,
    found: &mut Found,
    repaired: &mut Vec<Repair>,
) -> Result<(), StoreError> {
    let contents = &mut found.contents;
    let upgraded = contents.description.format < options.format;
    contents.description.format = options.format;
    if found.backend == options.backend && contents.torn.is_none() {
        if upgraded {
            found.store.apply(&[contents.description.to_record()])?;
        }
        found.store.sync()?;
        return Ok(());
    }
    let generation = found.generation + 1;
    let (store, live_bytes) = make_generation(
        options,
        directory,
        generation,
        contents.description,
        contents.checkpoint.as_deref(),
        &contents.batches,
    )?;
    if let Some(seq) = contents.torn.take() {
        repaired.push(Repair(format!("batch {seq}, which nobody was told of, was not whole and was cut")));
    }
    if found.backend != options.backend {
        repaired.push(Repair(format!("it was carried over from {} to {}", found.backend, options.backend)));
    }
    found.store = store;
    found.generation = generation;
    found.backend = options.backend;
    contents.live_bytes = live_bytes;
    Ok(())
}

/// Reads the generation that counts, as far as it is sound, and changes nothing but what its store itself puts right.
/// Nothing if there is no journal.
pub(crate) fn look(options: &Options, directory: &Directory) -> Result<Option<(Current, u64, Looked)>, OpenError> {
    let path = directory.path();
    let current = match directory.current().map_err(io_error("read", &path.join("CURRENT")))? {
        Some(Ok(current)) => current,
        Some(Err(fault)) => return Err(damaged(path, fault)),
        None if directory.generations().map_err(io_error("read", path))?.is_empty() => return Ok(None),
        None => return Err(damaged(path, IntegrityFault::Description("CURRENT is missing".to_owned()))),
    };
    let home = directory.generation_path(current.generation);
    if !home.is_dir() {
        return Err(damaged(path, IntegrityFault::Description(format!("{} is missing", home.display()))));
    }
    let (cache_bytes, disk) = (options.cache_bytes, options.memory.clone());
    let looked = with_watchdog(patience(options, &home), move || {
        let store = open_store(current.backend, &home, current.generation, cache_bytes, &disk)?;
        generation::look(&*store).map(|looked| (store.disk_bytes(), looked))
    });
    let (disk_bytes, looked) =
        looked.map_err(LoadError::Fault).and_then(|looked| looked).map_err(|error| load_failed(path, error))?;
    Ok(Some((current, disk_bytes, looked)))
}

fn patience(options: &Options, home: &Path) -> Duration {
    options.patience + Duration::from_secs(directory_bytes(home) / BYTES_PER_SECOND_OF_PATIENCE)
}

/// Opens one generation's store again, as [`open`] does.
pub(super) fn load_generation(options: &Options, directory: &Directory, generation: u64) -> Result<Loaded, LoadError> {
    load(options, options.backend, &directory.generation_path(generation), generation)
}

/// Opens and reads a generation under the watchdog.
fn load(options: &Options, backend: Backend, home: &Path, generation: u64) -> Result<Loaded, LoadError> {
    let patience = patience(options, home);
    let (home, cache_bytes, disk) = (home.to_owned(), options.cache_bytes, options.memory.clone());
    let loaded = with_watchdog(patience, move || {
        let store = open_store(backend, &home, generation, cache_bytes, &disk)?;
        let contents = generation::load(&*store)?;
        Ok((store, contents))
    });
    loaded.map_err(LoadError::Fault)?
}

/// Moves sled's snapshots and settings out of its sight: its log holds everything, and the settings are ours. Returns
/// whether there were any.
fn move_derived_files_aside(home: &Path) -> io::Result<bool> {
    let mut moved = false;
    for entry in fs::read_dir(home)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text == "conf" || text.starts_with("snap.") {
            fs::rename(home.join(&name), home.join(format!("aside.{text}")))?;
            moved = true;
        }
    }
    Ok(moved)
}

fn damaged(directory: &Path, fault: IntegrityFault) -> OpenError {
    OpenError::Damaged { directory: directory.to_owned(), fault }
}

fn load_failed(directory: &Path, error: LoadError) -> OpenError {
    match error {
        LoadError::Fault(fault) => damaged(directory, fault),
        LoadError::Newer(found) => OpenError::Newer { found: u16::from(found), supported: u16::from(FRAME_VERSION) },
        LoadError::NoSpace => OpenError::NoSpace { directory: directory.to_owned() },
    }
}

fn failed(directory: &Path, error: StoreError) -> OpenError {
    load_failed(directory, LoadError::from(error))
}

fn open_in_memory(options: Options) -> Result<Opened, OpenError> {
    let disk = options.memory.clone();
    let path = options.directory.clone();
    {
        let mut state = disk.state();
        if state.locked {
            return Err(OpenError::Locked { directory: path, holder: "this process".to_owned() });
        }
        state.locked = true;
    }
    let result = find_or_create_in_memory(&options, &path);
    let (found, written_format, created) = match result {
        Ok(found) => found,
        Err(error) => {
            disk.state().locked = false;
            return Err(error);
        }
    };
    Ok(opened(options, Home::Memory, found, written_format, created, Vec::new()))
}

fn find_or_create_in_memory(options: &Options, path: &Path) -> Result<(Found, u16, bool), OpenError> {
    let current = options.memory.state().current;
    let backend = Backend::Memory;
    let Some(generation) = current else {
        let description = new_description(options);
        let (store, live_bytes) =
            make_memory_generation(options, 1, description, None, &[]).map_err(|error| failed(path, error))?;
        let contents = Contents { description, checkpoint: None, batches: Vec::new(), live_bytes, torn: None };
        return Ok((Found { generation: 1, backend, store, contents }, options.format, true));
    };
    let mut store = open_store(backend, path, generation, options.cache_bytes, &options.memory)
        .map_err(|error| failed(path, error))?;
    let mut contents = generation::load(&*store).map_err(|error| load_failed(path, error))?;
    let format = contents.description.format;
    if format > options.format {
        return Err(OpenError::Newer { found: format, supported: options.format });
    }
    contents.description.format = options.format;
    store
        .apply(&[contents.description.to_record()])
        .and_then(|()| store.sync().map(drop))
        .map_err(|error| failed(path, error))?;
    Ok((Found { generation, backend, store, contents }, format, false))
}
