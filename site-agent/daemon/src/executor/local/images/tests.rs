use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use super::*;
use crate::config::{ContainerSettings, EngineChoice};

/// A site whose engine is a script: `$1` and what follows are what it is asked for.
struct Site {
    folder: tempfile::TempDir,
    images: Images,
    told: Receiver<Made<String>>,
    gone: Receiver<Vec<LetGo>>,
}

impl Site {
    fn new(choice: EngineChoice, script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let program = folder.path().join("engine");
        let text = format!("#!/bin/sh\ncd {}\necho \"$@\" >> calls\n{script}\n", folder.path().display());
        // Another process writes it: a file that this one has open for writing may not be run by what it starts meanwhile.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "printf '%s' \"$1\" > \"$0\" && chmod 755 \"$0\""]);
        assert!(shell.arg(&program).arg(text).status().expect("a shell").success());
        assert_ne!(fs::metadata(&program).expect("it is there").permissions().mode() & 0o111, 0);
        let settings = ContainerSettings { engine: Some(choice), program: Some(program), ..Default::default() };
        let engine = ContainerEngine::find(&settings, folder.path(), folder.path()).expect("it works");
        Self::open(folder, engine.expect("an engine"))
    }

    fn open(folder: tempfile::TempDir, engine: ContainerEngine) -> Self {
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let tell = move |pulled| sender.lock().expect("a lock").send(pulled).expect("somebody listens");
        let (gone_sender, gone) = channel();
        let gone_sender = Mutex::new(gone_sender);
        let tell_gone = move |gone| gone_sender.lock().expect("a lock").send(gone).expect("somebody listens");
        let images = Images::open(folder.path(), engine, Arc::new(tell), Arc::new(tell_gone));
        Self { folder, images: images.expect("a folder"), told, gone }
    }

    /// The next process of the agent.
    fn again(self) -> Self {
        let engine = self.images.engine.clone();
        Self::open(self.folder, engine)
    }

    /// Lets go of what nobody needs, and waits for it. Whether anything was to go.
    fn let_go(&mut self, needed: &[ObjectId], idle: Duration) -> bool {
        let going = self.images.let_go(&needed.iter().copied().collect(), idle);
        if going.is_empty() {
            return false;
        }
        let gone = self.gone.recv_timeout(Duration::from_secs(60)).expect("a thread");
        assert_eq!(gone.iter().flat_map(LetGo::bundles).collect::<BTreeSet<_>>(), going);
        self.images.let_go_ended(gone);
        true
    }

    /// What comes of asking, once it is known.
    fn have(&mut self, image: &Image) -> Result<String, String> {
        let bundle = BUNDLE;
        match self.images.ask(image, self.folder.path(), bundle) {
            State::Ready(image) => Ok(image),
            State::Failed(message) => Err(message),
            State::InWork(name) => {
                let again = self.images.ask(image, self.folder.path(), bundle);
                assert!(matches!(again, State::InWork(same) if same == name), "it is under way once");
                let pulled = self.told.recv().expect("a thread");
                self.images.pulled(pulled.clone());
                if pulled.1.is_ok() {
                    assert!(matches!(self.images.ask(image, self.folder.path(), bundle), State::Ready(_)));
                }
                pulled.1
            }
        }
    }

    fn calls(&self) -> String {
        let calls = fs::read_to_string(self.folder.path().join("calls")).expect("it was called");
        calls.lines().skip(1).map(|line| format!("{line}\n")).collect()
    }
}

const BUNDLE: ObjectId = ObjectId::from_digest([7; 32]);
const OF_REGISTRY: &str = "registry.example.org/tool@sha256:1234";

fn of_registry() -> Image {
    Image::Registry(OF_REGISTRY.to_owned())
}

