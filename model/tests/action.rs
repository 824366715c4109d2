//! What the manifest of an action may say, and how it is told what is wrong with it.

use std::time::Duration;

use atoll_model::action::{
    ActionKind, Health, Image, Manifest, Port, Probe, Restart, Runtime, Service, Warm, is_version, parse,
};
use atoll_model::diagnostic::Place;
use atoll_model::resources::{Confinement, IsolationProfile};
use expect_test::{Expect, expect};

const CLEAN: &str = include_str!("samples/clean.action.yaml");

fn parsed(source: &str) -> Manifest {
    parse("action.yaml", source).expect("a valid manifest")
}

#[track_caller]
fn check(source: &str, expected: Expect) {
    let diagnostics = parse("action.yaml", source).expect_err("an invalid manifest");
    let lines: Vec<String> = diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn a_manifest_says_what_an_action_is_and_how_it_is_found() {
    let manifest = parsed(CLEAN);
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("clean", "1.2"));
    assert_eq!(manifest.kind, ActionKind::Processor);
    assert_eq!(manifest.labels["domain"], "hydrology");
    assert_eq!(manifest.command, ["./clean.sh", "--fast"]);
    assert!(matches!(manifest.command_place, Place { line: 6, column: 10, .. }));
}

#[test]
fn a_manifest_without_kind_and_runtime_is_a_command_that_ends() {
    let manifest = parsed("name: a\nversion: '1'\ncommand: [x]\n");
    assert_eq!((manifest.kind, manifest.labels.len()), (ActionKind::Processor, 0));
}

