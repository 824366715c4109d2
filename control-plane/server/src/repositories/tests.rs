//! Repositories that the test makes with git, looked at by a whole control plane.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::testing::Plane;

const PATH: &str = "/projects/rivers/repositories";

/// A repository with a folder that is an action, and one that is none.
struct Origin(TempDir);

impl Origin {
    fn new() -> Self {
        let origin = Self(tempfile::tempdir().unwrap());
        origin.git(&["init", "--quiet", "--initial-branch=main"]);
        origin
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(self.0.path());
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "test").env(format!("GIT_{who}_EMAIL"), "test@example.org");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn action(&self, folder: &str, name: &str, version: &str, program: &str) -> &Self {
        let manifest = format!("name: {name}\nversion: \"{version}\"\ncommand: [sh, main.sh]\n");
        self.write(&format!("{folder}/action.yaml"), &manifest).write(&format!("{folder}/main.sh"), program)
    }

    /// The commit.
    fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "test"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Waits until the look that goes on has ended, by asking; what it found.
async fn ended(plane: &Plane, name: &str) -> Value {
    let mut changes = plane.handle.changes();
    loop {
        let (status, shown) = plane.get(&format!("{PATH}/{name}")).await;
        assert_eq!(status, 200, "{shown}");
        if shown["under_way"].is_null() {
            return shown["last"].clone();
        }
        changes.recv().await.unwrap();
    }
}

async fn add(plane: &Plane, body: Value) -> Value {
    let (status, added) = plane.post(PATH, body).await;
    assert_eq!(status, 201, "{added}");
    ended(plane, added["repository"].as_str().unwrap()).await
}

async fn look(plane: &Plane, name: &str, what: &str) -> Value {
    let (status, asked) = plane.post(&format!("{PATH}/{name}/{what}"), json!({})).await;
    assert_eq!(status, 202, "{asked}");
    ended(plane, name).await
}

/// Path and finding of each action.
fn findings(last: &Value) -> Vec<(&str, &str)> {
    let actions = last["actions"].as_array().unwrap().iter();
    actions.map(|action| (action["path"].as_str().unwrap(), action["finding"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_scan_says_what_is_there_and_an_import_pushes_what_is_right() {
    let (plane, origin) = (Plane::start().await, Origin::new());
    origin.action("lib/clean", "clean", "1.0", "true\n").action("lib/count", "count", "1.0", "true\n");
    origin.write("lib/broken/action.yaml", "name: broken\nversion: \"1\"\ncommand: [./missing]\nkindd: x\n");
    let commit = origin.commit();
    let scanned = add(&plane, json!({ "name": "tools", "url": origin.path() })).await;
    assert_eq!(
        (&scanned["outcome"], &scanned["what"], &scanned["commit"]),
        (&json!("done"), &json!("scan"), &json!(commit))
    );
    let expected = [("lib/broken", "invalid"), ("lib/clean", "new"), ("lib/count", "new")];
    assert_eq!(findings(&scanned), expected, "{scanned:#}");
    let error = &scanned["actions"][0]["errors"][0];
    assert_eq!(
        (&error["file"], &error["line"], &error["column"]),
        (&json!("lib/broken/action.yaml"), &json!(4), &json!(1)),
        "{error}"
    );
    assert_eq!(plane.get("/projects/rivers/actions").await.1["actions"], json!([]), "a scan pushes nothing");

    let imported = look(&plane, "tools", "import").await;
    let expected = [("lib/broken", "invalid"), ("lib/clean", "imported"), ("lib/count", "imported")];
    assert_eq!(findings(&imported), expected, "{imported:#}");
    let shown = plane.get("/projects/rivers/actions/clean/1.0").await.1;
    let place = json!({ "repository": "tools", "url": origin.path(), "commit": commit, "path": "lib/clean" });
    assert_eq!((&shown["origin"], &shown["digest"]), (&place, &imported["actions"][1]["digest"]));
    let again = look(&plane, "tools", "import").await;
    let expected = [("lib/broken", "invalid"), ("lib/clean", "known"), ("lib/count", "known")];
    assert_eq!(findings(&again), expected, "{again:#}");
    assert_eq!(plane.get("/projects/rivers/actions/clean/1.0").await.1, shown, "nothing has changed");
    let log = plane.get(&format!("{PATH}/tools/log")).await.1;
    let text = log["log"].as_str().unwrap();
    assert!(text.contains(&commit) && text.contains("lib/clean: clean@1.0 was there before"), "{text}");
    assert!(text.contains("lib/broken/action.yaml:4:1:"), "{text}");
}

#[tokio::test]
async fn other_content_under_a_known_version_is_an_error_that_names_both_commits_and_stops_nothing_else() {
    let (plane, origin) = (Plane::start().await, Origin::new());
    let first = origin.action("clean", "clean", "1.0", "true\n").commit();
    add(&plane, json!({ "name": "tools", "url": origin.path() })).await;
    look(&plane, "tools", "import").await;
    let second = origin.action("clean", "clean", "1.0", "false\n").action("count", "count", "1.0", "true\n").commit();
    let imported = look(&plane, "tools", "import").await;
    assert_eq!(findings(&imported), [("clean", "failed"), ("count", "imported")], "{imported:#}");
    let message = imported["actions"][0]["message"].as_str().unwrap();
    assert!(message.contains(&first) && message.contains(&second) && message.contains("another version"), "{message}");
    origin.action("clean", "clean", "1.1", "false\n").action("copy", "clean", "1.1", "echo\n").commit();
    let imported = look(&plane, "tools", "import").await;
    let expected = [("clean", "imported"), ("copy", "failed"), ("count", "known")];
    assert_eq!(findings(&imported), expected, "one version is in one folder: {imported:#}");
    let (status, removed) = plane.json(plane.ask("DELETE", "/api/v1/projects/rivers/actions/clean/1.1")).await;
    assert_eq!(status, 204, "{removed}");
    let imported = look(&plane, "tools", "import").await;
    assert_eq!(findings(&imported)[0], ("clean", "removed"), "what somebody removed is not brought back: {imported:#}");
}

#[tokio::test]
async fn a_branch_and_a_folder_bound_what_is_looked_at() {
    let (plane, origin) = (Plane::start().await, Origin::new());
    origin.action("lib/clean", "clean", "1.0", "true\n").commit();
    origin.git(&["checkout", "--quiet", "-b", "next"]);
    origin.action("lib/clean", "clean", "2.0", "true\n").action("other", "other", "1.0", "true\n").commit();
    origin.git(&["tag", "v2"]);
    origin.git(&["checkout", "--quiet", "main"]);
    let seen = async |name: &str, more: Value| {
        let mut body = json!({ "name": name, "url": format!("file://{}", origin.path().display()) });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let last = add(&plane, body).await;
        let action =
            |action: &Value| format!("{}@{}", action["action"].as_str().unwrap(), action["version"].as_str().unwrap());
        let actions: Vec<String> = last["actions"].as_array().unwrap().iter().map(action).collect();
        (actions.join(" "), last["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(seen("a", json!({})).await.0, "clean@1.0");
    assert_eq!(seen("b", json!({ "branch": "next" })).await.0, "clean@2.0 other@1.0");
    assert_eq!(seen("c", json!({ "branch": "v2", "subdir": "lib" })).await.0, "clean@2.0");
    let (_, message) = seen("d", json!({ "subdir": "nothing" })).await;
    assert!(message.contains("has no folder nothing"), "{message}");
    let (_, message) = seen("e", json!({ "branch": "nothing" })).await;
    assert!(message.contains("couldn't find remote ref nothing"), "{message}");
}

#[tokio::test]
async fn what_is_in_a_repository_leads_nowhere_else_and_runs_nothing() {
    let (plane, origin) = (Plane::start().await, Origin::new());
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("action.yaml"), "secret: of the server\n").unwrap();
    let mark = outside.path().join("mark");
    std::fs::create_dir_all(origin.path().join("linked")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("action.yaml"), origin.path().join("linked/action.yaml")).unwrap();
    origin.action("leads", "leads", "1.0", "true\n");
    std::os::unix::fs::symlink("/etc/hostname", origin.path().join("leads/hostname")).unwrap();
    origin.write(".gitattributes", "* filter=evil\n").action("clean", "clean", "1.0", "true\n").commit();
    // A hook, and a filter, of the repository's own: no business of the server.
    origin.write(".git/hooks/post-checkout", &format!("#!/bin/sh\ntouch {}\n", mark.display()));
    origin.git(&["config", "filter.evil.smudge", &format!("touch {}; cat", mark.display())]);
    let scanned = add(&plane, json!({ "name": "tools", "url": origin.path() })).await;
    assert_eq!(findings(&scanned), [("clean", "new"), ("leads", "failed"), ("linked", "failed")], "{scanned:#}");
    assert!(scanned["actions"][2]["message"].as_str().unwrap().contains("symbolic link"));
    assert!(!scanned.to_string().contains("of the server"), "nothing of another file is shown: {scanned:#}");
    assert!(!mark.exists(), "nothing was run");
}

#[tokio::test]
async fn what_cannot_be_fetched_says_why_and_what_is_wrong_is_refused_at_once() {
    let plane = Plane::start().await;
    let last = add(&plane, json!({ "url": "/nonexistent/tools.git" })).await;
    let message = last["message"].as_str().unwrap();
    assert!(last["outcome"] == "failed" && message.contains("/nonexistent/tools.git"), "{last:#}");
    let last = add(&plane, json!({ "url": "ssh://git@127.0.0.1:1/team/keys" })).await;
    assert!(last["message"].as_str().unwrap().contains("has no key"), "{last:#}");
    let refused = [
        (json!({ "url": "https://me:secret@host/x" }), "no user and password"),
        (json!({ "url": "git@host:x" }), "ssh://"),
        (json!({ "url": "/srv/x", "branch": "--upload-pack=x" }), "branch"),
        (json!({ "url": "/srv/x", "subdir": "../y" }), "folder within"),
        (json!({ "url": "/srv/x", "every_seconds": 1 }), "seconds"),
        (json!({ "url": "/srv/x", "name": "a b" }), "name of a repository"),
    ];
    for (body, said) in refused {
        let (status, answer) = plane.post(PATH, body.clone()).await;
        assert!(matches!(status, 400 | 422) && answer.to_string().contains(said), "{body}: {answer}");
    }
    assert!(!plane.get(PATH).await.1.to_string().contains("secret"));
    let (status, answer) = plane.get(&format!("{PATH}/tolls")).await;
    assert!(status == 404 && answer.to_string().contains("keys, tools"), "{answer}");
}

#[tokio::test]
async fn a_look_that_is_cancelled_ends_and_leaves_no_process_and_no_folder() {
    let plane = Plane::start().await;
    // Takes the connection, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/tools", silent.local_addr().unwrap());
    let (status, added) = plane.post(PATH, json!({ "url": url })).await;
    assert_eq!((status, &added["under_way"]["what"]), (201, &json!("scan")), "{added}");
    let (mut connection, _) = silent.accept().await.unwrap();
    let log = plane.get(&format!("{PATH}/tools/log")).await.1;
    assert!(log["goes_on"] == true && log["log"].as_str().unwrap().contains("scan of http://"), "{log}");
    let cancelled = plane.post(&format!("{PATH}/tools/cancel"), json!({})).await.1;
    assert_eq!((&cancelled["last"]["outcome"], &cancelled["under_way"]), (&json!("cancelled"), &Value::Null));
    // Whoever held the connection is gone.
    let mut said = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut connection, &mut said).await.unwrap();
    let folder = plane.directory.path().join("imports");
    let is_empty = || std::fs::read_dir(&folder).unwrap().next().is_none();
    while !is_empty() {
        tokio::task::yield_now().await;
    }
    let again = plane.post(&format!("{PATH}/tools/cancel"), json!({})).await.1;
    assert_eq!(again["last"], cancelled["last"], "nothing goes on");
}