#[test]
fn an_image_is_pulled_once() {
    let script = "case $1 in image) test -e there || exit 1;; pull) touch there;; esac";
    let mut site = Site::new(EngineChoice::Podman, script);
    for _ in 0..2 {
        assert_eq!(site.have(&of_registry()), Ok(OF_REGISTRY.to_owned()));
    }
    let asked = format!("image inspect --format {{{{.Id}}}} {OF_REGISTRY}\n");
    assert_eq!(site.calls(), format!("{asked}pull --quiet {OF_REGISTRY}\n"));
    site.images.doubt();
    assert_eq!(site.have(&of_registry()), Ok(OF_REGISTRY.to_owned()));
    assert_eq!(site.calls(), format!("{asked}pull --quiet {OF_REGISTRY}\n{asked}"), "it is still there");
}

#[test]
fn an_image_that_cannot_be_had_is_told_of_in_the_words_of_the_engine() {
    let script =
        "case $1 in image) exit 1;; pull) echo trying >&2; echo 'Error: manifest unknown' >&2; exit 125;; esac";
    let mut site = Site::new(EngineChoice::Podman, script);
    let message = site.have(&of_registry()).expect_err("there is none");
    assert!(message.contains(OF_REGISTRY) && message.contains("Error: manifest unknown"), "{message}");
    assert_eq!(site.have(&of_registry()), Err(message), "nobody is asked again so soon");
    assert_eq!(site.calls().matches("pull").count(), 1);
}

#[test]
fn an_archive_is_loaded_once_and_known_by_its_digest() {
    let script =
        "case $1 in image) test -e tagged;; tag) touch tagged;; load) echo 'Loaded image: localhost/a:1';; esac";
    let mut site = Site::new(
        EngineChoice::Docker,
        &format!("case $1 in info) echo '{{\"ServerVersion\": \"24\"}}';; esac\n{script}"),
    );
    let archive = site.folder.path().join("image.tar");
    fs::write(&archive, "layers").expect("a file");
    let tag = format!("localhost/atoll:{}", blake3::hash(b"layers").to_hex());
    let image = Image::Archive("image.tar".to_owned());
    assert_eq!(site.have(&image), Ok(tag.clone()));
    let loaded = format!("load --input {}\ntag localhost/a:1 {tag}\n", archive.display());
    assert!(site.calls().ends_with(&loaded), "{}", site.calls());
    site.images.doubt();
    assert_eq!(site.have(&image), Ok(tag));
    assert_eq!(site.calls().matches("load").count(), 1, "it is there");
    let missing = site.have(&Image::Archive("other.tar".to_owned())).expect_err("there is none");
    assert!(missing.starts_with("the image other.tar cannot be had"), "{missing}");
}

#[test]
fn apptainer_makes_a_file_of_whatever_form_it_is_in() {
    let script = "case $1 in pull) touch \"$3\";; build) case $4 in oci*) touch \"$3\";; *) echo 'FATAL: no' >&2; exit 255;; esac;; esac";
    let mut site = Site::new(EngineChoice::Apptainer, script);
    let pulled = site.have(&of_registry()).expect("an image");
    assert!(Path::new(&pulled).is_file() && pulled.ends_with(".sif"), "{pulled}");
    assert!(site.calls().contains(&format!("docker://{OF_REGISTRY}")));
    fs::write(site.folder.path().join("image.tar"), "layers").expect("a file");
    let built = site.have(&Image::Archive("image.tar".to_owned())).expect("an image");
    assert!(Path::new(&built).is_file() && built != pulled);
    assert!(site.calls().contains(" docker-archive:") && site.calls().contains(" oci-archive:"));
}

/// An engine that has an image from its pull to its removal.
const WITH_ONE: &str =
    "case $1 in image) case $2 in rm) rm there;; *) test -e there || exit 1;; esac;; pull) touch there;; esac";

#[test]
fn an_image_goes_that_no_needed_action_has_asked_for_and_is_pulled_again_when_one_does() {
    let mut site = Site::new(EngineChoice::Podman, WITH_ONE);
    site.have(&of_registry()).expect("an image");
    assert!(!site.let_go(&[BUNDLE], Duration::ZERO), "it is needed");
    assert!(!site.let_go(&[], Duration::from_secs(3_600)), "it was used lately");
    assert!(!site.calls().contains("image rm"));
    assert!(site.let_go(&[], Duration::ZERO));
    assert!(site.calls().ends_with(&format!("image rm {OF_REGISTRY}\n")), "{}", site.calls());
    assert!(!site.let_go(&[], Duration::ZERO), "it is gone");
    site.have(&of_registry()).expect("an image");
    assert_eq!(site.calls().matches("pull --quiet").count(), 2);
}

