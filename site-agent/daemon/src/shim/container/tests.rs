#![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::os::unix::fs::PermissionsExt as _;

use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};

use super::*;

fn container(engine: Engine, program: &str) -> Container {
    Container {
        engine,
        program: PathBuf::from(program),
        arguments: vec!["--device=/dev/fuse".to_owned()],
        prefix: "atoll-1234".to_owned(),
        image: "localhost/tool@sha256:12".to_owned(),
        network: false,
        limits: EngineLimits { memory: true, cpu: true, pids: true },
        rootless: false,
        action: PathBuf::from("/data/actions/a"),
        staged: PathBuf::from("/data/staged"),
    }
}

fn common(command: &[&str]) -> Common {
    Common {
        command: command.iter().map(|word| word.as_bytes().to_vec()).collect(),
        environment: vec![(b"ATOLL_SITE".to_vec(), b"edge".to_vec()), (b"HOME".to_vec(), b"/root".to_vec())],
        cpu_millis: Some(1_500),
        ..Common::default()
    }
}

fn order() -> Order {
    let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 0 };
    let environment = vec![(b"text".to_vec(), b"a, b\nc".to_vec())];
    Order { key: Key { execution, attempt: Attempt(2) }, environment, inputs: String::new() }
}

const SLOT: [&str; 3] = ["/slot/work", "/slot/tmp", "/slot/out"];

fn words(container: &Container, common: &Common) -> Vec<String> {
    let [work, tmp, out] = SLOT.map(Path::new);
    let command = container.command(common, &order(), SlotFolders { work, tmp, out }, 700);
    command.into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
}

/// Whether these words stand side by side.
fn has(words: &[String], wanted: &[&str]) -> bool {
    words.windows(wanted.len()).any(|some| some == wanted)
}

#[test]
fn podman_is_told_to_keep_the_container_to_itself() {
    let podman = container(Engine::Podman, "/usr/bin/podman");
    let said = words(&podman, &common(&["sh", "/atoll/action/main.sh"]));
    assert_eq!(said[..3], ["/usr/bin/podman", "--log-level=error", "run"]);
    let name = format!("--name=atoll-1234-{}", order().key.folder());
    for option in [
        name.as_str(),
        "--pull=never",
        "--rm",
        "--replace",
        "--cgroups=no-conmon",
        "--network=none",
        "--security-opt=no-new-privileges",
        "--workdir=/atoll/work",
        "--pids-limit=700",
        "--cpus=1.500",
        "--env=ATOLL_OUTPUTS=/atoll/outputs",
        "--env=ATOLL_SITE=edge",
        "--env=HOME=/root",
        "--env=text=a, b\nc",
        "--device=/dev/fuse",
    ] {
        assert!(has(&said, &[option]), "{option}: {said:?}");
    }
    assert!(has(&said, &["--volume", "/slot/out:/atoll/outputs", "--volume", "/slot/tmp:/tmp"]));
    assert!(has(&said, &["--volume", "/data/actions/a:/atoll/action:ro"]));
    assert!(!said.iter().any(|word| word.contains("/atoll/inputs")), "there are none");
    assert!(!said.iter().any(|word| word == "--env=HOME=/atoll/work"), "a step that says another is believed");
    assert_eq!(said[said.len() - 4..], ["--entrypoint=", "localhost/tool@sha256:12", "sh", "/atoll/action/main.sh"]);
    let user = format!("--user={}:{}", geteuid().as_raw(), getegid().as_raw());
    assert!(has(&said, &[&user]) && !has(&said, &["--userns=keep-id"]));
    let rootless = Container { rootless: true, network: true, ..podman };
    let said = words(&rootless, &common(&[]));
    assert!(has(&said, &["--userns=keep-id"]) && !has(&said, &["--network=none"]));
    assert_eq!(said.last().unwrap(), "localhost/tool@sha256:12", "the image's own command");
    assert!(!said.iter().any(|word| word.starts_with("--entrypoint")));
}

#[test]
fn inputs_are_shown_read_only_where_there_are_any() {
    let site = tempfile::tempdir().unwrap();
    let staged = site.path().join(order().key.folder());
    fs::create_dir(&staged).unwrap();
    for (engine, option) in [(Engine::Podman, "--volume"), (Engine::Docker, "--volume"), (Engine::Apptainer, "--bind")]
    {
        let container = Container { staged: site.path().to_owned(), ..container(engine, "/bin/engine") };
        let shown = format!("{}:/atoll/inputs:ro", staged.display());
        assert!(has(&words(&container, &common(&[])), &[option, &shown]));
    }
}

#[test]
fn one_whose_memory_is_limited_stays_until_it_was_asked() {
    let podman = container(Engine::Podman, "/usr/bin/podman");
    let limited = Common { memory_bytes: Some(64 << 20), ..common(&[]) };
    let said = words(&podman, &limited);
    assert!(has(&said, &["--memory=67108864b", "--memory-swap=67108864b"]) && !has(&said, &["--rm"]));
    let of_slot = Container { limits: EngineLimits::default(), ..podman };
    let said = words(&of_slot, &limited);
    assert!(has(&said, &["--rm"]));
    assert!(!said.iter().any(|word| word.starts_with("--memory") || word.starts_with("--cpus")));
}

