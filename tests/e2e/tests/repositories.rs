//! Actions that come from git repositories.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, GitServer, Options, Output, Repository};
use serde_json::{Value, json};

const USES: &str =
    "workflow: uses\nsteps:\n  a: { action: shout@1.0 }\noutputs: { said: \"${{ steps.a.outputs.said }}\" }\n";

fn put_action(repository: &Repository, folder: &str, version: &str, word: &str) -> Result<()> {
    let name = folder.rsplit('/').next().unwrap_or(folder);
    let manifest =
        format!("name: {name}\nversion: \"{version}\"\ncommand: [sh, main.sh]\noutputs: {{ said: string }}\n");
    repository.write(&format!("{folder}/action.yaml"), &manifest)?;
    repository.write(&format!("{folder}/main.sh"), &format!("printf '{word}' > \"$ATOLL_OUTPUTS/said\"\n"))
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    cluster.call(&[arguments, &["--json"]].concat())?.json()
}

/// Path and finding of each action.
fn findings(shown: &Value) -> Vec<(&str, &str)> {
    let actions = shown["last"]["actions"].as_array().into_iter().flatten();
    actions.filter_map(|action| Some((action["path"].as_str()?, action["finding"].as_str()?))).collect()
}

#[test]
fn actions_of_a_repository_are_imported_run_and_follow_it_by_the_clock() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let repository = Repository::new()?;
    put_action(&repository, "actions/shout", "1.0", "HELLO")?;
    put_action(&repository, "elsewhere", "1.0", "NO")?;
    repository.write("actions/broken/action.yaml", "name: broken\nversion: \"1\"\ncommand: nothing\n")?;
    let first = repository.commit()?;
    let path = repository.path().display().to_string();
    let added = cluster.call(&["repo", "add", &path, "--subdir", "actions", "--name", "tools", "--every", "10s"])?;
    ensure!(added.code == 1, "one of them is wrong: {} {} {}", added.code, added.stdout, added.stderr);
    assert!(added.stdout.contains("actions/broken/action.yaml:3:10:"), "{}", added.stdout);
    let shown = json(&cluster, &["repo", "show", "tools"])?;
    assert_eq!(findings(&shown), [("actions/broken", "invalid"), ("actions/shout", "imported")], "{shown:#}");
    let run = cluster.run(USES, &[])?;
    assert_eq!((&run["state"], &run["outputs"]["said"]), (&json!("succeeded"), &json!("HELLO")), "{run:#}");
    let action = cluster.call(&["action", "show", "shout@1.0"])?;
    assert!(action.stdout.contains(&format!("from actions/shout at commit {first}")), "{}", action.stdout);

    fs::remove_dir_all(repository.path().join("actions/broken"))?;
    put_action(&repository, "actions/shout", "1.1", "BYE")?;
    let second = repository.commit()?;
    cluster.eventually("the clock to import it", || {
        let known = cluster.call(&["action", "show", "shout@1.1", "--json"])?;
        Ok(known.code == 0 && known.json()?["origin"]["commit"] == json!(second))
    })?;
    assert_eq!(json(&cluster, &["action", "show", "shout@1.0"])?["origin"]["commit"], json!(first));
    let listed = cluster.call(&["repo", "list"])?.stdout;
    assert!(listed.contains("tools") && listed.contains("10s"), "{listed}");
    cluster.call(&["repo", "remove", "tools", "--json"])?.json()?;
    assert_eq!(json(&cluster, &["repo", "list"])?["repositories"], json!([]));
    assert_eq!(json(&cluster, &["action", "show", "shout@1.1"])?["origin"]["repository"], "tools", "versions stay");
    Ok(())
}

