//! The images that actions run in: had once at the site for all that name the same, and let go when room is needed.

mod let_go;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use atoll_model::action::Image;
use atoll_model::id::ObjectId;

use self::let_go::{Claims, Keeping, Note};
pub(super) use self::let_go::{LetGo, TellGone};
use super::containers::ContainerEngine;
use super::making::{Made, Making, State, Tell};
use crate::programs::{ask, wait};
use crate::shim::container::Engine;
use crate::shim::make_private;

const PULL_TIME_MAX: Duration = Duration::from_secs(1_800);
const QUESTION_TIME_MAX: Duration = Duration::from_secs(30);
/// Of what is told of a failure; all of it is in the log.
const REASON_CHARS_MAX: usize = 600;
/// What an engine knows the images by that came in an archive: the tag is the archive's digest.
const OF_ARCHIVES: &str = "localhost/atoll";

pub(super) struct Images {
    home: PathBuf,
    engine: ContainerEngine,
    /// What the engine knows them as, by their name with its digest, or the bundle and the path of their archive.
    ready: HashMap<String, String>,
    making: Making<String>,
    keeping: Keeping,
}

impl Images {
    pub(super) fn open(
        data_dir: &Path,
        engine: ContainerEngine,
        tell: Tell<String>,
        tell_gone: TellGone,
    ) -> io::Result<Self> {
        let home = data_dir.join("images");
        make_private(&home)?;
        let keeping = Keeping::open(&home, engine.engine, &engine.program, tell_gone)?;
        Ok(Self { home, engine, ready: HashMap::new(), making: Making::new("image", tell), keeping })
    }

    /// What the engine knows the image of the action as that stands in this folder.
    pub(super) fn ask(&mut self, image: &Image, action: &Path, bundle: ObjectId) -> State<String> {
        let (name, source) = match image {
            Image::Registry(reference) => (reference.clone(), Source::Registry(reference.clone())),
            Image::Archive(path) => (format!("{bundle}/{path}"), Source::Archive(action.join(path))),
        };
        if let Some(image) = self.ready.get(&name) {
            return match self.keeping.used(image, bundle) {
                Ok(()) => State::Ready(image.clone()),
                Err(error) => State::Failed(format!("it cannot be noted that the image {image} is used: {error}")),
            };
        }
        let log = self.home.join(format!("{}.log", &blake3::hash(name.as_bytes()).to_hex()[..32]));
        let (engine, program) = (self.engine.engine, self.engine.program.clone());
        let pull =
            Pull { engine, program, home: self.home.clone(), source, log, bundle, claims: self.keeping.claims() };
        self.making.begin(name, move || pull.carry_out())
    }

    /// Takes note of what was told.
    pub(super) fn pulled(&mut self, made: Made<String>) {
        let Some((name, image)) = self.making.ended(made) else { return };
        if let Err(error) = self.keeping.arrived(&image) {
            tracing::warn!(image, %error, "an image that was had here cannot be remembered, and stays");
        }
        self.ready.insert(name, image);
    }

    /// As [`Making::forgive`].
    pub(super) fn forgive(&mut self, name: &str) {
        self.making.forgive(name);
    }

    /// Begins to let go of what this agent has had, no needed action has asked for, and nobody has used for a while. Returns the
    /// actions that it was for.
    pub(super) fn let_go(&mut self, needed: &BTreeSet<ObjectId>, idle: Duration) -> BTreeSet<ObjectId> {
        let going = self.keeping.let_go(needed, idle);
        self.ready.retain(|_, image| going.iter().all(|note| note.image() != *image));
        going.iter().flat_map(Note::bundles).collect()
    }

    /// Takes note of what has become of it.
    pub(super) fn let_go_ended(&mut self, ended: Vec<LetGo>) {
        self.keeping.ended(ended);
    }

    /// A container could not be started: whether its image is still there is asked again.
    pub(super) fn doubt(&mut self) {
        self.ready.clear();
    }
}

#[derive(Debug)]
enum Source {
    Registry(String),
    /// A file of this machine.
    Archive(PathBuf),
}

/// What a thread does for one image.
struct Pull {
    engine: Engine,
    program: PathBuf,
    home: PathBuf,
    source: Source,
    log: PathBuf,
    /// The action that asks first.
    bundle: ObjectId,
    claims: Arc<Claims>,
}

