//! Several servers on one PostgreSQL: the leader killed, cut off, its database restarted, all under load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Database, Link, Options, Output, Run, atoll, wait_for};
use serde_json::Value;
use tempfile::TempDir;

const SERVERS: usize = 3;

struct Server {
    directory: PathBuf,
    /// The way to the database, which can be cut.
    link: Link,
    process: Option<Child>,
    ready: Value,
}

/// Servers that share a database and a bucket, and one site; everything ends when it is dropped.
struct Fleet {
    servers: Vec<Server>,
    /// A server that is left alone to find out by itself.
    cut_off: Option<Child>,
    agent: Option<Child>,
    database: Database,
    directory: TempDir,
}

impl Fleet {
    fn start(database: Database) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("atoll-ha-").tempdir()?;
        let mut fleet = Self { servers: Vec::new(), cut_off: None, agent: None, database, directory };
        for index in 0..SERVERS {
            let own = fleet.directory.path().join(format!("server{index}"));
            std::fs::create_dir(&own)?;
            // What one installation has in common, as docs/postgresql.md says.
            for file in ["ca.pem", "ca.key", "bucket.key", "master.key", "admin-token", "api-tokens.json"] {
                if let Some(first) = fleet.servers.first() {
                    std::fs::copy(first.directory.join(file), own.join(file))?;
                }
            }
            let link = Link::new(([127, 0, 0, 1], fleet.database.port()).into())?;
            fleet.servers.push(Server { directory: own, link, process: None, ready: Value::Null });
            fleet.start_server(index)?;
        }
        // On a machine that is very busy, a leader may lose its lease right away.
        let token = wait_for("a token", || {
            fleet.tend()?;
            Ok(fleet.call(&["site", "token", "create", "edge", "--json"])?.json().ok())
        })?;
        let site = fleet.directory.path().join("site");
        let joined = Output::of(
            atoll(&["agent", "join"]).arg(token["token"].as_str().context("a token")?).arg("--data-dir").arg(&site),
        )?;
        ensure!(joined.code == 0, "{}", joined.stderr);
        let mut command =
            atoll(&["agent", "run", "--import-root", "/", "--server", &fleet.each("agent_addr"), "--data-dir"]);
        command.arg(&site).stdin(Stdio::null()).stdout(fleet.log("agent")?).stderr(fleet.log("agent")?);
        fleet.agent = Some(command.spawn()?);
        Ok(fleet)
    }

    fn log(&self, name: &str) -> Result<std::fs::File> {
        let path = self.directory.path().join(format!("{name}.log"));
        Ok(std::fs::OpenOptions::new().create(true).append(true).open(path)?)
    }

    fn start_server(&mut self, index: usize) -> Result<()> {
        let log = self.log(&format!("server{index}"))?;
        let bucket = self.directory.path().join("bucket");
        let server = &mut self.servers[index];
        let ready = server.directory.join("ready.json");
        let address = |name: &str, scheme: &str| {
            let known = server.ready[name].as_str().map(|address| address.trim_start_matches(scheme).to_owned());
            known.unwrap_or_else(|| "127.0.0.1:0".to_owned())
        };
        let mut command = atoll(&["server", "--plain-http", "--data-dir"]);
        command.arg(&server.directory).arg("--ready-file").arg(&ready).arg("--bucket").arg(bucket);
        command.args(["--listen", &address("url", "http://"), "--agent-listen", &address("agent_addr", "")]);
        command.arg("--store").arg(format!("postgres://atoll@{}/atoll", server.link.address()));
        if ready.exists() {
            std::fs::remove_file(&ready)?;
        }
        let mut child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        server.ready = wait_for("a server", || {
            ensure!(child.try_wait()?.is_none(), "a server has ended; see its log");
            Ok(std::fs::read(&ready).ok().and_then(|text| serde_json::from_slice(&text).ok()))
        })?;
        server.process = Some(child);
        Ok(())
    }

    /// Starts again what has ended by itself, as a service manager does.
    fn tend(&mut self) -> Result<()> {
        for index in 0..self.servers.len() {
            if let Some(process) = &mut self.servers[index].process
                && process.try_wait()?.is_some()
            {
                self.start_server(index)?;
            }
        }
        Ok(())
    }

    /// A field of what every server says of itself, with commas between.
    fn each(&self, field: &str) -> String {
        let said: Vec<&str> = self.servers.iter().filter_map(|server| server.ready[field].as_str()).collect();
        said.join(",")
    }

    fn call(&self, arguments: &[&str]) -> Result<Output> {
        let token = self.servers[0].ready["token"].as_str().context("a token")?;
        Output::of(atoll(arguments).env("ATOLL_URL", self.each("url")).env("ATOLL_TOKEN", token))
    }

    fn epoch(&self) -> Result<u64> {
        Ok(self.database.query("SELECT epoch FROM atoll.leader")?.parse()?)
    }

    fn leader(&self) -> Result<usize> {
        let url = self.database.query("SELECT api_url FROM atoll.leader")?;
        self.servers.iter().position(|server| server.ready["url"] == *url).context("a leader that is known")
    }

    /// Waits until another leads than under `epoch`; how long that took.
    fn takeover(&mut self, epoch: u64) -> Result<Duration> {
        let began = Instant::now();
        wait_for("another leader", || {
            self.tend()?;
            Ok(self.epoch().is_ok_and(|now| now > epoch).then_some(()))
        })?;
        Ok(began.elapsed())
    }

    fn signal_cut_off(&self, signal: &str) -> Result<()> {
        let pid = self.cut_off.as_ref().context("it was started")?.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status()?;
        ensure!(status.success(), "kill -s {signal}");
        Ok(())
    }

    /// Whoever leads no more ends by itself, and says that it has failed.
    fn end_of_cut_off(&mut self) -> Result<()> {
        let mut process = self.cut_off.take().context("it was started")?;
        let status = wait_for("the end of the leader that was", || Ok(process.try_wait()?))?;
        ensure!(!status.success(), "it says that it has failed");
        Ok(())
    }

    /// The runs take turns, so that one of many takes long to its end: it is waited for as long as it goes on.
    fn wait_for_success(&mut self, run: &str) -> Result<()> {
        let mut last = Value::Null;
        loop {
            let news = wait_for(run, || {
                self.tend()?;
                let Ok(shown) = self.call(&["show", run, "--json"])?.json() else { return Ok(None) };
                let is_new = ["state", "counts"].iter().any(|field| shown[field] != last[field]);
                Ok(is_new.then_some(shown))
            });
            last = news.with_context(|| format!("seen last: {last}"))?;
            if matches!(last["state"].as_str(), Some("succeeded" | "failed" | "cancelled")) {
                ensure!(last["state"] == "succeeded", "{last}");
                return Ok(());
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let processes = self.servers.iter_mut().filter_map(|server| server.process.take());
        for mut child in processes.chain(self.agent.take()).chain(self.cut_off.take()) {
            // Whatever has ended already needs no end.
            let _ = child.kill();
            let _ = child.wait();
        }
        let stopped = Output::of(atoll(&["agent", "stop-work", "--data-dir"]).arg(self.directory.path().join("site")));
        if !stopped.is_ok_and(|output| output.code == 0) {
            eprintln!("what the agent has left running could not be ended");
        }
        if std::thread::panicking() {
            for name in ["server0", "server1", "server2", "agent"] {
                let text =
                    std::fs::read_to_string(self.directory.path().join(format!("{name}.log"))).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("---- {name}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
    }
}

/// Every execution leaves a line outside of Atoll when it starts.
fn workflow(directory: &Path) -> Result<PathBuf> {
    let effects = directory.join("effects");
    let text = format!(
        "workflow: failover\nsteps:\n  first:\n    foreach: ${{{{ range(8) }}}}\n    with: {{ number: \"${{{{ item }}}}\" }}\n    run: |\n      echo \"$ATOLL_EXECUTION\" >> {effects}\n      sleep 0.1\n  second:\n    after: [first]\n    foreach: ${{{{ range(4) }}}}\n    run: echo \"$ATOLL_EXECUTION\" >> {effects}\n",
        effects = effects.display()
    );
    let path = directory.join("failover.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Executions of one run of it.
const EXECUTIONS: usize = 12;

/// A client that submits one run after the other, whatever happens, until it is dropped.
struct Load {
    acknowledged: Arc<Mutex<Vec<(Instant, String)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(fleet: &Fleet) -> Result<Self> {
        let workflow = workflow(fleet.directory.path())?;
        let (urls, token) =
            (fleet.each("url"), fleet.servers[0].ready["token"].as_str().context("a token")?.to_owned());
        let (acknowledged, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (list, ended) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let submit = move || {
            while !ended.load(Ordering::SeqCst) {
                let begun = Instant::now();
                let mut call = atoll(&["run", "--json"]);
                call.arg(&workflow).env("ATOLL_URL", &urls).env("ATOLL_TOKEN", &token);
                // A run that was not acknowledged may exist or not: only that it does not run twice is asked of it.
                match Output::of(&mut call).and_then(|output| output.json()) {
                    Ok(document) => {
                        let run = document["run"].as_str().unwrap_or_default().to_owned();
                        list.lock().expect("no thread panics with it").push((begun, run));
                    }
                    Err(error) => println!("a run was not acknowledged: {error}"),
                }
            }
        };
        Ok(Self { acknowledged, stop, thread: Some(std::thread::spawn(submit)) })
    }

    /// Waits until so many runs were acknowledged that were submitted after `begun`.
    fn goes_on(&self, fleet: &mut Fleet, begun: Instant, runs: usize) -> Result<Duration> {
        wait_for("runs to be acknowledged", || {
            fleet.tend()?;
            let list = self.acknowledged.lock().expect("no thread panics with it");
            Ok((list.iter().filter(|(at, _)| *at >= begun).count() >= runs).then(|| begun.elapsed()))
        })
    }

    fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it is ended once").join().expect("it does not panic");
        std::mem::take(&mut *self.acknowledged.lock().expect("no thread panics with it"))
            .into_iter()
            .map(|(_, run)| run)
            .collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Breaks the leader in the given way, several times, while runs are submitted and go on; then looks at what has really
/// happened.
fn survives(
    rounds: usize,
    break_leader: impl Fn(&mut Fleet, usize) -> Result<()>,
    mend: impl Fn(&mut Fleet, usize) -> Result<()>,
) {
    let Some(database) = Database::start().unwrap() else { return };
    let mut fleet = Fleet::start(database).unwrap();
    let load = Load::start(&fleet).unwrap();
    let (mut takeovers, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        load.goes_on(&mut fleet, Instant::now(), 3).unwrap();
        let (leader, epoch) = (fleet.leader().unwrap(), fleet.epoch().unwrap());
        let broken = Instant::now();
        break_leader(&mut fleet, leader).unwrap();
        takeovers.push(fleet.takeover(epoch).unwrap());
        answers.push(load.goes_on(&mut fleet, broken, 1).unwrap());
        mend(&mut fleet, leader).unwrap();
    }
    let runs = load.end();
    holds_everything_once(&mut fleet, &runs);
    println!("{} runs, another leader after {}", runs.len(), quantiles(&mut takeovers));
    println!("a submission that began after the break was answered after {}", quantiles(&mut answers));
}

fn quantiles(measured: &mut [Duration]) -> String {
    measured.sort();
    let at = |share: f64| measured[((share * measured.len() as f64).ceil() as usize).max(1) - 1];
    format!("p50 {:.2?}, p99 {:.2?} of {}", at(0.5), at(0.99), measured.len())
}

/// Each execution of each run that was acknowledged has run, and none at all has twice; the tables say so too.
fn holds_everything_once(fleet: &mut Fleet, runs: &[String]) {
    for run in runs {
        fleet.wait_for_success(run).unwrap();
    }
    let effects = std::fs::read_to_string(fleet.directory.path().join("effects")).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in effects.lines() {
        *counts.entry(line).or_default() += 1;
    }
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
    for run in runs {
        let shown = fleet.call(&["show", run, "--json"]).unwrap().json().unwrap();
        let executions = shown["executions"].as_array().unwrap();
        assert_eq!(executions.len(), EXECUTIONS, "{run}");
        let lacking: Vec<_> = executions.iter().filter_map(|row| row["execution"].as_str()).collect();
        let lacking: Vec<_> = lacking.into_iter().filter(|name| !counts.contains_key(name)).collect();
        assert!(lacking.is_empty(), "of {run}, these have not run: {lacking:?}");
    }
    let names: Vec<String> = runs.iter().map(|run| format!("'{run}'")).collect();
    let sql = format!(
        "SELECT count(DISTINCT run), count(*) FROM atoll.executions WHERE state = 'succeeded' AND run IN ({})",
        names.join(",")
    );
    let rows = format!("{}|{}", runs.len(), EXECUTIONS * runs.len());
    wait_for("every run to be in the tables", || Ok((fleet.database.query(&sql)? == rows).then_some(()))).unwrap();
}

/// `ATOLL_FAILOVER_ROUNDS` of them; 3 unless it is set.
fn rounds() -> usize {
    std::env::var("ATOLL_FAILOVER_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

#[test]
fn b3_a_leader_that_is_killed_under_load_is_replaced_and_nothing_is_lost_or_run_twice() {
    let kill = |fleet: &mut Fleet, leader: usize| {
        let mut process = fleet.servers[leader].process.take().context("it runs")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    };
    survives(rounds(), kill, Fleet::start_server);
}

#[test]
fn b3_a_leader_that_is_cut_off_from_the_database_ends_and_is_replaced() {
    let cut = |fleet: &mut Fleet, leader: usize| {
        fleet.servers[leader].link.cut();
        fleet.cut_off = fleet.servers[leader].process.take();
        Ok(())
    };
    let mend = |fleet: &mut Fleet, leader: usize| {
        fleet.end_of_cut_off()?;
        fleet.servers[leader].link.mend();
        fleet.start_server(leader)
    };
    survives(2, cut, mend);
}

/// Its clock stands still with it: the lease has run out for everybody else, and what it was about to write, it writes.
#[test]
fn b3_a_leader_that_sleeps_through_its_lease_is_refused_by_the_database() {
    let stop = |fleet: &mut Fleet, leader: usize| {
        fleet.cut_off = fleet.servers[leader].process.take();
        fleet.signal_cut_off("STOP")
    };
    let mend = |fleet: &mut Fleet, leader: usize| {
        fleet.signal_cut_off("CONT")?;
        fleet.end_of_cut_off()?;
        let log = std::fs::read_to_string(fleet.directory.path().join(format!("server{leader}.log")))?;
        // Which it notices first: that another leads, or that a renewal which was under way has had no answer.
        let says_why = log.contains("another server") || log.contains("could not be renewed in time");
        ensure!(says_why, "it does not say why it has ended: {log}");
        fleet.start_server(leader)
    };
    survives(2, stop, mend);
}

#[test]
fn b3_a_database_that_is_restarted_under_load_loses_nothing_that_was_acknowledged() {
    let Some(database) = Database::start().unwrap() else { return };
    let mut fleet = Fleet::start(database).unwrap();
    let load = Load::start(&fleet).unwrap();
    for _ in 0..3 {
        load.goes_on(&mut fleet, Instant::now(), 3).unwrap();
        fleet.database.restart().unwrap();
        load.goes_on(&mut fleet, Instant::now(), 1).unwrap();
    }
    let runs = load.end();
    holds_everything_once(&mut fleet, &runs);
}

#[test]
fn an_installation_that_moves_to_postgresql_goes_on_where_it_stopped() {
    let Some(database) = Database::start().unwrap() else { return };
    let mut cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() }).unwrap();
    let workflow = "workflow: moved\nsteps:\n  one: { site: edge, run: sleep 2 }\n";
    let ended = cluster.run("workflow: before\nsteps:\n  one: { run: \"true\" }\n", &[]).unwrap();
    let going_on = cluster.submit(workflow, &[]).unwrap();
    cluster.kill_server().unwrap();
    let address = format!("postgres://atoll@127.0.0.1:{}/atoll", database.port());
    let from = format!("sled:{}", cluster.directory().join("server").display());
    let migrate = || cluster.call(&["server", "migrate", "--from", &from, "--to", &address]).unwrap();
    let moved = migrate();
    assert_eq!(moved.code, 0, "{}{}", moved.stdout, moved.stderr);
    let again = migrate();
    assert!(again.code != 0 && again.stderr.contains("holds an installation already"), "{}", again.stderr);
    cluster.start_server_with(&["--store", &address]).unwrap();
    assert_eq!(cluster.wait_for_end(&going_on).unwrap()["state"], "succeeded");
    let before = Run { id: ended["run"].as_str().unwrap().to_owned() };
    assert_eq!(cluster.show(&before).unwrap()["state"], "succeeded");
    wait_for("both runs to be in the tables", || {
        Ok((database.query("SELECT count(*) FROM atoll.runs")? == "2").then_some(()))
    })
    .unwrap();
}
