//! Services of deployed workflows: well before they are ready, begun again when they are killed or not well, reached by steps of
//! their site, found again by the next agent, and gone when they are undeployed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e_tests::{Cluster, Options};
use serde_json::{Value, json};

const MANIFEST: &str = "name: echo\nversion: \"1\"\nkind: service\nport: any\nrestart: { backoff: 200ms, max: 3 }\n\
                        inputs: { told: string }\nresources: { cpu: 0.2 }\n";
/// Answers with its process id, as long as it is told nothing else.
const MODULE: &str = r#"
import http.server
import os
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists(os.path.join(self.server.told, "sick")) else 200)
        self.end_headers()
        self.wfile.write(b"%d hears %s" % (os.getpid(), self.path.encode()))

    def log_request(self, *_):
        pass


def serve(told):
    if os.path.exists(os.path.join(told, "broken")):
        sys.exit("the model is broken")
    print("listens at", os.environ["ATOLL_PORT"], flush=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["ATOLL_PORT"])), Handler)
    server.told = told
    server.serve_forever()


if __name__ == "__main__":
    serve(os.environ["told"])
"#;
const COMMAND: &str = "command: [python3, main.py]\nhealth: { http: /health, every: 200ms, failures: 2, start: 5s }\n";
const ASK: &str = "import os, sys, urllib.request as r; \
                   print(r.urlopen('http://' + os.environ['ATOLL_SERVICE_ECHO'] + '/hello').read().decode())";

struct Served {
    cluster: Cluster,
    /// What is in it tells the service what to do.
    told: PathBuf,
}

impl Served {
    /// With a service that `action.yaml` says this of.
    fn start(runtime: &str) -> Result<Self> {
        let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
        let (folder, told) = (cluster.directory().join("echo"), cluster.directory().join("told"));
        [&folder, &told].into_iter().try_for_each(fs::create_dir_all)?;
        fs::write(folder.join("action.yaml"), format!("{MANIFEST}{runtime}"))?;
        fs::write(folder.join("main.py"), MODULE)?;
        let served = Self { cluster, told };
        served.json(&["action", "push", &folder.display().to_string()], 0)?;
        Ok(served)
    }

    fn json(&self, arguments: &[&str], code: i32) -> Result<Value> {
        let output = self.cluster.call(&[arguments, &["--json"]].concat())?;
        ensure!(output.code == code, "{arguments:?}: {} {} {}", output.code, output.stdout, output.stderr);
        Ok(serde_json::from_str(&output.stdout)?)
    }

    fn deploy(&self, code: i32) -> Result<Value> {
        let file = self.cluster.directory().join("asking.yaml");
        let told = self.told.display();
        let text = format!(
            "workflow: asking\nservices: {{ echo: {{ action: echo@1, site: edge, with: {{ told: {told} }} }} }}\n\
             steps:\n  ask:\n    uses: echo\n    run: python3 -c \"{ASK}\" > \"$ATOLL_OUTPUTS/said\"\n    \
             outputs: {{ said: string }}\noutputs: {{ said: \"${{{{ steps.ask.outputs.said }}}}\" }}\n"
        );
        fs::write(&file, text)?;
        self.json(&["workflow", "deploy", &file.display().to_string()], code)
    }

    /// The process of the service, as a step hears of it that asks now; nothing if nobody answers.
    fn asked(&self) -> Result<Option<u32>> {
        let output = self.cluster.call(&["run", "asking", "--wait", "--json"])?;
        let run: Value = serde_json::from_str(&output.stdout)?;
        let said = run["outputs"]["said"].as_str().and_then(|said| said.strip_suffix(" hears /hello"));
        said.map(|pid| Ok(pid.parse()?)).transpose()
    }

    fn wait_for_another(&self, former: u32) -> Result<u32> {
        e2e_tests::wait_for("another process", || Ok(self.asked()?.filter(|pid| *pid != former)))
    }

    fn logs(&self, deployed: &Value) -> Result<String> {
        let execution = deployed["services"][0]["execution"].as_str().context("an execution")?;
        Ok(self.cluster.call(&["logs", execution])?.stdout)
    }

    fn wait_for_log(&self, deployed: &Value, words: &str) -> Result<()> {
        let found = self.cluster.eventually(words, || Ok(self.logs(deployed)?.contains(words)));
        found.with_context(|| self.logs(deployed).unwrap_or_default())
    }

    fn undeploy(&self) -> Result<()> {
        assert_eq!(self.json(&["workflow", "undeploy", "asking"], 0)?["state"], "gone");
        self.json(&["action", "remove", "echo@1"], 0).map(drop)
    }
}

