//! Images that the agent has had itself: remembered by files, and let go when nothing needs them. One that was there before is
//! not the agent's, and stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use atoll_model::id::ObjectId;
use serde::{Deserialize, Serialize};

use super::reason;
use crate::programs::ask;
use crate::shim::container::Engine;

/// How long an engine may take to remove an image.
const REMOVAL_TIME_MAX: Duration = Duration::from_secs(120);
const NOTE: &str = "had";

/// What the agent has an image for, as the next process of it is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    /// What the engine knows it as, or its file.
    image: String,
    /// Other names that it got when it was loaded.
    names: Vec<String>,
    /// Bundles of actions that have asked for it.
    asked_by: BTreeSet<String>,
}

/// An image of the agent's.
struct Had {
    note: Note,
    used: Instant,
}

/// What came of letting an image go.
pub(in crate::executor::local) struct LetGo {
    note: Note,
    result: Result<(), String>,
}

impl LetGo {
    /// The actions that it was for.
    pub(in crate::executor::local) fn bundles(&self) -> impl Iterator<Item = ObjectId> {
        self.note.bundles()
    }
}

/// Takes what a thread has let go.
pub(in crate::executor::local) type TellGone = Arc<dyn Fn(Vec<LetGo>) + Send + Sync>;

/// All images of the agent's. The folder that remembers them is read once.
pub(super) struct Keeping {
    home: PathBuf,
    engine: Engine,
    program: PathBuf,
    had: BTreeMap<String, Had>,
    claims: Arc<Claims>,
    tell: TellGone,
}

impl Keeping {
    pub(super) fn open(home: &Path, engine: Engine, program: &Path, tell: TellGone) -> io::Result<Self> {
        let mut had = BTreeMap::new();
        for entry in fs::read_dir(home)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != NOTE) {
                continue;
            }
            match read(&path) {
                Ok(note) => had.extend(note.map(|note| (note.image.clone(), Had { note, used: Instant::now() }))),
                // Nobody says any more that it is the agent's.
                Err(error) => tracing::warn!(path = %path.display(), %error, "an image stays whose note is damaged"),
            }
        }
        let (home, program) = (home.to_owned(), program.to_owned());
        Ok(Self { home, engine, program, had, claims: Arc::default(), tell })
    }

    pub(super) fn claims(&self) -> Arc<Claims> {
        Arc::clone(&self.claims)
    }

    /// An image is there now that a thread has claimed; if the thread has noted it, it is the agent's.
    pub(super) fn arrived(&mut self, image: &str) -> io::Result<()> {
        self.claims.release(image);
        if let Some(note) = read(&place(&self.home, image))? {
            // What asked for it is known better here.
            let asked_by = self.had.remove(image).map(|had| had.note.asked_by).unwrap_or_default();
            let note = Note { asked_by: &note.asked_by | &asked_by, ..note };
            self.had.insert(image.to_owned(), Had { note, used: Instant::now() });
        }
        Ok(())
    }

    /// An action is about to use the image.
    pub(super) fn used(&mut self, image: &str, bundle: ObjectId) -> io::Result<()> {
        let Some(had) = self.had.get_mut(image) else { return Ok(()) };
        had.used = Instant::now();
        if had.note.asked_by.insert(bundle.to_string()) { write(&self.home, &had.note) } else { Ok(()) }
    }

    /// Lets go of images that no needed action has asked for, and nobody has used for a while, in a thread of its own. Returns
    /// which.
    pub(super) fn let_go(&mut self, needed: &BTreeSet<ObjectId>, idle: Duration) -> Vec<Note> {
        let needed: BTreeSet<String> = needed.iter().map(ToString::to_string).collect();
        let is_idle = |had: &Had| had.note.asked_by.is_disjoint(&needed) && had.used.elapsed() >= idle;
        let going: Vec<String> = self
            .had
            .iter()
            .filter(|(image, had)| is_idle(had) && self.claims.let_go(image))
            .map(|(image, _)| image.clone())
            .collect();
        let notes: Vec<Note> = going.iter().filter_map(|image| self.had.remove(image)).map(|had| had.note).collect();
        if !notes.is_empty() {
            let removal = Removal {
                home: self.home.clone(),
                engine: self.engine,
                program: self.program.clone(),
                notes: notes.clone(),
            };
            let (tell, claims) = (Arc::clone(&self.tell), Arc::clone(&self.claims));
            let work = move || {
                let gone = removal.carry_out(&claims);
                tell(gone);
            };
            if let Err(error) = thread::Builder::new().name("atoll-image".to_owned()).spawn(work) {
                let kept =
                    |note: &Note| LetGo { note: note.clone(), result: Err(format!("no thread is to be had: {error}")) };
                going.iter().for_each(|image| self.claims.gone(image));
                (self.tell)(notes.iter().map(kept).collect());
            }
        }
        notes
    }

    /// What could not be let go stays the agent's, and is tried again later.
    pub(super) fn ended(&mut self, let_go: Vec<LetGo>) {
        for LetGo { note, result } in let_go {
            if let Err(error) = result {
                tracing::info!(image = note.image, error, "an image stays for now");
                self.had.entry(note.image.clone()).or_insert(Had { note, used: Instant::now() });
            }
        }
    }
}

