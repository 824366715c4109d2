//! The command line as others script against it: what is printed where, and the exit code.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use expect_test::{Expect, expect};
use serde_json::{Value, json};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn with(self, name: &str, content: &str) -> Self {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
        self
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `atoll` in this folder, with no server and no terminal.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        command.env_remove("ATOLL_URL").env_remove("ATOLL_TOKEN").env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command.env("XDG_CONFIG_HOME", self.path().join("config"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[track_caller]
fn check_file(content: &str, expected: Expect) {
    let folder = Folder::new().with("w.yaml", content);
    let output = folder.run(&["check", "w.yaml"]);
    assert_eq!(code(&output), Some(2));
    assert_eq!(text(&output.stdout), "");
    expected.assert_eq(&text(&output.stderr));
}

const VALID: &str = "workflow: w\ninputs:\n  n: { type: integer, default: 1 }\n  f: file\n  name: string\n  held: { type: file, default: { site: edge, path: x.csv } }\n\
    steps:\n  a: { run: 'true', with: { n: \"${{ inputs.n }}\", f: \"${{ inputs.f }}\" } }\n";

#[test]
fn a_valid_file_is_said_to_be_so() {
    let folder = Folder::new().with("w.yaml", VALID);
    let output = folder.run(&["check", "w.yaml"]);
    assert_eq!((code(&output), text(&output.stdout)), (Some(0), "w.yaml is valid\n".to_owned()));
    assert!(text(&output.stderr).contains("not against sites: no server is known"));
    let output = folder.run(&["check", "w.yaml", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!((code(&output), document), (Some(0), json!({ "valid": true, "errors": [] })));
}

#[test]
fn a_broken_file_is_shown_where_it_is_broken() {
    check_file(
        "workflow: levels\ninputs:\n  words: { type: list, default: [α, β] }\nsteps:\n  make:\n    foreach: ${{ inputs.wrods }}\n    \
         run: echo\n    outputs: { text: fil }\n  join:\n    with: { t: \"${{ steps.mkae.outputs.text }}\" }\n    rnu: echo\n",
        expect![[r#"
            error: the workflow has no input `wrods`
             --> w.yaml:6:18
              |
            6 |     foreach: ${{ inputs.wrods }}
              |                  ^^^^^^^^^^^^
              |
              = help: did you mean `words`?

            error: there is no type `fil`
             --> w.yaml:8:22
              |
            8 |     outputs: { text: fil }
              |                      ^^^
              |
              = help: did you mean `file`?

            error: step `join` says nothing of what it does
             --> w.yaml:9:3
              |
            9 |   join:
              |   ^^^^
              |
              = help: write `run:` with a shell script, `command:` with a program, or `action:` with an action

            error: there is no step `mkae`
              --> w.yaml:10:21
               |
            10 |     with: { t: "${{ steps.mkae.outputs.text }}" }
               |                     ^^^^^^^^^^
               |
               = help: did you mean `make`?

            error: a step has no field `rnu`
              --> w.yaml:11:5
               |
            11 |     rnu: echo
               |     ^^^
               |
               = help: did you mean `run`?

            5 errors
        "#]],
    );
    check_file(
        "workflow: w\nsteps:\n  a: { with: { x: ${{ item }} } }\n",
        expect![[r#"
            error: this is no valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
             --> w.yaml:3:20
              |
            3 |   a: { with: { x: ${{ item }} } }
              |                    ^
              |
              = help: put quotes around an expression that stands inside braces or brackets or holds `: ` or ` #`: "${{ … }}"

            1 error
        "#]],
    );
    check_file(
        "workflow: w\nsteps:\n  ä: { run: x, with: { é: \"ü ${{ inputs.ö }}\" } }\n  b:\n    run: x\n    with:\n      long: |\n        one ${{ inputs.one }}\n        two ${{ inputs.two +\n          three }}\n",
        expect![[r#"
            error: `ä` cannot be the name of a step
             --> w.yaml:3:3
              |
            3 |   ä: { run: x, with: { é: "ü ${{ inputs.ö }}" } }
              |   ^
              |
              = help: a to z, A to Z, 0 to 9, `_`, `-`; it begins with a letter and has at most 63 characters

            error: `é` cannot be the name of an input
             --> w.yaml:3:24
              |
            3 |   ä: { run: x, with: { é: "ü ${{ inputs.ö }}" } }
              |                        ^
              |
              = help: a to z, A to Z, 0 to 9, `_`; it begins with a letter and has at most 63 characters

            error: the expression cannot be read: unexpected character
             --> w.yaml:3:30
              |
            3 |   ä: { run: x, with: { é: "ü ${{ inputs.ö }}" } }
              |                              ^^^^^^^^^^^^^^^

            error: the workflow has no input `one`
             --> w.yaml:8:17
              |
            8 |         one ${{ inputs.one }}
              |                 ^^^^^^^^^^
              |
              = help: declare it under `inputs:` as `one: { type: … }`

            error: there is nothing called `three` here
             --> w.yaml:9:13
              |
            9 |         two ${{ inputs.two +
              |             ^^^^^^^^^^^^^^^^
              |
              = help: known: `inputs`, `steps`, `item`, `index`

            5 errors
        "#]],
    );
}

#[test]
fn the_errors_of_a_file_are_one_json_document() {
    let folder = Folder::new().with("dir/w.yaml", "workflow: w\nsteps:\n  a: { runn: x }\n");
    let output = folder.run(&["check", "dir/w.yaml", "--json"]);
    assert_eq!(code(&output), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document and nothing else");
    assert_eq!(
        document,
        json!({ "valid": false, "errors": [
            { "file": "dir/w.yaml", "line": 3, "column": 3, "message": "step `a` says nothing of what it does", "help": document["errors"][0]["help"] },
            { "file": "dir/w.yaml", "line": 3, "column": 8, "message": "a step has no field `runn`", "help": "did you mean `run`?" },
        ] })
    );
}

#[test]
fn colours_are_for_terminals_and_for_those_who_force_them() {
    let folder = Folder::new().with("w.yaml", "workflow: w\n");
    let styled = |variables: &[(&str, &str)]| {
        let output = folder.command(&["check", "w.yaml"]).envs(variables.iter().copied()).output().expect("it starts");
        output.stderr.contains(&0x1b)
    };
    assert!(!styled(&[]));
    assert!(styled(&[("CLICOLOR_FORCE", "1")]));
    assert!(!styled(&[("NO_COLOR", "1")]));
}

#[test]
fn actions_are_found_beside_the_file() {
    let folder = Folder::new()
        .with("flows/w.yaml", "workflow: w\nsteps:\n  a: { action: ./clean, with: { csv: 1 } }\n  b: { action: ./dirty }\n  c: { action: ./none }\n")
        .with("flows/clean/action.yaml", "name: clean\nversion: '1'\ncommand: [sh, run.sh]\ninputs: { csv: file }\noutputs: { table: file }\n")
        .with("flows/dirty/action.yaml", "name: dirty\ncommand: run.sh\n");
    let output = folder.run(&["check", "flows/w.yaml"]);
    assert_eq!(code(&output), Some(2));
    let shown =
        text(&output.stderr).replace(&folder.path().canonicalize().expect("there").display().to_string(), "FOLDER");
    let shown = shown.replace(&folder.path().display().to_string(), "FOLDER");
    expect![[r#"
        error: `csv`: expected a file, found the number 1
         --> flows/w.yaml:3:38
          |
        3 |   a: { action: ./clean, with: { csv: 1 } }
          |                                      ^

        error: the action `./dirty` has 2 errors: flows/dirty/action.yaml
         --> flows/w.yaml:4:16
          |
        4 |   b: { action: ./dirty }
          |                ^^^^^^^

        error: there is no action `./none`: there is no flows/none/action.yaml
         --> flows/w.yaml:5:16
          |
        5 |   c: { action: ./none }
          |                ^^^^^^

        error: an action needs a `version`
         --> flows/dirty/action.yaml:1:1
          |
        1 | / name: dirty
        2 | | command: run.sh
          | |________________^
          |
          = help: write `version: "1.0"`

        error: `command` is a list: the program, then its arguments
         --> flows/dirty/action.yaml:2:10
          |
        2 | command: run.sh
          |          ^^^^^^
          |
          = help: write `command: [run.sh]`

        5 errors
    "#]]
    .assert_eq(&shown);
}

#[test]
fn an_action_is_begun_checked_and_named_by_its_digest() {
    let folder = Folder::new();
    assert_eq!(code(&folder.run(&["action", "init", "line-count"])), Some(0));
    let again = folder.run(&["action", "init", "line-count"]);
    assert_eq!((code(&again), text(&again.stderr).contains("is there already")), (Some(2), true));
    let check = |arguments: &[&str]| {
        let output = folder.run(&[&["action", "check", "line-count"], arguments].concat());
        (code(&output), output.stdout, text(&output.stderr))
    };
    let document = || -> Value { serde_json::from_slice(&check(&["--json"]).1).expect("one document") };
    let first = document();
    assert_eq!(
        (&first["valid"], &first["action"], &first["version"], &first["kind"], &first["files"]),
        (&json!(true), &json!("line-count"), &json!("0.1"), &json!("processor"), &json!(2))
    );
    let digest = first["digest"].as_str().expect("a digest").to_owned();
    assert!(text(&check(&[]).1).contains(&digest));
    let folder = folder.with("line-count/.git/HEAD", "x").with("line-count/__pycache__/m.pyc", "x");
    let document = |folder: &Folder| -> Value {
        let output = folder.run(&["action", "check", "line-count", "--json"]);
        serde_json::from_slice(&output.stdout).expect("one document")
    };
    assert_eq!(document(&folder)["digest"], digest, "what is no part of the code does not count");
    let folder = folder.with("line-count/data.txt", "x");
    assert_ne!(document(&folder)["digest"], digest);
}

#[test]
fn what_is_wrong_with_an_action_is_shown_in_its_manifest() {
    let folder = Folder::new()
        .with("a/action.yaml", "name: a\nversion: '1'\ncommand: [./main.sh]\n")
        .with("b/action.yaml", "name: b\nversion: '1'\ncommand: [./main.sh]\n")
        .with("b/main.sh", "true\n")
        .with("c/main.sh", "true\n");
    let shown = |name: &str| {
        let output = folder.run(&["action", "check", name]);
        assert_eq!(code(&output), Some(2));
        text(&output.stderr)
    };
    assert!(shown("a").contains("there is no `./main.sh` in the folder of the action"));
    expect![[r#"
        error: `./main.sh` may not be run
         --> b/action.yaml:3:10
          |
        3 | command: [./main.sh]
          |          ^^^^^^^^^^^
          |
          = help: `chmod +x` it, or name what runs it: `command: [sh, main.sh]`

        1 error
    "#]]
    .assert_eq(&shown("b"));
    assert!(shown("c").contains("`atoll action init c` makes one"));
    let document: Value =
        serde_json::from_slice(&folder.run(&["action", "check", "b", "--json"]).stdout).expect("one document");
    assert_eq!((&document["valid"], &document["errors"][0]["line"]), (&json!(false), &json!(3)));
}

#[test]
fn a_key_is_made_once_and_shows_its_public_half() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let made = folder.run(&["action", "key", "new", "release.key"]);
    assert_eq!(code(&made), Some(0));
    let public_key = text(&made.stdout);
    assert!(public_key.starts_with("ed25519:"));
    assert_eq!(text(&folder.run(&["action", "key", "show", "release.key"]).stdout), public_key);
    let mode = std::fs::metadata(folder.path().join("release.key")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = folder.run(&["action", "key", "new", "release.key"]);
    assert_eq!((code(&again), text(&again.stderr).contains("is there already")), (Some(2), true));
    let folder = folder.with("no.key", "no key");
    let wrong = folder.run(&["action", "key", "show", "no.key"]);
    assert_eq!((code(&wrong), text(&wrong.stderr).contains("holds no key in PEM")), (Some(2), true));
}

#[test]
fn wrong_use_is_said_so() {
    let folder = Folder::new().with("w.yaml", VALID).with("d/x", "");
    let wrong: &[&[&str]] = &[
        &["check"],
        &["chekc", "w.yaml"],
        &["check", "none.yaml"],
        &["run", "w.yaml"],
        &["run", "w.yaml", "-i", "n"],
        &["run", "w.yaml", "-i", "m=1"],
        &["run", "w.yaml", "-i", "n=x", "-i", "f=@w.yaml", "-i", "name=x"],
        &["run", "w.yaml", "-i", "f=w.yaml", "-i", "name=x"],
        &["run", "w.yaml", "-i", "f=@none", "-i", "name=x"],
        &["run", "w.yaml", "-i", "f=@d", "-i", "name=x"],
        &["run", "w.yaml", "-i", "n=@w.yaml", "-i", "f=@w.yaml", "-i", "name=x"],
        &["run", "w.yaml", "-i", "f=@w.yaml", "-i", "name=x"],
        &["runs"],
        &["runs", "--url", "http://192.0.2.1", "--token", "t"],
        &["runs", "--url", "https://127.0.0.1:1", "--token", "t"],
        &["site", "token", "create", "edge", "--ttl", "soon", "--url", "http://127.0.0.1:1", "--token", "t"],
        &["get", "run_x"],
    ];
    let mut shown = String::new();
    for arguments in wrong {
        let output = folder.run(arguments);
        let error = text(&output.stderr);
        let first = error.lines().next().unwrap_or_default();
        shown.push_str(&format!("{} -> {:?} {first}\n", arguments.join(" "), code(&output)));
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
    expect![[r#"
        check -> Some(2) error: the following required arguments were not provided:
        chekc w.yaml -> Some(2) error: unrecognized subcommand 'chekc'
        check none.yaml -> Some(2) error: cannot read the workflow none.yaml: No such file or directory (os error 2)
        run w.yaml -> Some(2) error: the input f has no default: give it with -i f=…
        run w.yaml -i n -> Some(2) error: -i n: an input is NAME=VALUE, or NAME=@PATH
        run w.yaml -i m=1 -> Some(2) error: the workflow has no input m: known: `n`, `f`, `name`, `held`
        run w.yaml -i n=x -i f=@w.yaml -i name=x -> Some(2) error: -i n=x: expected an integer, found "x"
        run w.yaml -i f=w.yaml -i name=x -> Some(2) error: -i f=w.yaml: a file is given as f=@PATH
        run w.yaml -i f=@none -i name=x -> Some(2) error: -i f=@none: No such file or directory (os error 2)
        run w.yaml -i f=@d -i name=x -> Some(2) error: -i f=@d: the input is a file, and this is a directory
        run w.yaml -i n=@w.yaml -i f=@w.yaml -i name=x -> Some(2) error: -i n=@w.yaml: the input is an integer, so it is not given as a path
        run w.yaml -i f=@w.yaml -i name=x -> Some(2) error: no server is known: set ATOLL_URL and ATOLL_TOKEN, or use `atoll login`
        runs -> Some(2) error: no server is known: set ATOLL_URL and ATOLL_TOKEN, or use `atoll login`
        runs --url http://192.0.2.1 --token t -> Some(2) error: http://192.0.2.1 would send the token in the open: only https is spoken to other machines
        runs --url https://127.0.0.1:1 --token t -> Some(2) error: the token names no CA (it is not atoll.….…): give the server's CA with --ca, or a token of this server
        site token create edge --ttl soon --url http://127.0.0.1:1 --token t -> Some(2) error: --ttl soon: `soon` is not a duration: write `250ms`, `30s`, `5m`, `1h30m` or `2d`
        get run_x -> Some(2) error: the following required arguments were not provided:
    "#]].assert_eq(&shown);
}

#[test]
fn an_unreachable_server_is_exit_code_3() {
    let folder = Folder::new().with("w.yaml", VALID);
    // Nothing listens on port 1; an attempt to submit is made more than once before it is given up.
    let output = folder.run(&["runs", "--url", "http://127.0.0.1:1", "--token", "t"]);
    assert_eq!(code(&output), Some(3));
    assert!(text(&output.stderr).starts_with("error: cannot reach http://127.0.0.1:1: "), "{}", text(&output.stderr));
    let output =
        folder.command(&["check", "w.yaml"]).env("ATOLL_URL", "http://127.0.0.1:1").env("ATOLL_TOKEN", "t").output();
    let output = output.expect("it starts");
    assert_eq!(code(&output), Some(0), "the file is right by itself");
    assert!(text(&output.stderr).contains("not against sites: cannot reach"));
}

#[test]
fn schemas_and_completions_are_printed_whole() {
    let folder = Folder::new();
    for noun in ["workflow", "action"] {
        let output = folder.run(&[noun, "schema"]);
        let schema: Value = serde_json::from_slice(&output.stdout).expect("one document");
        assert!(jsonschema::meta::is_valid(&schema), "{noun}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = folder.run(&["completions", shell]);
        assert_eq!(code(&output), Some(0));
        assert!(text(&output.stdout).contains("ledger"), "{shell}");
        assert!(text(&output.stdout).len() > 5_000, "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = Folder::new();
    let mut child = folder
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn every_command_of_the_contract_is_there() {
    let folder = Folder::new();
    let commands = [
        "dev",
        "server",
        "check",
        "plan",
        "run",
        "runs",
        "show",
        "logs",
        "why",
        "ledger",
        "get",
        "cancel",
        "sites",
        "login",
        "completions",
        "agent join",
        "agent run",
        "site token create",
        "site show",
        "site drain",
        "site undrain",
        "site revoke",
        "site remove",
        "workflow schema",
        "bench engine",
        "bench latency",
        "bench chain",
        "bench handoff",
    ];
    for command in commands {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let output = folder.run(&arguments);
        assert_eq!(code(&output), Some(0), "{command}: {}", text(&output.stderr));
    }
    let help = text(&folder.run(&["--help"]).stdout);
    assert!(!help.contains("shim"), "it is for agents only");
}

#[test]
fn a_policy_file_is_checked_without_a_server() {
    let valid = "placement:\n  - push: never\n    expire: { after: 9d, then: delete }\n";
    let folder = Folder::new().with("p.yaml", valid).with("bad.yaml", "placement:\n  - confine: \"region == 'eu'\"\n");
    let output = folder.run(&["policy", "check", "p.yaml", "--json"]);
    assert_eq!(code(&output), Some(0));
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(document["valid"], json!(true));
    assert_eq!(document["rules"], json!(["line 2: push, expire"]));
    assert_eq!(document["hash"].as_str().map(str::len), Some(64));
    let output = folder.run(&["policy", "check", "bad.yaml"]);
    assert_eq!(code(&output), Some(2));
    assert!(text(&output.stderr).contains("no attribute `region` is declared"));
}

#[test]
fn the_policy_of_a_site_is_checked_without_an_agent() {
    let valid =
        "run:\n  - refuse: { workflow: 'mine*' }\nleave:\n  - refuse: { path: '/data/*' }\nlimits: { disk: 1GiB }\n";
    let folder =
        Folder::new().with("p.yaml", valid).with("bad.yaml", "leave:\n  - refuse: { path: data }\n  - deny: {}\n");
    let output = folder.run(&["policy", "check", "--site", "p.yaml"]);
    assert_eq!(code(&output), Some(0));
    let lines =
        "p.yaml is valid\n  line 2: refuses what runs\n  line 4: refuses what leaves\n  line 5: 1 GiB of disk\n";
    assert_eq!(text(&output.stdout).replace("1GiB", "1 GiB"), lines);
    let output = folder.run(&["policy", "check", "--site", "bad.yaml", "--json"]);
    assert_eq!(code(&output), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!(document["errors"].as_array().map(Vec::len), Some(3));
}