#[test]
fn the_next_process_knows_which_images_were_had_here_and_for_what() {
    let mut site = Site::new(EngineChoice::Podman, WITH_ONE);
    site.have(&of_registry()).expect("an image");
    let mut next = site.again();
    assert!(!next.let_go(&[BUNDLE], Duration::ZERO), "an execution of it may go on");
    assert!(next.let_go(&[], Duration::ZERO));
    let mut last = next.again();
    assert!(!last.let_go(&[], Duration::ZERO));
}

#[test]
fn an_image_that_was_there_before_stays() {
    let mut site = Site::new(EngineChoice::Podman, "");
    site.have(&of_registry()).expect("it is there");
    assert!(!site.let_go(&[], Duration::ZERO));
    assert!(!site.again().let_go(&[], Duration::ZERO));
}

#[test]
fn an_image_that_the_engine_does_not_let_go_is_tried_again() {
    let script = "case $1 in image) case $2 in rm) test -e free || { echo 'Error: it is in use' >&2; exit 2; }; rm there;; \
                  *) test -e there || exit 1;; esac;; pull) touch there;; esac";
    let mut site = Site::new(EngineChoice::Podman, script);
    site.have(&of_registry()).expect("an image");
    assert!(site.let_go(&[], Duration::ZERO));
    assert!(site.folder.path().join("there").exists());
    fs::write(site.folder.path().join("free"), "").expect("a file");
    assert!(site.let_go(&[], Duration::ZERO), "it is still the agent's");
    assert!(!site.folder.path().join("there").exists());
    assert!(!site.let_go(&[], Duration::ZERO));
}

#[test]
fn with_an_archive_goes_the_name_that_came_with_it_unless_it_was_there_before() {
    let script = "case $1 in info) echo '{\"ServerVersion\": \"24\"}';; images) cat names 2>/dev/null || true;; \
                  image) test $2 = rm || test -e tagged;; tag) touch tagged;; load) echo 'Loaded image: localhost/a:1';; esac";
    let removed = |names: &str| {
        let mut site = Site::new(EngineChoice::Docker, script);
        fs::write(site.folder.path().join("names"), names).expect("a file");
        fs::write(site.folder.path().join("image.tar"), "layers").expect("a file");
        let tag = site.have(&Image::Archive("image.tar".to_owned())).expect("an image");
        assert!(site.let_go(&[], Duration::ZERO));
        let calls = site.calls();
        assert!(calls.ends_with(&format!("image rm {tag}\n")), "{calls}");
        calls.contains("image rm localhost/a:1\n")
    };
    assert!(removed("localhost/other:1\n"));
    assert!(!removed("localhost/a:1\n"));
}

#[test]
fn the_file_of_an_image_goes_where_apptainer_runs_it() {
    let mut site = Site::new(EngineChoice::Apptainer, "case $1 in pull) touch \"$3\";; esac");
    let file = site.have(&of_registry()).expect("an image");
    assert!(site.let_go(&[], Duration::ZERO));
    assert!(!Path::new(&file).exists());
    assert_eq!(site.have(&of_registry()), Ok(file));
}

#[test]
fn what_was_loaded_is_read_from_what_is_said() {
    assert_eq!(loaded("Getting image\nLoaded image: localhost/bb:latest\n"), ["localhost/bb:latest"]);
    assert_eq!(loaded("Loaded image ID: sha256:12\n"), ["sha256:12"]);
    assert_eq!(loaded("Loaded image(s): a:1,b:2\n"), ["a:1", "b:2"]);
    assert!(loaded("nothing\n").is_empty());
}
