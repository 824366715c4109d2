//! Actions with the runtime `container`, with a real podman.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use atoll_model::id::ExecutionId;
use atoll_model::resources::Resources;
use atoll_model::session::{
    Binding, BindingSource, DeployedState, FailureReason, FinishedElement, Outcome, SiteCommand, StepTemplate,
    TemplateWork,
};
use atoll_model::value::{ObjectKind, ObjectRef, Type, Value};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::accounts::Accounts;
use crate::site::{Site, eventually, output};

/// A site with an action that is a container, whose command is `sh main.sh`.
struct Containing {
    site: Site,
    bundle: ObjectRef,
    outputs: Vec<(&'static str, Type)>,
}

fn podman(arguments: &[&str]) -> Output {
    Command::new("podman").args(arguments).output().unwrap()
}

/// Whether this machine has what these tests need. A complete run of the tests takes no for a failure.
fn has_podman() -> bool {
    let works = |mut command: Command| command.output().is_ok_and(|said| said.status.success());
    let mut asked = Command::new("podman");
    asked.arg("info");
    if works(asked) && Path::new("/bin/busybox").exists() {
        return true;
    }
    eprintln!("SKIPPED: there is no podman that answers, or no static busybox (busybox-static)");
    assert!(std::env::var_os("CI").is_none(), "CI has podman");
    false
}

fn told(arguments: &[&str]) -> String {
    let said = podman(arguments);
    assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}

/// Removes an image. Podman says no while a container of anybody goes in the same moment.
fn remove_image(name: &str) {
    if !(0..9).any(|_| podman(&["rmi", "--force", name]).status.success()) {
        told(&["rmi", "--force", name]);
    }
}

/// Makes an image of its own, which tells what it is. Returns the name that podman knows it by.
fn make_image(scratch: &Path) -> String {
    let root = scratch.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "sleep", "id", "ls", "touch", "dd", "env", "wc", "mkdir", "kill"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let unique = uuid::Uuid::now_v7().simple().to_string();
    fs::write(root.join("unique"), &unique).unwrap();
    let name = format!("localhost/atoll-test-{unique}");
    let packed = scratch.join("root.tar");
    let tar = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&packed).arg(".").status().unwrap();
    assert!(tar.success());
    told(&["import", "--quiet", "--change", "CMD [\"cat\",\"/unique\"]", packed.to_str().unwrap(), &name]);
    fs::remove_dir_all(&root).unwrap();
    name
}

/// Writes an archive with such an image, which podman then does not know any more.
fn write_image(scratch: &Path, archive: &Path) {
    let name = make_image(scratch);
    told(&["save", "--quiet", "--output", archive.to_str().unwrap(), &name]);
    fs::set_permissions(archive, fs::Permissions::from_mode(0o644)).unwrap();
    remove_image(&name);
}

/// A registry on this machine.
struct Registry {
    folder: TempDir,
    address: String,
    process: Child,
}

