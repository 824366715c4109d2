//! Executions as accounts of the machine that the test makes: who they are, and by trying what one account leaves to another.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use atoll_model::resources::{Confinement, IsolationProfile, Resources};
use atoll_model::session::{
    Binding, BindingSource, FailureReason, FinishedElement, NotStartedReason, Outcome, Requester, StepTemplate,
};
use atoll_model::value::{Type, Value};
use rustix::process::geteuid;

use crate::packages::wheel;
use crate::python::{Acting, failure};
use crate::site::{Site, eventually, output};

/// While another program changes the accounts it has them locked.
const PATIENCE: Duration = Duration::from_secs(60);

/// Accounts of the machine for the projects `a` and `b`, which go with this.
pub(crate) struct Accounts {
    prefix: String,
}

impl Accounts {
    /// Nothing where this process may not make any. A complete run of the tests takes that for a failure.
    pub(crate) fn make() -> Option<Self> {
        let has_useradd = Command::new("useradd").arg("--help").output().is_ok();
        if !geteuid().is_root() || !has_useradd {
            eprintln!("SKIPPED: only root makes accounts, with useradd");
            assert!(std::env::var_os("CI").is_none(), "CI has both");
            return None;
        }
        let accounts = Self { prefix: format!("atoll{:x}", std::process::id()) };
        for project in ["a", "b"] {
            accounts.change("groupadd", &[&accounts.team(project)]);
            let team = accounts.team(project);
            accounts.change("useradd", &["-M", "-U", "-G", &team, "-s", "/usr/sbin/nologin", &accounts.of(project)]);
        }
        Some(accounts)
    }

    pub(crate) fn of(&self, project: &str) -> String {
        format!("{}{project}", self.prefix)
    }

    fn team(&self, project: &str) -> String {
        format!("{}t{project}", self.prefix)
    }

    /// Of the agent's configuration: each project has the account that is named after it.
    pub(crate) fn settings(&self) -> String {
        self.settings_with("")
    }

    /// … with more lines.
    fn settings_with(&self, more: &str) -> String {
        format!(
            "[accounts]\n{more}\n[[accounts.rules]]\nperson = \"mallory\"\naccount = \"refuse\"\n[[accounts.rules]]\nproject = \"?*\"\n\
             account = \"{}{{project}}\"\n",
            self.prefix
        )
    }

    fn change(&self, program: &str, arguments: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = Command::new(program).args(arguments).output().unwrap();
            let words = String::from_utf8_lossy(&said.stderr).into_owned();
            if said.status.success() {
                return;
            }
            assert!(words.contains("lock") && Instant::now() < deadline, "{program} {arguments:?}: {words}");
        }
    }

    pub(crate) fn number(&self, project: &str) -> u32 {
        let said = Command::new("id").arg("-u").arg(self.of(project)).output().unwrap();
        String::from_utf8_lossy(&said.stdout).trim().parse().unwrap()
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        for project in ["a", "b"] {
            // What is left of it may be a moment from its end.
            self.change("userdel", &["-f", &self.of(project)]);
            self.change("groupdel", &[&self.team(project)]);
        }
    }
}

/// One that every account reaches: the first in the path may be in somebody's home.
const PYTHON: &str = "[python]\nprogram = \"/usr/bin/python3\"\n";

async fn site(accounts: &Accounts) -> Site {
    let mut site = Site::start_with(&accounts.settings()).await;
    site.open_to_all("a", "ada");
    site
}

fn ask(site: &mut Site, project: &str) {
    site.asked_by = Some(Requester { project: project.to_owned(), person: "ada".to_owned() });
}

fn saying(site: &mut Site, script: &str, profile: IsolationProfile) -> StepTemplate {
    let step = site.step(script);
    let confinement = Confinement { isolation: Some(profile), ..Confinement::default() };
    let resources = Resources { confinement, ..step.resources };
    StepTemplate { outputs: vec![output("said", Type::String)], resources, ..step }
}