#[test]
fn a_server_that_is_killed_while_it_imports_goes_on_with_it_and_shows_its_password_to_nobody() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::new()?;
    put_action(&repository, "shout", "1.0", "HELLO")?;
    put_action(&repository, "whisper", "1.0", "hello")?;
    let commit = repository.commit()?;
    // me:secret
    let served = repository.path().parent().context("a folder")?;
    let git = GitServer::new(served, Some("Basic bWU6c2VjcmV0"))?;
    let name = repository.path().file_name().context("a name")?.display().to_string();
    let url = format!("{}/{name}/.git", git.url());
    let (password, config) = (folder.path().join("password"), folder.path().join("server.toml"));
    fs::write(&password, "me:secret\n")?;
    let of_rivers = format!(
        "[[git.credentials]]\nurl = \"{}/\"\nfile = \"{}\"\nprojects = [\"rivers\"]\n",
        git.url(),
        password.display()
    );
    fs::write(&config, of_rivers)?;
    let server_arguments = vec!["--config".to_owned(), config.display().to_string()];
    let mut cluster = Cluster::start(Options { server_arguments, ..Options::default() })?;
    let stranger = cluster.call(&["repo", "add", &url, "--name", "tools"])?;
    assert!(stranger.code == 1 && stranger.stdout.contains("has no right"), "{} {}", stranger.stdout, stranger.stderr);
    let of_rivers = ["--project", "rivers"];
    let added = json(&cluster, &[&["repo", "add", &url, "--name", "tools"], &of_rivers[..]].concat())?;
    assert_eq!(findings(&added), [("shout", "new"), ("whisper", "new")], "{added:#}");

    git.close();
    let asked = json(&cluster, &[&["repo", "import", "tools", "--no-wait"], &of_rivers[..]].concat())?;
    cluster.eventually("git to ask", || Ok(git.waiting() > 0))?;
    cluster.kill_server()?;
    cluster.start_server()?;
    let shown = json(&cluster, &[&["repo", "show", "tools"], &of_rivers[..]].concat())?;
    assert_eq!(shown["under_way"], asked["under_way"], "it goes on: {shown:#}");
    git.open();
    let imported = json(&cluster, &[&["repo", "import", "tools"], &of_rivers[..]].concat())?;
    assert_eq!(imported["last"]["number"], asked["under_way"]["number"], "the same import: {imported:#}");
    assert_eq!((&imported["last"]["commit"], findings(&imported).len()), (&json!(commit), 2));
    for action in ["shout@1.0", "whisper@1.0"] {
        let known = json(&cluster, &[&["action", "show", action], &of_rivers[..]].concat())?;
        assert_eq!((&known["origin"]["commit"], &known["origin"]["url"]), (&json!(commit), &json!(url)));
    }
    let log = cluster.call(&[&["repo", "logs", "tools"], &of_rivers[..]].concat())?.stdout;
    assert!(log.contains(&commit), "{log}");
    for text in [log, imported.to_string(), cluster.log("server")] {
        assert!(!text.contains("secret") && !text.contains("bWU6c2VjcmV0"), "{text}");
    }
    Ok(())
}

/// Stands for ssh: notes how it is called, and is the other machine.
const SSH: &str = "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"${0%/*}/called\"\nfor last; do :; done\nexec sh -c \"$last\"\n";

#[test]
fn a_repository_behind_ssh_is_asked_with_the_key_of_the_configuration_and_believed_by_its_hosts_alone() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let repository = Repository::new()?;
    put_action(&repository, "shout", "1.0", "HELLO")?;
    repository.commit()?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    fs::write(file("ssh"), SSH)?;
    fs::set_permissions(file("ssh"), fs::Permissions::from_mode(0o755))?;
    fs::write(file("key"), "a key")?;
    fs::write(file("hosts"), "a host")?;
    let config = format!(
        "[[git.credentials]]\nurl = \"ssh://git@git.example.org\"\nfile = \"{}\"\nknown_hosts = \"{}\"\n",
        file("key"),
        file("hosts")
    );
    fs::write(file("server.toml"), config)?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let environment = vec![("PATH".to_owned(), path)];
    let server_arguments = vec!["--config".to_owned(), file("server.toml")];
    let cluster = Cluster::start(Options { server_arguments, environment, ..Options::default() })?;
    let url = format!("ssh://git@git.example.org{}", repository.path().display());
    let added = json(&cluster, &["repo", "add", &url, "--name", "tools"])?;
    assert_eq!(findings(&added), [("shout", "new")], "{added:#}");
    let called = fs::read_to_string(file("called"))?;
    let has = |words: &str| called.contains(words);
    assert!(
        has(&format!("-i\n{}\n", file("key"))) && has(&format!("UserKnownHostsFile={}\n", file("hosts"))),
        "{called}"
    );
    assert!(has("BatchMode=yes") && has("StrictHostKeyChecking=yes") && has("\ngit@git.example.org\n"), "{called}");
    Ok(())
}

#[test]
fn the_actions_of_the_examples_are_imported_and_run_as_their_readme_says() -> Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/actions");
    let repository = Repository::new()?;
    for action in ["line-count", "first-lines"] {
        for file in ["action.yaml", "main.sh"] {
            let path = format!("{action}/{file}");
            repository.write(&format!("examples/actions/{path}"), &fs::read_to_string(examples.join(&path))?)?;
        }
    }
    repository.commit()?;
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    // As `.`, from within the clone.
    let mut command = cluster.command(&["repo", "add", ".", "--subdir", "examples/actions", "--name", "examples"]);
    let added = Output::of(command.current_dir(repository.path()))?;
    ensure!(added.code == 0, "{} {}", added.stdout, added.stderr);
    json(&cluster, &["repo", "import", "examples"])?;
    let text = cluster.directory().join("text");
    fs::write(&text, "1\n2\n3\n4\n5\n6\n7\n")?;
    let workflow = examples.join("workflow.yaml").display().to_string();
    let run = cluster.run(&workflow, &[&format!("text=@{}", text.display())])?;
    assert_eq!((&run["state"], &run["outputs"]["lines"]), (&json!("succeeded"), &json!(5)), "{run:#}");
    Ok(())
}