impl Registry {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let settings = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '{address}' }}\n",
            folder.path().join("registry").display()
        );
        let file = folder.path().join("registry.yaml");
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(process) = command.spawn() else {
            eprintln!("SKIPPED: there is no registry (docker-registry)");
            assert!(std::env::var_os("CI").is_none(), "CI has a registry");
            return None;
        };
        Some(Self { folder, address, process })
    }

    /// Pushes an image, which podman then does not know any more. Returns its name with its digest.
    async fn push(&self) -> String {
        eventually("the start of a registry", || TcpStream::connect(&self.address).ok()).await;
        let (name, digest) = (make_image(self.folder.path()), self.folder.path().join("digest"));
        let pushed = format!("{}/team/tool", self.address);
        told(&["push", "--quiet", "--tls-verify=false", "--digestfile", digest.to_str().unwrap(), &name, &pushed]);
        remove_image(&name);
        format!("{pushed}@{}", fs::read_to_string(digest).unwrap().trim())
    }

    /// A podman that believes the registry without a certificate, and notes what it pulls.
    fn podman(&self) -> PathBuf {
        let (program, trusted) = (self.folder.path().join("podman"), self.folder.path().join("registries.conf"));
        fs::write(&trusted, format!("[[registry]]\nlocation = {:?}\ninsecure = true\n", self.address)).unwrap();
        let script = format!(
            "#!/bin/sh\n[ \"$1\" != pull ] || echo \"$3\" >> {0}/pulled\nCONTAINERS_REGISTRIES_CONF={0}/registries.conf exec podman \"$@\"\n",
            self.folder.path().display()
        );
        // Another process writes it: a file that this one has open for writing may not be run by what it starts meanwhile.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "printf '%s' \"$1\" > \"$0\" && chmod 755 \"$0\""]);
        assert!(shell.arg(&program).arg(script).status().unwrap().success());
        program
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Containing {
    /// `manifest` is what `action.yaml` says beside its name; in the script `@` stands for the scratch folder.
    async fn start(manifest: &str, outputs: &[(&'static str, &str, Type)], script: &str) -> Self {
        Self::start_by(Path::new("podman"), manifest, outputs, script).await
    }

    async fn start_by(program: &Path, manifest: &str, outputs: &[(&'static str, &str, Type)], script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (data, scratch) = (folder.path().join("data"), folder.path().join("scratch"));
        // What a script waits for, and leaves behind, is outside of its container.
        let shown = format!("--volume={0}:{0}", scratch.display());
        let settings = format!("[container]\nengine = \"podman\"\nprogram = {program:?}\narguments = [{shown:?}]");
        let site = Site::start_in(folder, data, &settings).await;
        Self::at(site, manifest, outputs, script).await
    }

    async fn at(mut site: Site, manifest: &str, outputs: &[(&'static str, &str, Type)], script: &str) -> Self {
        let action = site.scratch().join("action");
        fs::create_dir(&action).unwrap();
        let declared: String = outputs.iter().map(|(name, declared, _)| format!("  {name}: {declared}\n")).collect();
        let declared = if outputs.is_empty() { String::new() } else { format!("outputs:\n{declared}") };
        let manifest = format!("name: act\nversion: '1'\nruntime: container\n{manifest}{declared}");
        if manifest.contains("./image.tar") {
            write_image(&site.scratch(), &action.join("image.tar"));
        }
        fs::write(action.join("action.yaml"), manifest).unwrap();
        fs::write(action.join("main.sh"), script.replace('@', site.scratch().to_str().unwrap())).unwrap();
        let mut step = site.step("cp -r @/action \"$ATOLL_OUTPUTS/bundle\"");
        step.outputs = vec![output("bundle", Type::Directory)];
        let stored = site.run_step(step);
        let outcome = site.control.finished(stored).await;
        let [Value::Directory(bundle)] = outcome.outputs.as_slice() else { panic!("no bundle: {outcome:?}") };
        let bundle = ObjectRef { id: bundle.object, kind: ObjectKind::Tree, bytes: bundle.bytes };
        let outputs = outputs.iter().map(|(name, _, r#type)| (*name, r#type.clone())).collect();
        Self { site, bundle, outputs }
    }

    /// One whose image is an archive in its folder.
    async fn of_archive(outputs: &[(&'static str, &str, Type)], script: &str) -> Self {
        Self::start("image: ./image.tar\ncommand: [sh, main.sh]\n", outputs, script).await
    }

    fn step(&mut self) -> StepTemplate {
        let work = TemplateWork::Container { bundle: self.bundle, signatures: Vec::new() };
        let outputs = self.outputs.iter().map(|(name, r#type)| output(name, r#type.clone())).collect();
        StepTemplate { work, outputs, ..self.site.step("") }
    }

    async fn run(&mut self) -> FinishedElement {
        let step = self.step();
        let execution = self.site.run_step(step);
        self.site.control.finished(execution).await
    }

    async fn run_with(&mut self, resources: Resources) -> FinishedElement {
        let step = StepTemplate { resources, ..self.step() };
        let execution = self.site.run_step(step);
        self.site.control.finished(execution).await
    }

    /// Starts one execution, and waits until its script has left a line in this file.
    async fn begin(&mut self, trace: &str) -> ExecutionId {
        let step = self.step();
        let execution = self.site.run_step(step);
        self.site.trace(trace).await;
        execution
    }

    /// The containers of this site, whatever has become of them.
    fn containers(&self) -> Vec<String> {
        let prefix = format!("name=^atoll-{}", &blake3_hex(self.site.data())[..12]);
        let said = told(&["ps", "--all", "--filter", &prefix, "--format", "{{.Names}} {{.Status}}"]);
        said.lines().map(str::to_owned).collect()
    }

    async fn nothing_is_left(&self) {
        eventually("the end of all containers", || self.containers().is_empty().then_some(())).await;
    }

    /// The number that podman has given to the one container that runs.
    fn id(&self) -> String {
        let prefix = format!("name=^atoll-{}", &blake3_hex(self.site.data())[..12]);
        told(&["ps", "--no-trunc", "--filter", &prefix, "--format", "{{.ID}}"])
    }

    fn log(&self, object: Option<ObjectRef>) -> String {
        let hex = object.unwrap().id.hex();
        fs::read_to_string(self.site.data().join("store/objects").join(&hex[..2]).join(&hex[2..])).unwrap()
    }
}

impl Drop for Containing {
    fn drop(&mut self) {
        let archive = self.site.scratch().join("action/image.tar");
        if let Ok(content) = fs::read(&archive) {
            // It was made for this test alone, and has the name too that it has in the archive.
            let tag = format!("localhost/atoll:{}", blake3::hash(&content).to_hex());
            let known = podman(&["image", "inspect", "--format", "{{.Id}}", &tag]);
            if known.status.success() {
                podman(&["rmi", "--force", String::from_utf8_lossy(&known.stdout).trim()]);
            }
        }
    }
}

fn blake3_hex(path: &Path) -> String {
    blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex().to_string()
}

/// Control groups of a container, which its engine makes and takes away.
fn groups_of(id: &str) -> String {
    assert_eq!(id.len(), 64, "{id}");
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("*{id}*")]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).into_owned()
}

fn failure(end: FinishedElement) -> (FailureReason, String) {
    match end.outcome {
        Outcome::Failed { reason, message, .. } => (reason, message),
        other => panic!("it has not failed: {other:?}"),
    }
}

/// Leaves a line when it starts, and waits for a gate.
const GATED: &str = "echo $$ >> @/starts; until [ -e @/gate ]; do sleep 0.02; done; echo done > $ATOLL_OUTPUTS/said";

#[tokio::test]
async fn values_and_files_go_into_a_container_and_come_out_of_it() {
    if !has_podman() {
        return;
    }
    let script = r#"
echo "$words of $count at $ATOLL_SITE in $(cat /unique | wc -c) letters" > "$ATOLL_OUTPUTS/said"
cat "$text" > "$ATOLL_OUTPUTS/copy"
mkdir "$ATOLL_OUTPUTS/folder"; echo below > "$ATOLL_OUTPUTS/folder/file"
touch "$text" 2> /dev/null || echo "inputs are read-only"
touch "$ATOLL_ACTION/x" 2> /dev/null || echo "actions are read-only"
touch "$TMPDIR/x" x || echo "there is nowhere to write"
echo "network: $(ls /sys/class/net)"
echo "work: $PWD, $(ls "$HOME")"
"#;
    let outputs =
        [("said", "string", Type::String), ("copy", "file", Type::File), ("folder", "directory", Type::Directory)];
    let manifest =
        "image: ./image.tar\ncommand: [sh, main.sh]\ninputs: { words: string, count: integer, text: file }\n";
    let mut acting = Containing::start(manifest, &outputs, script).await;
    let mut make = acting.site.step("echo hello > \"$ATOLL_OUTPUTS/text.txt\"");
    make.outputs = vec![output("text.txt", Type::File)];
    let made = acting.site.run_step(make);
    let text = acting.site.control.finished(made).await.outputs.remove(0);
    let binding = |name: &str, value: Value| Binding { name: name.to_owned(), source: BindingSource::Value(value) };
    let step = acting.step();
    let words = Value::string("a, b 'c'\nd");
    let bindings = vec![binding("words", words), binding("count", Value::Integer(3)), binding("text", text.clone())];
    let execution = acting.site.run_bound(step, bindings);
    let end = acting.site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded, "{:?}", end.logs);
    let [Value::String(said), Value::File(copy), Value::Directory(_)] = end.outputs.as_slice() else {
        panic!("{:?}", end.outputs)
    };
    assert_eq!(&**said, "a, b 'c'\nd of 3 at edge in 32 letters");
    let Value::File(text) = text else { panic!("{text:?}") };
    assert_eq!(copy.object, text.object);
    let log = acting.log(end.logs.stdout);
    assert_eq!(log, "inputs are read-only\nactions are read-only\nnetwork: lo\nwork: /atoll/work, x\n", "{end:?}");
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn without_a_command_the_image_runs_its_own() {
    if !has_podman() {
        return;
    }
    let mut acting = Containing::start("image: ./image.tar\n", &[], "").await;
    let end = acting.run().await;
    assert_eq!(end.outcome, Outcome::Succeeded);
    assert_eq!(acting.log(end.logs.stdout).len(), 32);
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn the_exit_code_is_that_of_the_command_and_an_engine_is_quoted() {
    if !has_podman() {
        return;
    }
    let mut acting = Containing::of_archive(&[], "echo 'Error: of its own' >&2; exit 7").await;
    let end = acting.run().await;
    let Outcome::Failed { reason: FailureReason::ExitCode, exit_code: Some(7), .. } = end.outcome else {
        panic!("{:?}", end.outcome)
    };
    assert_eq!(acting.log(end.logs.stderr), "Error: of its own\n");
    let manifest = "image: ./image.tar\ncommand: [no-such-program]\n";
    let mut missing = Containing::start(manifest, &[], "").await;
    let (reason, message) = failure(missing.run().await);
    assert_eq!(reason, FailureReason::NotExecutable);
    assert!(message.contains("no-such-program") && message.contains("not found"), "{message}");
    acting.nothing_is_left().await;
    missing.nothing_is_left().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_a_failure_that_says_why() {
    if !has_podman() {
        return;
    }
    // Nobody listens at this port.
    let image = format!("localhost:1/nobody/has-it@sha256:{}", "0".repeat(64));
    let mut acting = Containing::start(&format!("image: {image}\n"), &[], "").await;
    let (reason, message) = failure(acting.run().await);
    assert_eq!(reason, FailureReason::NotExecutable);
    assert!(message.contains(&image) && message.contains("refused"), "{message}");
    fs::write(acting.site.scratch().join("action/image.tar"), "no archive").unwrap();
    let mut broken = Containing::of_archive(&[], "").await;
    let archive = broken.site.scratch().join("action");
    fs::write(archive.join("image.tar"), "no archive").unwrap();
    let mut step = broken.site.step("cp -r @/action \"$ATOLL_OUTPUTS/bundle\"");
    step.outputs = vec![output("bundle", Type::Directory)];
    let stored = broken.site.run_step(step);
    let outcome = broken.site.control.finished(stored).await;
    let [Value::Directory(bundle)] = outcome.outputs.as_slice() else { panic!("no bundle: {outcome:?}") };
    broken.bundle = ObjectRef { id: bundle.object, kind: ObjectKind::Tree, bytes: bundle.bytes };
    let (_, message) = failure(broken.run().await);
    assert!(message.contains("the image image.tar cannot be had"), "{message}");
}

#[tokio::test]
async fn an_image_of_a_registry_is_pulled_once_for_all_that_wait_for_it() {
    let Some(registry) = has_podman().then(Registry::start).flatten() else { return };
    let image = registry.push().await;
    let manifest = format!("image: {image}\n");
    let mut acting = Containing::start_by(&registry.podman(), &manifest, &[], "").await;
    let step = acting.step();
    for execution in acting.site.run_elements(step, 3) {
        let end = acting.site.control.finished(execution).await;
        assert_eq!(end.outcome, Outcome::Succeeded);
        assert_eq!(acting.log(end.logs.stdout).len(), 32);
    }
    let pulled = || fs::read_to_string(registry.folder.path().join("pulled")).unwrap();
    assert_eq!(pulled(), format!("{image}\n"));
    // Somebody makes room: what is in the way of one execution is not in the way of the next.
    remove_image(&image);
    let (reason, message) = failure(acting.run().await);
    assert_eq!(reason, FailureReason::NotExecutable);
    assert!(message.contains("image not known"), "{message}");
    assert_eq!(acting.run().await.outcome, Outcome::Succeeded);
    assert_eq!(pulled().lines().count(), 2);
    acting.nothing_is_left().await;
    remove_image(&image);
}

#[tokio::test]
async fn a_container_that_is_cancelled_or_takes_too_long_ends_with_all_that_is_in_it() {
    if !has_podman() {
        return;
    }
    let mut acting = Containing::of_archive(&[], &format!("sleep 600 & {GATED}")).await;
    let execution = acting.begin("starts").await;
    let id = acting.id();
    assert_ne!(groups_of(&id), "");
    acting.site.cancel(execution);
    assert_eq!(acting.site.control.finished(execution).await.outcome, Outcome::Cancelled);
    assert_eq!(groups_of(&id), "");
    assert_eq!(acting.containers(), [] as [String; 0], "it is gone before that is told");
    let limit = Resources { time: Some(Duration::from_secs(2)), cpu_millis: 500, ..Resources::default() };
    let (reason, _) = failure(acting.run_with(limit).await);
    assert_eq!(reason, FailureReason::TimedOut);
    assert_eq!(acting.containers(), [] as [String; 0]);
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn memory_that_ran_out_is_told_from_failure() {
    if !has_podman() {
        return;
    }
    let script = "if [ -e @/gate ]; then exit 3; fi; dd if=/dev/zero of=/dev/null bs=200M count=1";
    let mut acting = Containing::of_archive(&[], script).await;
    let limit = || Resources { memory_bytes: Some(32 << 20), cpu_millis: 500, ..Resources::default() };
    let (reason, message) = failure(acting.run_with(limit()).await);
    assert_eq!(reason, FailureReason::OutOfMemory, "{message}");
    acting.site.open_gate("gate");
    let (reason, _) = failure(acting.run_with(limit()).await);
    assert_eq!(reason, FailureReason::ExitCode);
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_writes_no_more_to_its_folders_than_it_may() {
    if !has_podman() {
        return;
    }
    let script = "for i in 1 2 3 4; do dd if=/dev/zero of=$i bs=10M count=1; done; sleep 60";
    let mut acting = Containing::of_archive(&[], script).await;
    let mut resources = Resources::default();
    resources.confinement.scratch_bytes = Some(20_000_000);
    let (reason, message) = failure(acting.run_with(resources).await);
    assert_eq!(reason, FailureReason::NoSpace, "{message}");
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_that_runs_is_found_again_by_the_next_agent() {
    if !has_podman() {
        return;
    }
    let mut acting = Containing::of_archive(&[("said", "string", Type::String)], GATED).await;
    let execution = acting.begin("starts").await;
    for _ in 0..2 {
        acting.site.kill_agent();
        acting.site.start_agent().await;
    }
    assert_eq!(acting.containers().len(), 1);
    acting.site.open_gate("gate");
    assert_eq!(acting.site.control.finished(execution).await.outputs, [Value::string("done")]);
    assert_eq!(acting.site.trace("starts").await.lines().count(), 1, "it has run once");
    acting.nothing_is_left().await;
    // The next one finds its image without loading it again, and a slot that is as new.
    assert_eq!(acting.run().await.outputs, [Value::string("done")]);
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_that_nobody_watches_over_any_more_is_ended() {
    if !has_podman() {
        return;
    }
    let mut acting = Containing::of_archive(&[], GATED).await;
    let execution = acting.begin("starts").await;
    let (running, id) = (acting.site.shims(), acting.id());
    acting.site.kill_agent();
    for shim in running {
        kill_process(shim, Signal::KILL).unwrap();
    }
    assert_ne!(groups_of(&id), "");
    acting.site.start_agent().await;
    let end = acting.site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Interrupted { .. }), "{:?}", end.outcome);
    assert_eq!(acting.containers(), [] as [String; 0], "nothing of it runs beside a next attempt");
    assert_eq!(groups_of(&id), "");
    // … and the same where the agent is there when it happens.
    let execution = {
        fs::remove_file(acting.site.scratch().join("starts")).unwrap();
        acting.begin("starts").await
    };
    for shim in acting.site.shims() {
        kill_process(shim, Signal::KILL).unwrap();
    }
    let end = acting.site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Interrupted { .. }), "{:?}", end.outcome);
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn containers_are_adopted_side_by_side_with_processes() {
    if !has_podman() {
        return;
    }
    let mut acting = Containing::of_archive(&[], "true").await;
    let mut paths: Vec<PathBuf> = Vec::new();
    for _ in 0..2 {
        assert_eq!(acting.run().await.outcome, Outcome::Succeeded);
        let process = acting.site.run("test -w @ && ! touch \"$(dirname \"$ATOLL_OUTPUTS\")/../../store/x\"");
        assert_eq!(acting.site.control.finished(process).await.outcome, Outcome::Succeeded, "it is isolated as ever");
        paths = acting.site.slots();
    }
    assert_eq!(paths.len(), 2, "one slot for containers, one for processes: {paths:?}");
    acting.nothing_is_left().await;
}

#[tokio::test]
async fn a_container_is_the_account_of_who_asks_and_what_it_leaves_is_the_agents() {
    let Some(accounts) = Accounts::make().filter(|_| has_podman()) else { return };
    let mut site = Site::start_with(&format!("[container]\nengine = \"podman\"\n{}", accounts.settings())).await;
    site.open_to_all("a", "ada");
    let script = "echo made > $ATOLL_OUTPUTS/file; { busybox stat -c %u:%g $ATOLL_OUTPUTS/file; busybox stat -c %u . $TMPDIR; busybox grep ^Groups: /proc/self/status; \
                  touch /bin/x /atoll/action/x 2>/dev/null && echo touched || :; } > $ATOLL_OUTPUTS/said";
    let outputs = [("said", "string", Type::String), ("file", "file", Type::File)];
    let mut containing = Containing::at(site, "image: ./image.tar\ncommand: [sh, main.sh]\n", &outputs, script).await;
    let end = containing.run().await;
    let [Value::String(said), Value::File(_)] = end.outputs.as_slice() else { panic!("{end:?}") };
    let ask = |option: &str| {
        let said = Command::new("id").args([option, &accounts.of("a")]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    };
    let (uid, gid) = (ask("-u"), ask("-g"));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], [format!("{uid}:{gid}").as_str(), &uid, &uid], "{said}");
    let mut groups: Vec<&str> = lines[3].split_whitespace().skip(1).collect();
    let known = ask("-G");
    let mut wanted: Vec<&str> = known.split(' ').collect();
    groups.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(groups, wanted, "{said}");
    assert_eq!(lines.len(), 4, "{said}");
    containing.nothing_is_left().await;
}

/// How far the action is, as the last heartbeat tells.
fn standing(state: &crate::control::State, bundle: ObjectRef) -> Option<DeployedState> {
    let deployed = state.heartbeats.last()?.deployed.iter().find(|deployed| deployed.bundle == bundle.id)?;
    Some(deployed.state.clone())
}

#[tokio::test]
async fn an_action_is_made_ready_ahead_with_its_image_and_goes_with_it_when_room_is_needed() {
    if !has_podman() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, policy) = (folder.path().join("data"), folder.path().join("policy.yaml"));
    fs::write(&policy, "limits: { disk: 20MB }\n").unwrap();
    let settings = format!("policy = {policy:?}\nevict_idle_seconds = 0\n[container]\nengine = \"podman\"");
    let site = Site::start_in(folder, data, &settings).await;
    let (manifest, outputs) = ("image: ./image.tar\ncommand: [sh, main.sh]\n", [("said", "string", Type::String)]);
    let mut acting = Containing::at(site, manifest, &outputs, "echo here > $ATOLL_OUTPUTS/said").await;
    let archive = fs::read(acting.site.scratch().join("action/image.tar")).unwrap();
    let tag = format!("localhost/atoll:{}", blake3::hash(&archive).to_hex());
    let is_there = || podman(&["image", "exists", &tag]).status.success();
    let (step, bundle) = (acting.step(), acting.bundle);
    acting.site.control.order(vec![SiteCommand::MakeReady(Box::new(step.clone()))]);
    let ready = |state: &crate::control::State| (standing(state, bundle)? == DeployedState::Ready).then_some(());
    acting.site.control.until("an action that is ready", ready).await;
    assert!(is_there(), "before any execution is");
    let execution = acting.site.run_step(step);
    let end = acting.site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded, "{:?}", end.logs);
    acting.nothing_is_left().await;
    assert!(is_there(), "there is room");
    // With the archive it is more than 85 % of it, and less than all.
    let left = 18_500_000 - archive.len();
    let mut fill = acting.site.step(&format!("head -c {left} /dev/urandom > $ATOLL_OUTPUTS/f"));
    fill.outputs = vec![output("f", Type::File)];
    let filling = acting.site.run_step(fill);
    acting.site.control.finished(filling).await;
    let gone = |state: &crate::control::State| standing(state, bundle).is_none().then_some(());
    acting.site.control.until("an action that is gone", gone).await;
    assert!(!is_there(), "{}", acting.site.agent_log());
}

#[tokio::test]
async fn an_image_that_cannot_be_had_ahead_is_told_at_once_with_the_place_of_its_log() {
    if !has_podman() {
        return;
    }
    let manifest = format!("image: 127.0.0.1:9/team/tool@sha256:{}\ncommand: [sh, main.sh]\n", "0".repeat(64));
    let mut acting = Containing::start(&manifest, &[], "true").await;
    let (step, bundle) = (acting.step(), acting.bundle);
    acting.site.control.order(vec![SiteCommand::MakeReady(Box::new(step))]);
    let failed = |state: &crate::control::State| match standing(state, bundle)? {
        DeployedState::Failed(why) => Some(why),
        _ => None,
    };
    let why = acting.site.control.until("a failure", failed).await;
    let log = acting.site.data().join("images");
    assert!(why.contains("team/tool") && why.contains(log.to_str().unwrap()), "{why}");
}
