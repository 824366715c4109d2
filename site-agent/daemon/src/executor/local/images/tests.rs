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
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let tell = move |pulled| sender.lock().expect("a lock").send(pulled).expect("somebody listens");
        let images = Images::open(folder.path(), engine.expect("an engine"), Arc::new(tell)).expect("a folder");
        Self { folder, images, told }
    }

    /// What comes of asking, once it is known.
    fn have(&mut self, image: &Image) -> Result<String, String> {
        let bundle = ObjectId::from_digest([7; 32]);
        match self.images.ask(image, self.folder.path(), bundle) {
            State::Ready(image) => Ok(image),
            State::Failed(message) => Err(message),
            State::InWork(name) => {
                let again = self.images.ask(image, self.folder.path(), bundle);
                assert!(matches!(again, State::InWork(same) if same == name), "it is under way once");
                let pulled = self.told.recv().expect("a thread");
                self.images.pulled(pulled.clone());
                pulled.1
            }
        }
    }

    fn calls(&self) -> String {
        let calls = fs::read_to_string(self.folder.path().join("calls")).expect("it was called");
        calls.lines().skip(1).map(|line| format!("{line}\n")).collect()
    }
}

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

#[test]
fn what_was_loaded_is_read_from_what_is_said() {
    assert_eq!(loaded("Getting image\nLoaded image: localhost/bb:latest\n"), ["localhost/bb:latest"]);
    assert_eq!(loaded("Loaded image ID: sha256:12\n"), ["sha256:12"]);
    assert_eq!(loaded("Loaded image(s): a:1,b:2\n"), ["a:1", "b:2"]);
    assert!(loaded("nothing\n").is_empty());
}