fn kill(pid: u32) -> Result<()> {
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    ensure!(killed.success(), "{pid} was gone before it was killed");
    Ok(())
}

/// Whether a process runs: one that has ended may wait for the first of the machine to take note of it.
fn is_there(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn a_service_is_reached_by_steps_and_begun_again_when_it_is_killed_or_not_well() -> Result<()> {
    let served = Served::start(COMMAND)?;
    let deployed = served.deploy(0)?;
    assert_eq!((&deployed["state"], &deployed["source"]), (&json!("ready"), &Value::Null), "{deployed:#}");
    let service = &deployed["services"][0];
    assert_eq!(
        (&service["service"], &service["state"], &service["site"]),
        (&json!("echo"), &json!("ready"), &json!("edge"))
    );
    let first = served.asked()?.context("it answers")?;
    kill(first)?;
    let second = served.wait_for_another(first)?;
    served.wait_for_log(&deployed, "the service is begun again in 200ms: it was killed by signal 9")?;
    fs::write(served.told.join("sick"), "")?;
    // Whether it had been found well before or not: a step may be quicker than the shim's look.
    served.wait_for_log(&deployed, ": /health is answered with status 503")?;
    fs::remove_file(served.told.join("sick"))?;
    let third = served.wait_for_another(second)?;
    assert!(!is_there(second), "it was ended");
    assert_eq!(
        served.json(&["workflow", "show", "asking"], 0)?["services"][0]["restarts"],
        0,
        "it stayed where it was"
    );
    served.undeploy()?;
    assert!(!is_there(third), "it is gone");
    Ok(())
}

#[test]
fn a_service_outlives_its_agent_and_is_begun_anew_when_what_watches_over_it_is_killed() -> Result<()> {
    let mut served = Served::start("runtime: python\nhandler: main.py:serve\n")?;
    let deployed = served.deploy(0)?;
    assert_eq!(deployed["state"], "ready", "{deployed:#}");
    let first = served.asked()?.context("it answers")?;
    served.cluster.kill_agent("edge")?;
    served.cluster.start_agent("edge")?;
    assert_eq!(served.asked()?, Some(first), "it was found again, and where it listens");
    kill(first)?;
    let second = served.wait_for_another(first)?;
    let status = fs::read_to_string(format!("/proc/{second}/stat"))?;
    let shim = status.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).context("its parent")?;
    kill(shim.parse()?)?;
    let third = served.wait_for_another(second)?;
    assert!(is_there(third) && !is_there(second));
    assert_eq!(served.json(&["workflow", "show", "asking"], 0)?["services"][0]["restarts"], 1);
    served.undeploy()?;
    assert!(!is_there(third), "it is gone");
    Ok(())
}

#[test]
fn a_service_that_cannot_run_has_failed_and_says_why() -> Result<()> {
    let served = Served::start(COMMAND)?;
    fs::write(served.told.join("broken"), "")?;
    let deployed = served.deploy(1)?;
    assert_eq!(deployed["state"], "failed", "{deployed:#}");
    let reason = deployed["reason"].as_str().context("a reason")?;
    assert!(reason.contains("the service has ended 4 times in a row; the last time it exited with code 1"), "{reason}");
    served.wait_for_log(&deployed, "the model is broken")?;
    fs::remove_file(served.told.join("broken"))?;
    assert_eq!(served.deploy(0)?["state"], "ready", "deployed again it begins anew");
    served.undeploy()?;
    let missing = Served::start("command: [no-such-program]\n")?;
    let deployed = missing.deploy(1)?;
    let reason = deployed["reason"].as_str().context("a reason")?;
    assert!(deployed["state"] == "failed" && reason.contains("\"no-such-program\" is neither"), "{deployed:#}");
    Ok(())
}

#[test]
fn the_example_answers_in_which_lines_a_word_stands() -> Result<()> {
    let cluster = Cluster::start(Options { sites: vec!["edge"], ..Options::default() })?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/word-index");
    let (index, file) =
        (example.join("index").display().to_string(), example.join("workflow.yaml").display().to_string());
    for arguments in [&["action", "push", &index][..], &["workflow", "deploy", &file]] {
        let said = cluster.call(arguments)?;
        ensure!(said.code == 0, "{arguments:?}: {} {}", said.stdout, said.stderr);
    }
    let said = cluster.call(&["run", "word-index", "-i", "word=lake", "--wait", "--json"])?;
    assert_eq!(serde_json::from_str::<Value>(&said.stdout)?["outputs"]["lines"], "2", "{}", said.stdout);
    Ok(())
}
