//! Executions as an account of the machine, from the command line to the process: who asks, in which project.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::Result;
use e2e_tests::{Cluster, Options, Output, atoll, wait_for};

/// An account of the machine, which goes with this.
struct Account(String);

impl Account {
    /// Nothing where this process may not make any. A complete run of the tests takes that for a failure.
    fn make() -> Result<Option<Self>> {
        let is_root = Output::of(Command::new("id").arg("-u"))?.stdout.trim() == "0";
        if !is_root || Command::new("useradd").arg("--help").output().is_err() {
            eprintln!("SKIPPED: only root makes accounts, with useradd");
            assert!(std::env::var_os("CI").is_none(), "CI has both");
            return Ok(None);
        }
        let account = Self(format!("atolle{:x}", std::process::id()));
        account.change(&["useradd", "-M", "-U", "-s", "/usr/sbin/nologin"])?;
        Ok(Some(account))
    }

    /// While another program changes the accounts it has them locked.
    fn change(&self, command: &[&str]) -> Result<()> {
        wait_for("a change of the accounts", || {
            let said = Output::of(Command::new(command[0]).args(&command[1..]).arg(&self.0))?;
            anyhow::ensure!(said.code == 0 || said.stderr.contains("lock"), "{}", said.stderr);
            Ok((said.code == 0).then_some(()))
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.change(&["userdel", "-f"]).unwrap();
    }
}

const WORKFLOW: &str = "workflow: who\nsteps:\n  ask:\n    run: id -un > $ATOLL_OUTPUTS/who\n    outputs: { who: string }\n\
                        outputs: { who: \"${{ steps.ask.outputs.who }}\" }\n";

#[test]
fn a_run_of_a_project_runs_as_the_account_that_the_site_has_for_it_and_no_other_runs() -> Result<()> {
    let Some(account) = Account::make()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("agent.toml");
    let settings = "[accounts]\n[[accounts.rules]]\nproject = \"demo\"\nperson = \"admin\"\naccount = \"NAME\"\n";
    fs::write(&config, settings.replace("NAME", &account.0))?;
    let arguments = vec!["--config".to_owned(), config.display().to_string()];
    let site_arguments = BTreeMap::from([("lab", arguments)]);
    let cluster = Cluster::start(Options { sites: vec!["lab"], site_arguments, ..Options::default() })?;
    let test = |project: &str| {
        let mut command = atoll(&["site", "idmap", "test", "--json", "--person", "admin", "--project", project]);
        Output::of(command.arg("--config").arg(&config).arg("--data-dir").arg(&cluster.site("lab").directory))
    };
    let mode = |mode| fs::set_permissions(cluster.directory(), fs::Permissions::from_mode(mode));
    mode(0o700)?;
    let shut = test("demo")?;
    assert_eq!(shut.code, 1, "{shut:?}");
    assert!(shut.stdout.contains("chmod o+x"), "the folders of the test are for root alone: {shut:?}");
    mode(0o711)?;
    let open = test("demo")?;
    assert_eq!(open.code, 0, "{open:?}");
    let open = open.document()?;
    assert_eq!(open["account"], account.0.as_str(), "{open:#}");
    assert_eq!(open["rule"], "rule 1 of [accounts]", "{open:#}");
    let other = test("other")?;
    assert!(other.code == 1 && other.stderr.contains("no account for runs of admin in the project other"), "{other:?}");

    let mut doctor = atoll(&["site", "doctor", "--json", "--config"]);
    let looked = Output::of(doctor.arg(&config).arg("--data-dir").arg(&cluster.site("lab").directory))?.document()?;
    let check =
        looked["checks"].as_array().and_then(|all| all.iter().find(|check| check["check"] == "accounts")).cloned();
    let check = check.unwrap_or_default();
    assert_eq!(
        (check["state"].as_str(), check["found"].as_str().is_some_and(|found| found.contains(&account.0))),
        (Some("ok"), true),
        "{check}"
    );

    let file = folder.path().join("who.yaml");
    fs::write(&file, WORKFLOW)?;
    let run = |project: &str| {
        let mut command = cluster.command(&["run", "--json", "--wait", "--project", project]);
        Output::of(command.arg(&file))
    };
    let ran = run("demo")?;
    assert_eq!(ran.document()?["outputs"]["who"], account.0.as_str(), "{ran:?}");
    let refused = run("other")?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(format!("{refused:?}").contains("no account for runs of admin in the project other"), "{refused:?}");
    Ok(())
}