fn said(end: &FinishedElement) -> &str {
    match end.outputs.as_slice() {
        [Value::String(said)] => said,
        _ => panic!("{end:?}"),
    }
}

async fn say(site: &mut Site, script: &str, profile: IsolationProfile) -> String {
    let step = saying(site, script, profile);
    let execution = site.run_step(step);
    said(&site.control.finished(execution).await).to_owned()
}

fn groups_of(account: &str) -> Vec<String> {
    let said = Command::new("id").args(["-G", account]).output().unwrap();
    let mut groups: Vec<String> = String::from_utf8_lossy(&said.stdout).split_whitespace().map(str::to_owned).collect();
    groups.sort();
    groups
}

#[tokio::test]
async fn an_execution_is_its_account_with_its_groups_and_has_no_way_back() {
    let Some(accounts) = Accounts::make() else { return };
    let mut site = site(&accounts).await;
    let who = "{ id -u; id -G | tr ' ' '\n' | sort | tr '\n' ' '; echo; echo $USER; awk '/^Cap(Prm|Eff|Amb)|^NoNewPrivs/ { print $2 }' /proc/self/status | sort -u | tr '\n' ' ';
for back in 'os.setuid(0)' 'os.setgroups([0])' 'os.chown(\".\", 0, 0)'; do python3 -c \"import os; $back\" 2>/dev/null && echo $back || :; done; } > $ATOLL_OUTPUTS/said";
    for profile in [IsolationProfile::None, IsolationProfile::Standard, IsolationProfile::Strict] {
        for project in ["a", "b"] {
            ask(&mut site, project);
            let account = accounts.of(project);
            let told = say(&mut site, who, profile).await;
            let lines: Vec<&str> = told.lines().map(str::trim).collect();
            let uid = accounts.number(project).to_string();
            let groups = groups_of(&account).join(" ");
            assert_eq!(lines, [uid.as_str(), &groups, &account, "0000000000000000 1"], "{profile:?} {project}");
        }
    }
}