impl Note {
    pub(super) fn new(image: &str, names: Vec<String>, bundle: ObjectId) -> Self {
        Self { image: image.to_owned(), names, asked_by: BTreeSet::from([bundle.to_string()]) }
    }

    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// The actions that it is for.
    pub(super) fn bundles(&self) -> impl Iterator<Item = ObjectId> {
        self.asked_by.iter().filter_map(|bundle| bundle.parse().ok())
    }
}

/// Remembers that the agent has the image, before it has it.
pub(super) fn write(home: &Path, note: &Note) -> io::Result<()> {
    let place = place(home, &note.image);
    let next = place.with_extension("next");
    fs::write(&next, serde_json::to_vec(note)?)?;
    File::open(&next)?.sync_all()?;
    fs::rename(next, place)
}

/// It has not come.
pub(super) fn forget(home: &Path, image: &str) {
    let place = place(home, image);
    if let Err(error) = fs::remove_file(&place)
        && error.kind() != io::ErrorKind::NotFound
    {
        // Nothing is let go by it that is not there.
        tracing::warn!(path = %place.display(), %error, "the note of an image stays");
    }
}

fn read(place: &Path) -> io::Result<Option<Note>> {
    match fs::read(place) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn place(home: &Path, image: &str) -> PathBuf {
    home.join(format!("{}.{NOTE}", &blake3::hash(image.as_bytes()).to_hex()[..32]))
}

/// What a thread does for images that go.
struct Removal {
    home: PathBuf,
    engine: Engine,
    program: PathBuf,
    notes: Vec<Note>,
}

impl Removal {
    fn carry_out(self, claims: &Claims) -> Vec<LetGo> {
        let mut ended = Vec::with_capacity(self.notes.len());
        for note in &self.notes {
            let result = self.remove(note);
            if result.is_ok() {
                forget(&self.home, &note.image);
            }
            claims.gone(&note.image);
            ended.push(LetGo { note: note.clone(), result });
        }
        ended
    }

    /// Without force: an engine refuses what a container uses.
    fn remove(&self, note: &Note) -> Result<(), String> {
        if self.engine == Engine::Apptainer {
            return match fs::remove_file(&note.image) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        for name in note.names.iter().chain([&note.image]) {
            let engine = |words: &[&str]| ask(Command::new(&self.program).args(words), REMOVAL_TIME_MAX);
            let said = engine(&["image", "rm", name]).map_err(|error| error.to_string())?;
            if !said.status.success() && engine(&["image", "inspect", name]).is_ok_and(|said| said.status.success()) {
                return Err(reason(&said.stderr));
            }
        }
        Ok(())
    }
}

/// Which images threads are having, and which are going: none is both.
#[derive(Debug, Default)]
pub(super) struct Claims {
    known: Mutex<Claimed>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Claimed {
    having: BTreeMap<String, u32>,
    going: BTreeSet<String>,
}

impl Claims {
    fn known(&self) -> MutexGuard<'_, Claimed> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now until it is released the image does not go. Waits for one that is going.
    pub(super) fn claim(&self, image: &str) {
        let known = self.known();
        let is_going = |known: &mut Claimed| known.going.contains(image);
        let mut known = self.changed.wait_while(known, is_going).unwrap_or_else(PoisonError::into_inner);
        *known.having.entry(image.to_owned()).or_default() += 1;
    }

    pub(super) fn release(&self, image: &str) {
        let mut known = self.known();
        if let Some(count) = known.having.get_mut(image) {
            *count -= 1;
            if *count == 0 {
                known.having.remove(image);
            }
        }
    }

    /// Whether the image may go, and so is going.
    fn let_go(&self, image: &str) -> bool {
        let mut known = self.known();
        !known.having.contains_key(image) && known.going.insert(image.to_owned())
    }

    fn gone(&self, image: &str) {
        self.known().going.remove(image);
        self.changed.notify_all();
    }
}