#[test]
fn docker_has_the_same_without_what_only_podman_knows() {
    let docker = container(Engine::Docker, "/usr/bin/docker");
    let said = words(&docker, &common(&["sh"]));
    assert_eq!(said[..3], ["/usr/bin/docker", "--log-level=error", "run"]);
    for option in ["--replace", "--cgroups=no-conmon", "--userns=keep-id"] {
        assert!(!has(&said, &[option]), "{option}");
    }
    assert!(!said.iter().any(|word| word.starts_with("--ulimit")));
    assert!(has(&said, &["--rm"]) && has(&said, &["--network=none"]));
    assert!(has(&words(&Container { rootless: true, ..docker }, &common(&[])), &["--user=0:0"]));
}

#[test]
fn apptainer_gets_variables_in_its_environment() {
    let apptainer = container(Engine::Apptainer, "/usr/bin/apptainer");
    let said = words(&apptainer, &common(&["sh", "-c", "true"]));
    assert_eq!(said[..4], ["/usr/bin/apptainer", "--silent", "exec", "--containall"]);
    assert!(has(&said, &["--net", "--network", "none"]) && has(&said, &["--pwd", "/atoll/work"]));
    assert!(has(&said, &["--home", "/slot/work:/atoll/work"]) && has(&said, &["--bind", "/slot/out:/atoll/outputs"]));
    assert_eq!(said[said.len() - 4..], ["localhost/tool@sha256:12", "sh", "-c", "true"]);
    assert_eq!(words(&apptainer, &common(&[]))[2], "run");
    let environment = apptainer.environment(&common(&[]), &order());
    assert!(environment.contains(&(b"APPTAINERENV_text".to_vec(), b"a, b\nc".to_vec())));
    assert!(environment.contains(&(b"APPTAINERENV_ATOLL_OUTPUTS".to_vec(), b"/atoll/outputs".to_vec())));
    assert!(!environment.iter().any(|(name, _)| name.ends_with(b"HOME")), "it takes no such variable");
    let older = Container { program: PathBuf::from("/usr/bin/singularity"), ..apptainer };
    assert!(older.environment(&common(&[]), &order()).iter().all(|(name, _)| name.starts_with(b"SINGULARITYENV_")));
    assert_eq!(older.removal(order().key), None);
}

#[test]
fn what_an_engine_says_of_itself_is_told_from_what_runs_in_it() {
    let podman = container(Engine::Podman, "/usr/bin/podman");
    let refused = podman.refusal(125, "a line\nError: localhost/x: image not known\n").unwrap();
    assert_eq!(refused, "the container cannot be started: localhost/x: image not known");
    assert_eq!(podman.refusal(127, "sh: nosuch: not found\n"), None);
    assert_eq!(podman.refusal(1, "Error: something of its own\n"), None);
    let docker = container(Engine::Docker, "/usr/bin/docker");
    let refused = docker.refusal(125, "docker: No such image.\n\nRun 'docker run --help' for more information\n");
    assert!(refused.unwrap().ends_with("No such image."));
}

/// A program that notes what it is called with, and does this.
fn engine(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("engine");
    let text = format!("#!/bin/sh\necho \"$@\" >> {}/calls\n{script}\n", folder.display());
    // Another process writes it: a file that this one has open for writing may not be run by what it starts meanwhile.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "printf '%s' \"$1\" > \"$0\" && chmod 755 \"$0\""]);
    assert!(shell.arg(&path).arg(text).status().unwrap().success());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0o111);
    path
}

#[test]
fn what_is_noted_in_a_slot_is_removed_by_whoever_finds_it() {
    let slot = tempfile::tempdir().unwrap();
    let calls = || fs::read_to_string(slot.path().join("calls")).unwrap_or_default();
    let docker = |script: &str| {
        let program = engine(slot.path(), script);
        Container { program, ..container(Engine::Docker, "") }.removal(order().key).unwrap()
    };
    remove_noted(slot.path()).unwrap();
    assert_eq!(calls(), "", "nothing was noted");
    note(slot.path(), &docker("echo 'Cannot connect to the Docker daemon' >&2; exit 1")).unwrap();
    let error = remove_noted(slot.path()).unwrap_err();
    assert!(error.to_string().contains("Cannot connect"), "{error}");
    docker("echo 'Error: No such container: x' >&2; exit 1");
    remove_noted(slot.path()).unwrap();
    let asked = format!("rm --force --volumes atoll-1234-{}\n", order().key.folder());
    assert_eq!(calls(), asked.repeat(2));
    remove_noted(slot.path()).unwrap();
    assert_eq!(calls(), asked.repeat(2), "it is gone");
    note(slot.path(), &docker("exit 0")).unwrap();
    fs::remove_file(slot.path().join("engine")).unwrap();
    remove_noted(slot.path()).unwrap();
}

#[test]
fn an_engine_is_asked_whether_memory_ran_out() {
    let folder = tempfile::tempdir().unwrap();
    for (script, expected) in [("echo true", true), ("echo false", false), ("exit 125", false)] {
        let podman = Container { program: engine(folder.path(), script), ..container(Engine::Podman, "") };
        assert_eq!(podman.ran_out_of_memory(order().key), expected, "{script}");
    }
}