#[test]
fn a_component_is_named_by_its_command() {
    let manifest = parsed("name: a\nversion: '1'\nruntime: wasm\ncommand: [main.wasm, --fast]\n");
    assert_eq!((manifest.runtime.as_str(), manifest.command.len()), ("wasm", 2));
    check(
        "name: a\nversion: '1'\nruntime: wasm\nimage: ./image.tar\n",
        expect![[r#"
            action.yaml:1:1: an action needs a `command` (write `command: [main.wasm]`: a component in the folder, and its arguments)
            action.yaml:4:8: `image` is for actions with `runtime: container` (write `runtime: container` too)
        "#]],
    );
}

#[test]
fn what_does_not_exist_is_told_with_what_may_be_meant() {
    check(
        "name: a\nversion: '1'\nkind: procesor\nruntime: comand\ncommand: [x]\n",
        expect![[r#"
            action.yaml:3:7: the kind of an action cannot be `procesor` (did you mean `processor`?)
            action.yaml:4:10: the runtime of an action cannot be `comand` (did you mean `command`?)
        "#]],
    );
}

#[test]
fn a_source_is_called_and_emits_values() {
    let manifest = parsed("name: a\nversion: '1'\nkind: source\nruntime: python\nhandler: main.py:run\n");
    assert_eq!(manifest.kind, ActionKind::Source);
    let refused = manifest.of_kind(ActionKind::Processor).expect_err("it is no step");
    assert_eq!(refused, "the action a is a source: it stands below `source:`, and not in a step");
    check(
        "name: a\nversion: '1'\nkind: source\ncommand: [x]\noutputs: { all: list of file }\n",
        expect![[r#"
            action.yaml:4:10: a source stays in a process that is called: it has no command (write `runtime: python` and `handler: main.py:run`)
            action.yaml:5:12: a source emits values: `all` cannot be a list (each element a file) (emit what tells where it is, and let a step of the workflow fetch it)
        "#]],
    );
}

#[test]
fn a_service_says_where_it_listens_how_it_does_and_when_it_is_begun_again() {
    let head = "name: a\nversion: '1'\nkind: service\ncommand: [x]\n";
    let service = *parsed(head).service.expect("it is one");
    assert_eq!(service, Service::default());
    let service = *parsed(&format!("{head}port: any\n")).service.expect("it is one");
    assert_eq!((service.port, service.health.probe), (Some(Port::Any), Probe::Port));
    let said = "port: 8086\nhealth: { http: /up, every: 2s, timeout: 500ms, failures: 5, start: 2m }\n\
                restart: { backoff: 200ms, max: 0 }\n";
    let service = *parsed(&format!("{head}{said}")).service.expect("it is one");
    let health = Health {
        probe: Probe::Http("/up".to_owned()),
        every: Duration::from_secs(2),
        timeout: Duration::from_millis(500),
        failures: 5,
        start: Duration::from_secs(120),
    };
    let restart = Restart { backoff: Duration::from_millis(200), max: 0 };
    assert_eq!(service, Service { port: Some(Port::Fixed(8086)), health, restart });
    let refused = parsed(head).of_kind(ActionKind::Processor).expect_err("it is no step");
    assert_eq!(refused, "the action a is a service: it stands below `services:`, and not in a step");
    check(
        &format!("{head}port: 0\nhealth: {{ http: up, command: [x], every: 1us }}\noutputs: {{ a: string }}\n"),
        expect![[r#"
            action.yaml:5:7: `port`: a port is a number from 1 to 65535, or `any` for one that the site chooses
            action.yaml:6:30: `health` has `http` or `command`, not both
            action.yaml:6:42: `every`: it is from 100 ms to 24 h
            action.yaml:7:12: a service has no outputs, so not `a`: it never ends (others ask it at its port: `port: any`)
        "#]],
    );
    check(
        &format!("{head}isolation: strict\nport: any\n"),
        expect![[r#"
            action.yaml:6:7: nobody can reach its port: it has no network (write `network: true` too)
        "#]],
    );
    check(
        "name: a\nversion: '1'\ncommand: [x]\nport: any\n",
        expect![[r#"
            action.yaml:4:7: `port` is for actions with `kind: service` (write `kind: service` too)
        "#]],
    );
}

#[test]
fn a_python_action_says_how_many_of_its_processes_wait() {
    let head = "name: a\nversion: '1'\nruntime: python\nhandler: main.py:handle\n";
    let warm = |said: &str| {
        let Runtime::Python(python) = parsed(&format!("{head}{said}")).runtime else { panic!("it is in Python") };
        python.warm
    };
    assert_eq!(warm(""), None);
    let lasts = Some(Duration::from_secs(600));
    assert_eq!(warm("warm: { min: 1, max: 4, for: 10m }\n"), Some(Warm { min: 1, max: Some(4), lasts }));
    check(
        &format!("{head}warm: {{ min: 3, max: 2, for: 25h }}\n"),
        expect![[r#"
            action.yaml:5:7: `min` is more than `max`
            action.yaml:5:30: `for`: it is at most 24 h
        "#]],
    );
    check(
        &format!("{head}kind: source\nwarm: {{ min: 1 }}\n"),
        expect![[r#"
            action.yaml:6:7: the process of a source stays by itself
        "#]],
    );
}

#[test]
fn a_python_action_names_a_function_of_a_file_instead_of_a_command() {
    let manifest = parsed(
        "name: a\nversion: '1'\nruntime: python\nhandler: lib/main.py:handle_it\nrequirements: lib/requirements.txt\n",
    );
    let Runtime::Python(python) = &manifest.runtime else { panic!("{manifest:?}") };
    assert_eq!((python.file.as_str(), python.function.as_str()), ("lib/main.py", "handle_it"));
    assert_eq!((python.handler(), manifest.command.len()), ("lib/main.py:handle_it".to_owned(), 0));
    assert_eq!(
        python.requirements.as_ref().map(|requirements| requirements.file.as_str()),
        Some("lib/requirements.txt")
    );
    check(
        "name: a\nversion: '1'\nruntime: python\ncommand: [x]\nrequirements: ../r.txt\n",
        expect![[r#"
            action.yaml:1:1: an action with `runtime: python` needs a `handler` (write `handler: main.py:handle`: a file of the folder, and a function in it)
            action.yaml:4:10: an action with `runtime: python` has a `handler`, and no `command` (write `handler: main.py:handle`: a file of the folder, and a function in it)
            action.yaml:5:15: `../r.txt` is not the path of a file in the folder of the action (write `requirements: requirements.txt`)
        "#]],
    );
    check(
        "name: a\nversion: '1'\nruntime: python\nhandler: main:handle\n",
        expect![[r#"
            action.yaml:4:10: `main:handle` names no function of a file (write `handler: main.py:handle`: a file of the folder, and a function in it)
        "#]],
    );
    check(
        "name: a\nversion: '1'\nruntime: python\nhandler: /opt/main.py:handle\n",
        expect![[r#"
            action.yaml:4:10: `/opt/main.py` is not the path of a file in the folder of the action
        "#]],
    );
    check(
        "name: a\nversion: '1'\ncommand: [x]\nhandler: main.py:handle\n",
        expect![[r#"
            action.yaml:4:10: `handler` is for actions with `runtime: python` (write `runtime: python` too)
        "#]],
    );
}

#[test]
fn a_container_action_names_its_image_by_digest_or_as_a_file_of_the_folder() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let image = |text: &str| {
        let manifest = parsed(&format!("name: a\nversion: '1'\nruntime: container\nimage: '{text}'\n"));
        let Runtime::Container(container) = &manifest.runtime else { panic!("{manifest:?}") };
        assert_eq!((&manifest.resources, manifest.command.len()), (&None, 0));
        container.image.clone()
    };
    for name in ["docker.io/library/debian", "localhost/a", "localhost:5000/a/b", "registry.example.org/team/tool"] {
        let reference = format!("{name}@{digest}");
        assert_eq!(image(&reference), Image::Registry(reference.clone()));
        assert_eq!(image(&format!("{name}:12@{digest}")), Image::Registry(reference), "a tag beside a digest");
    }
    assert_eq!(image("./images/tool.tar"), Image::Archive("images/tool.tar".to_owned()));
    let manifest = parsed(
        "name: a\nversion: '1'\nruntime: container\nimage: ./image.tar\nnetwork: true\ncommand: [sh, main.sh]\n",
    );
    assert_eq!(manifest.command, ["sh", "main.sh"]);
    assert!(manifest.resources.expect("it asks for the network").confinement.network);
}

#[test]
fn an_image_that_may_be_another_tomorrow_is_refused_with_what_to_do() {
    let wrong = |text: &str| {
        let source = format!("name: a\nversion: '1'\nruntime: container\nimage: '{text}'\n");
        let diagnostics = parse("action.yaml", &source).expect_err("an image that cannot be had");
        format!("{}", diagnostics[0])
    };
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    for (text, expected) in [
        ("docker.io/library/debian:12".to_owned(), "has no digest, and may be another image tomorrow"),
        ("docker.io/library/debian@sha256:12".to_owned(), "has no digest: that is `sha256:`"),
        (format!("debian@{digest}"), "names no registry"),
        (format!("library/debian@{digest}"), "names no registry"),
        (format!("-v/:/mnt@{digest}"), "is no image"),
        ("--privileged".to_owned(), "is no image"),
        ("./../image.tar".to_owned(), "is not the path of a file in the folder"),
    ] {
        let said = wrong(&text);
        assert!(said.starts_with("action.yaml:4:8: ") && said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn what_belongs_to_another_runtime_is_said_with_its_place() {
    check(
        "name: a\nversion: '1'\nruntime: container\nhandler: main.py:handle\n",
        expect![[r#"
            action.yaml:1:1: an action with `runtime: container` needs an `image` (write `image: docker.io/library/debian@sha256:…`, or `image: ./image.tar` for a file of the folder)
            action.yaml:4:10: `handler` is for actions with `runtime: python` (write `runtime: python` too)
        "#]],
    );
    check(
        "name: a\nversion: '1'\ncommand: [x]\nimage: ./image.tar\nnetwork: yes please\n",
        expect![[r#"
            action.yaml:4:8: `image` is for actions with `runtime: container` (write `runtime: container` too)
            action.yaml:5:10: `network` is true or false, not `yes please`
        "#]],
    );
}

#[test]
fn a_version_can_stand_in_a_reference_and_in_a_path() {
    for version in ["1", "1.2", "1.2.3-rc.1+build_7", "2026-11-23", "v1"] {
        assert!(is_version(version), "{version}");
    }
    for version in ["", "a b", "1/2", "1@2", ".1", "-1", "é", &"1".repeat(65)] {
        assert!(!is_version(version), "{version}");
    }
    check(
        "name: a\nversion: 1 2\ncommand: [x]\n",
        expect![[r#"
            action.yaml:2:10: `1 2` cannot be a version (a to z, A to Z, 0 to 9, `.`, `+`, `_`, `-`; it begins with a letter or a digit and has at most 64 characters)
        "#]],
    );
}

#[test]
fn labels_are_texts_with_names() {
    check(
        "name: a\nversion: '1'\ncommand: [x]\nlabels: { a=b: c, d: [e] }\n",
        expect![[r#"
            action.yaml:4:11: a label has a name, without `=` and comma
            action.yaml:4:22: the value of a label is a text, not a list
        "#]],
    );
    let many: String = (0..40).map(|number| format!("  l{number}: x\n")).collect();
    check(
        &format!("name: a\nversion: '1'\ncommand: [x]\nlabels:\n{many}  long: {}\n", "x".repeat(300)),
        expect![[r#"
            action.yaml:5:3: there are 41 labels, more than 32
            action.yaml:45:3: the name and the value of a label have at most 256 bytes
        "#]],
    );
}

#[test]
fn how_it_is_kept_from_everything_else_stands_beside_what_it_asks_for() {
    let manifest =
        parsed("name: a\nversion: '1'\ncommand: [x]\nisolation: strict\nnetwork: true\nresources: { scratch: 1MiB }\n");
    let asked = manifest.resources.expect("it asks for something").confinement;
    let isolation = Some(IsolationProfile::Strict);
    assert_eq!(asked, Confinement { isolation, network: true, scratch_bytes: Some(1 << 20) });
    check(
        "name: a\nversion: '1'\ncommand: [x]\nisolation: strickt\nnetwork: 7\nresources: { scratch: 0 }\n",
        expect![[r#"
            action.yaml:4:12: `isolation` cannot be `strickt` (did you mean `strict`?)
            action.yaml:5:10: `network` is true or false, not `7`
            action.yaml:6:23: `scratch`: nothing runs without room for its outputs: write `1MiB` or more
        "#]],
    );
}