impl Pull {
    fn carry_out(&self) -> Result<String, String> {
        let had = File::create(&self.log).and_then(|_| match &self.source {
            Source::Registry(reference) if self.engine == Engine::Apptainer => {
                let forms = [format!("docker://{reference}")];
                self.claimed(&self.file(reference.as_bytes()), |file| self.make_file(file, "pull", &forms))
            }
            Source::Registry(reference) => self.claimed(reference, |image| self.pull(image)),
            Source::Archive(path) => {
                let digest = digest(path)?;
                if self.engine == Engine::Apptainer {
                    let forms = ["docker-archive", "oci-archive"].map(|form| format!("{form}:{}", path.display()));
                    self.claimed(&self.file(digest.as_bytes()), |file| self.make_file(file, "build", &forms))
                } else {
                    self.claimed(&format!("{OF_ARCHIVES}:{digest}"), |tag| self.load(path, tag))
                }
            }
        });
        had.map_err(|error| {
            let what = match &self.source {
                Source::Registry(reference) => reference.clone(),
                Source::Archive(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            };
            format!("the image {what} cannot be had: {error} (all of it is in {})", self.log.display())
        })
    }

    /// Has an image that does not go meanwhile: the claim ends where it has come, or has not.
    fn claimed(&self, image: &str, have: impl FnOnce(&str) -> io::Result<()>) -> io::Result<String> {
        self.claims.claim(image);
        have(image).map(|()| image.to_owned()).inspect_err(|_| self.claims.release(image))
    }

    /// Has an image that is not there; from now on it is the agent's.
    fn anew(&self, image: &str, have: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let_go::write(&self.home, &Note::new(image, Vec::new(), self.bundle))?;
        have().inspect_err(|_| let_go::forget(&self.home, image))
    }

    fn pull(&self, reference: &str) -> io::Result<()> {
        if self.has(reference) {
            return Ok(());
        }
        self.anew(reference, || self.run(&["pull", "--quiet", reference]).map(drop))
    }

    /// Loads an archive. Whatever names of images are in it, the engine then knows it by its digest.
    fn load(&self, path: &Path, tag: &str) -> io::Result<()> {
        if self.has(tag) {
            return Ok(());
        }
        let before = self.names();
        self.anew(tag, || {
            let said = self.run(&["load", "--input", &path.to_string_lossy()])?;
            let image = match loaded(&said).as_slice() {
                [image] => (*image).to_owned(),
                [] => return Err(io::Error::other("there is no image in it")),
                several => {
                    let message = format!("there are {} images in it: save one alone", several.len());
                    return Err(io::Error::other(message));
                }
            };
            self.run(&["tag", &image, tag])?;
            let is_new = !image.starts_with("sha256:") && before.is_some_and(|before| !before.contains(&image));
            let names = if is_new { vec![image] } else { Vec::new() };
            let_go::write(&self.home, &Note::new(tag, names, self.bundle))
        })
    }

    /// The names of all images, if the engine says them.
    fn names(&self) -> Option<BTreeSet<String>> {
        let mut asking = Command::new(&self.program);
        asking.args(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let said = ask(&mut asking, QUESTION_TIME_MAX).ok().filter(|said| said.status.success())?;
        Some(said.stdout.lines().map(|name| name.trim().to_owned()).collect())
    }

    fn file(&self, name: &[u8]) -> String {
        self.home.join(format!("{}.sif", &blake3::hash(name).to_hex()[..32])).to_string_lossy().into_owned()
    }

    /// Makes the one file that Apptainer runs, in the first of these forms that it is in.
    fn make_file(&self, file: &str, how: &str, forms: &[String]) -> io::Result<()> {
        let file = Path::new(file);
        if file.exists() {
            return Ok(());
        }
        self.anew(&file.to_string_lossy(), || {
            let next = file.with_extension("next");
            let mut outcome = Ok(());
            for form in forms {
                outcome = self.run(&[how, "--force", &next.to_string_lossy(), form]).map(drop);
                if outcome.is_ok() {
                    File::open(&next)?.sync_all()?;
                    return fs::rename(&next, file);
                }
            }
            outcome
        })
    }

    fn has(&self, image: &str) -> bool {
        let mut asking = Command::new(&self.program);
        asking.args(["image", "inspect", "--format", "{{.Id}}", image]);
        ask(&mut asking, QUESTION_TIME_MAX).is_ok_and(|said| said.status.success())
    }

    /// Runs the engine; what it said since is in the log, and returned.
    fn run(&self, words: &[&str]) -> io::Result<String> {
        let before = usize::try_from(fs::metadata(&self.log)?.len()).unwrap_or_default();
        let log = File::options().append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let status: ExitStatus = wait(&mut command.spawn()?, PULL_TIME_MAX)?;
        let said = fs::read(&self.log)?.get(before..).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        if status.success() { Ok(said) } else { Err(io::Error::other(reason(&said))) }
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// What an engine says that it has loaded.
fn loaded(said: &str) -> Vec<&str> {
    let named = |line| {
        ["Loaded image: ", "Loaded image ID: ", "Loaded image(s): "]
            .iter()
            .find_map(|begin| str::strip_prefix(line, begin))
    };
    said.lines().filter_map(named).flat_map(|names| names.split(',')).map(str::trim).collect()
}

/// What an engine says last of what is wrong.
fn reason(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_error = |line: &&&str| ["Error", "FATAL", "error"].iter().any(|begin| line.starts_with(begin));
    let line = lines.iter().rfind(is_error).or(lines.last()).copied().unwrap_or("nothing is said of why");
    line.chars().take(REASON_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