#[tokio::test]
async fn what_one_account_has_another_does_not_read() {
    let Some(accounts) = Accounts::make() else { return };
    let mut site = site(&accounts).await;
    let held = site.step("echo precious > $ATOLL_OUTPUTS/file");
    let held = StepTemplate { outputs: vec![output("file", Type::File)], ..held };
    let held = site.run_step(held);
    let [lent] = <[Value; 1]>::try_from(site.control.finished(held).await.outputs).unwrap();
    let neighbour = site.step(
        "umask 0; echo mine > mine; echo said; echo out > $ATOLL_OUTPUTS/out; echo tmp > $TMPDIR/tmp; \
         for file in $PWD/mine $ATOLL_OUTPUTS/out $TMPDIR/tmp $PWD/../stdout $lent /proc/$$/environ /proc/$$/cwd/mine; do echo $file; done > @/paths; \
         echo $$ > @/pid; until [ -e @/gate ]; do sleep 0.02; done",
    );
    let source = BindingSource::Value(lent);
    let neighbour = site.run_bound(neighbour, vec![Binding { name: "lent".to_owned(), source }]);
    let pid = site.trace("pid").await;
    let data = site.data().display().to_string();
    let script = format!(
        "{{ for file in $(cat @/paths); do [ -z \"$(cat $file)\" ] || echo $file; done
for folder in {data} {data}/slots {data}/slots/* {data}/staged {data}/store {data}/store/objects {data}/journal {data}/identity {data}/actions; do
find $folder -maxdepth 1 -type f; done
kill -0 {pid} && echo signalled; }} 2>/dev/null > found || :
wc -l < found > $ATOLL_OUTPUTS/said",
        pid = pid.trim()
    );
    // The same account may, as far as its own rights go: what another is kept from is there.
    let own: usize = say(&mut site, &script, IsolationProfile::None).await.parse().unwrap();
    assert!(own >= 7, "{own}");
    ask(&mut site, "b");
    for profile in [IsolationProfile::None, IsolationProfile::Standard, IsolationProfile::Strict] {
        assert_eq!(say(&mut site, &script, profile).await, "0", "{profile:?}");
    }
    site.open_gate("gate");
    assert_eq!(site.control.finished(neighbour).await.outcome, Outcome::Succeeded);
}

/// Who has what is in the store.
fn owners(folder: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        found.push(entry.metadata().unwrap().uid());
        if entry.file_type().unwrap().is_dir() {
            found.extend(owners(&entry.path()));
        }
    }
    found
}

#[tokio::test]
async fn inputs_and_outputs_go_from_one_account_to_the_other_and_the_store_stays_the_agents() {
    let Some(accounts) = Accounts::make() else { return };
    let mut site = site(&accounts).await;
    let make = site.step(
        "mkdir -p $ATOLL_OUTPUTS/tree/deep; echo one > $ATOLL_OUTPUTS/tree/deep/file; chmod 600 $ATOLL_OUTPUTS/tree/deep/file; \
         chmod 700 $ATOLL_OUTPUTS/tree/deep; cp /bin/true $ATOLL_OUTPUTS/tree/run; chmod u+s $ATOLL_OUTPUTS/tree/run; echo told",
    );
    let make = StepTemplate { outputs: vec![output("tree", Type::Directory)], ..make };
    let made = site.run_step(make);
    let [tree] = <[Value; 1]>::try_from(site.control.finished(made).await.outputs).unwrap();
    ask(&mut site, "b");
    let script = "{ cat $tree/deep/file; $tree/run && echo runs; for way in 'echo x >> $tree/deep/file' 'chmod u+w $tree/deep/file' 'rm $tree/deep/file'; do \
                  eval \"$way\" 2>/dev/null && echo \"$way\" || :; done; } > $ATOLL_OUTPUTS/said";
    for profile in [IsolationProfile::Standard, IsolationProfile::Strict] {
        let read = saying(&mut site, script, profile);
        let source = BindingSource::Value(tree.clone());
        let read = site.run_bound(read, vec![Binding { name: "tree".to_owned(), source }]);
        assert_eq!(said(&site.control.finished(read).await), "one\nruns", "{profile:?}");
    }
    let store = site.data().join("store");
    assert!(owners(&store).iter().all(|owner| *owner == 0), "{:?}", owners(&store));
    let is_private = |name: &str| site.data().join(name).metadata().unwrap().mode() & 0o077 == 0;
    assert!(["store", "journal", "identity"].into_iter().all(is_private));
}

const WHO: &str = "import os\n\ndef handle(way):\n    if way == 'link':\n        os.symlink('@/theirs', os.environ['ATOLL_OUTPUTS'] + '/said')\n        print('something')\n    return {'said': f'{os.getuid()} {os.getpid()}'}\n";

#[tokio::test]
async fn a_warm_worker_of_one_account_is_never_called_for_another() {
    let Some(accounts) = Accounts::make() else { return };
    let mut site = Site::start_with(&format!("{PYTHON}{}", accounts.settings())).await;
    site.open_to_all("a", "ada");
    std::fs::write(site.scratch().join("theirs"), "theirs\n").unwrap();
    let mut acting = Acting::at(site, "{ way: string }", &[("said", "string", Type::String)], WHO, &[]).await;
    let mut found = Vec::new();
    for project in ["a", "b", "a", "b"] {
        ask(&mut acting.site, project);
        let outputs = acting.outputs(&[("way", Value::string("plain"))]).await;
        let [Value::String(said)] = outputs.as_slice() else { panic!("{outputs:?}") };
        let (uid, pid) = said.split_once(' ').unwrap();
        assert_eq!(uid, accounts.number(project).to_string());
        found.push(pid.to_owned());
    }
    assert_eq!((&found[0], &found[1]), (&found[2], &found[3]), "each was called again");
    assert_ne!(found[0], found[1]);
    // What is written for it goes to no place that it chooses.
    let end = acting.call(&[("way", Value::string("link"))]).await;
    assert_eq!(std::fs::read_to_string(acting.site.scratch().join("theirs")).unwrap(), "theirs\n", "{end:?}");
    assert_eq!(said(&end).split_once(' ').unwrap().0, accounts.number("b").to_string());
}

#[tokio::test]
async fn who_has_no_account_runs_nothing_and_hears_why() {
    let Some(accounts) = Accounts::make() else { return };
    let mut site = site(&accounts).await;
    site.asked_by = Some(Requester { project: "a".to_owned(), person: "mallory".to_owned() });
    let refused = site.run("touch @/ran");
    let Outcome::NotStarted { reason, message } = site.control.finished(refused).await.outcome else {
        panic!("it ran")
    };
    assert_eq!(reason, NotStartedReason::Refused);
    assert!(message.contains("mallory") && message.contains("rule 1 of [accounts]"), "{message}");
    ask(&mut site, "c");
    let unknown = site.run("touch @/ran");
    let Outcome::Failed { reason, message, .. } = site.control.finished(unknown).await.outcome else {
        panic!("it ran")
    };
    assert_eq!(reason, FailureReason::NotExecutable);
    assert!(message.contains(&accounts.of("c")) && message.contains("useradd"), "{message}");
    assert!(!site.scratch().join("ran").exists());
}

#[tokio::test]
async fn what_runs_as_an_account_is_found_again_by_the_next_agent_and_can_be_cancelled() {
    let Some(accounts) = Accounts::make() else { return };
    let mut site = site(&accounts).await;
    let script = "echo > @/begun; until [ -e @/gate ]; do sleep 0.02; done; id -u > $ATOLL_OUTPUTS/said";
    let stays = saying(&mut site, script, IsolationProfile::Standard);
    let stays = site.run_step(stays);
    let endless = site.run("echo $$ > @/pid; exec sleep 600");
    site.trace("begun").await;
    let pid = site.traced_pid("pid").await;
    site.kill_agent();
    site.start_agent().await;
    site.cancel(endless);
    assert_eq!(site.control.finished(endless).await.outcome, Outcome::Cancelled);
    eventually("the end of what was cancelled", || (!crate::site::is_alive(pid)).then_some(())).await;
    site.open_gate("gate");
    assert_eq!(said(&site.control.finished(stays).await), accounts.number("a").to_string());
}

#[tokio::test]
async fn packages_are_installed_as_the_account_that_is_named_for_it_and_belong_to_the_agent_then() {
    let Some(accounts) = Accounts::make() else { return };
    let wheels = tempfile::tempdir().unwrap();
    std::fs::set_permissions(wheels.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    wheel(wheels.path(), "greet", "1.0", "def greet(name):\n    return 'hello ' + name\n");
    let python = format!("{PYTHON}offline = true\nwheels = {:?}\n", wheels.path());
    let module = "import greet\n\ndef handle(name):\n    return {'said': greet.greet(name)}\n";
    let outputs = [("said", "string", Type::String)];
    let input = [("name", Value::string("you"))];
    for installer in [None, Some(accounts.of("b"))] {
        let line = installer.as_ref().map(|name| format!("installer = {name:?}")).unwrap_or_default();
        let mut site = Site::start_with(&format!("{python}{}", accounts.settings_with(&line))).await;
        site.open_to_all("a", "ada");
        let files = [("requirements.txt", "greet==1.0\n")];
        let mut acting = Acting::at(site, "{ name: string }", &outputs, module, &files).await;
        let end = acting.call(&input).await;
        if installer.is_none() {
            let (reason, message) = failure(end);
            assert!(reason == FailureReason::NotExecutable && message.contains("`installer`"), "{message}");
            continue;
        }
        assert_eq!(said(&end), "hello you");
        let owners = owners(&acting.site.data().join("environments"));
        assert!(!owners.is_empty() && owners.iter().all(|owner| *owner == 0), "{owners:?}");
    }
}
