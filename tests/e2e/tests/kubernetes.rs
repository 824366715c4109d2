//! Sites whose executions are Jobs of a Kubernetes cluster. The cluster is played, `kubectl` and the Jobs' processes are real.

use std::path::Path;

use anyhow::{Context as _, Result};
use e2e_tests::{KubernetesCluster, Output, atoll};
use serde_json::{Value, json};

use crate::slurm::effects;

/// Elements that each leave a mark when they begin and when they end, and take so long.
fn marking(path: &Path, elements: u32, seconds: &str, more: &str) -> String {
    format!(
        "workflow: marks\nsteps:\n  a:\n    foreach: ${{{{ range({elements}) }}}}\n    with: {{ number: '${{{{ item }}}}' }}\n{more}    run: |\n      echo \"begin $number\" >> {path}\n      sleep {seconds}\n      echo \"end $number\" >> {path}\n",
        path = path.display()
    )
}

fn error_of(shown: &Value) -> &str {
    shown["error"]["message"].as_str().unwrap_or_default()
}

#[test]
fn a_fan_out_runs_as_jobs_with_their_limits_and_who_they_are() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let settings = "service_account = \"reader\"\nlabels = { team = \"hydro\" }\nnode_selector = { pool = \"batch\" }\npriority_class = \"low\"\n[[kubernetes.tolerations]]\nkey = \"batch\"\noperator = \"Exists\"\n";
    let cluster = kubernetes.site(settings)?;
    let workflow = "workflow: jobs\nsteps:\n  a:\n    foreach: ${{ range(3) }}\n    with: { number: '${{ item }}' }\n    resources: { cpu: 0.5, memory: 64MiB, time: 5m }\n    run: |\n      test -n \"$KUBERNETES_SERVICE_HOST\"\n      echo $((number * number)) > \"$ATOLL_OUTPUTS/square\"\n    outputs: { square: integer }\noutputs: { squares: '${{ steps.a.outputs.square }}' }\n";
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("cloud"));
    assert_eq!(shown["outputs"]["squares"], json!([0, 1, 4]));
    let (jobs, pods) = (kubernetes.of_agent("jobs")?, kubernetes.of_agent("pods")?);
    assert_eq!((jobs.len(), pods.len()), (3, 3));
    for pod in &pods {
        let spec = &pod["spec"];
        let limits = &spec["containers"][0]["resources"]["limits"];
        assert_eq!(limits, &json!({"cpu": "500m", "memory": "80Mi"}), "{spec:#}");
        assert_eq!((&spec["activeDeadlineSeconds"], &spec["serviceAccountName"]), (&json!(360), &json!("reader")));
        assert_eq!((&spec["nodeSelector"]["pool"], &spec["tolerations"][0]["key"]), (&json!("batch"), &json!("batch")));
        assert_eq!(pod["metadata"]["labels"]["team"], "hydro");
        assert_eq!(pod["metadata"]["labels"]["atoll/step"], "jobs.a");
    }
    Ok(())
}

#[test]
fn jobs_end_as_every_process_and_are_cancelled_and_kubectl_shows_them() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let cluster = kubernetes.site("")?;
    let failed = cluster.run("workflow: coded\nsteps:\n  a:\n    run: |\n      echo before; exit 7\n", &[])?;
    assert_eq!(failed["executions"][0]["exit_code"], 7, "{failed:#}\n{}", cluster.log("cloud"));
    let id = failed["run"].as_str().context("the run")?;
    assert!(cluster.call(&["logs", id])?.stdout.contains("before"));
    let mark = cluster.directory().join("mark");
    std::fs::write(&mark, "")?;
    let run = cluster.submit(&marking(&mark, 2, "600", ""), &[])?;
    cluster.eventually("both to run", || Ok(effects(&mark)?.len() == 2))?;
    let running = kubernetes.of_agent("pods")?.into_iter().filter(|pod| pod["status"]["phase"] == "Running");
    let names: Vec<String> = running.filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect();
    assert_eq!(names.len(), 2);
    kubernetes.kubectl(&["logs", &names[0]])?;
    cluster.call(&["cancel", &run.id])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "cancelled", "{shown:#}");
    cluster.eventually("their Jobs to be gone", || Ok(kubernetes.of_agent("jobs")?.len() == 1))?;
    let jobs = cluster.site("cloud").directory.join("jobs");
    cluster.eventually("nothing to be left of them", || {
        let left = |folder: &str| std::fs::read_dir(jobs.join(folder)).map(Iterator::count);
        Ok(left("")? == 3 && left("batches")? == 0 && left("news")? == 0)
    })
}

#[test]
fn an_answer_that_is_lost_and_an_agent_that_is_killed_have_no_job_run_twice() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let mut cluster = kubernetes.site("")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    kubernetes.order("lost")?;
    let run = cluster.submit(&marking(&path, 2, "3", ""), &[])?;
    cluster.eventually("both to run", || Ok(effects(&path)?.len() >= 2))?;
    cluster.kill_agent("cloud")?;
    kubernetes.end_of("lost")?;
    cluster.start_agent("cloud")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("cloud"));
    assert!(effects(&path)?.values().all(|times| *times == 1), "{:?}", effects(&path)?);
    assert_eq!(kubernetes.of_agent("jobs")?.len(), 2);
    Ok(())
}

#[test]
fn an_api_that_is_away_fails_nothing_and_one_that_refuses_says_why() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let cluster = kubernetes.site("")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    let running = cluster.submit(&marking(&path, 1, "4", ""), &[])?;
    cluster.eventually("it to run", || Ok(!effects(&path)?.is_empty()))?;
    kubernetes.order("away")?;
    let waiting = cluster.submit("workflow: patient\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    cluster.eventually("the agent to say so", || Ok(cluster.log("cloud").contains("Kubernetes cannot be reached")))?;
    assert_eq!(cluster.wait_for_end(&running)?["state"], "succeeded", "{}", cluster.log("cloud"));
    kubernetes.end_of("away")?;
    assert_eq!(cluster.wait_for_end(&waiting)?["state"], "succeeded", "{}", cluster.log("cloud"));
    kubernetes.order("quota")?;
    let waiting = cluster.submit("workflow: later\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let wanted =
        |shown: &Value| shown["executions"][0]["waiting_for"].as_str().is_some_and(|why| why.contains("quota"));
    cluster.wait_for_run(&waiting, wanted)?;
    kubernetes.end_of("quota")?;
    assert_eq!(cluster.wait_for_end(&waiting)?["state"], "succeeded", "{}", cluster.log("cloud"));
    kubernetes.order("forbidden")?;
    let shown = cluster.run("workflow: refused\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let why =
        "Kubernetes does not take the job in namespace default: jobs.batch is forbidden: User \"agent\" cannot create";
    assert!(error_of(&shown).contains(why), "{shown:#}");
    Ok(())
}

#[test]
fn what_a_pod_waits_for_is_shown_and_an_image_that_is_missing_fails_the_execution() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    kubernetes.order("full")?;
    let cluster = kubernetes.site("")?;
    let run = cluster.submit("workflow: waits\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let why = "is Pending (Unschedulable: 0/1 nodes are available: 1 Insufficient cpu.)";
    let is_shown =
        |shown: &Value| shown["executions"][0]["waiting_for"].as_str().is_some_and(|told| told.contains(why));
    cluster.wait_for_run(&run, is_shown)?;
    cluster.call(&["cancel", &run.id])?;
    assert_eq!(cluster.wait_for_end(&run)?["state"], "cancelled");
    kubernetes.end_of("full")?;
    kubernetes.order("podless")?;
    let run = cluster.submit("workflow: over-quota\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let why = "is Pending (FailedCreate: pods are forbidden: exceeded quota: compute";
    let is_shown =
        |shown: &Value| shown["executions"][0]["waiting_for"].as_str().is_some_and(|told| told.contains(why));
    cluster.wait_for_run(&run, is_shown)?;
    kubernetes.end_of("podless")?;
    assert_eq!(cluster.wait_for_end(&run)?["state"], "succeeded", "{}", cluster.log("cloud"));
    drop(cluster);
    let cluster = kubernetes.site("image = \"missing:1\"\nimage_seconds = 1\n")?;
    let shown = cluster.run("workflow: imageless\nsteps:\n  a:\n    run: |\n      true\n", &[])?;
    let why = "Kubernetes cannot start its job: Pending (ImagePullBackOff: Back-off pulling image \"missing:1\")";
    assert!(error_of(&shown).contains(why), "{shown:#}\n{}", cluster.log("cloud"));
    cluster.eventually("its Job to be gone", || {
        let jobs = kubernetes.of_agent("jobs")?;
        Ok(jobs.iter().all(|job| job["metadata"]["labels"]["atoll/step"] != "imageless.a"))
    })
}

#[test]
fn an_eviction_is_tried_again_and_a_pod_that_used_too_much_memory_is_told_apart() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let cluster = kubernetes.site("")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    let workflow = marking(&path, 1, "5", "    retry: { attempts: 3 }\n");
    let run = cluster.submit(&workflow, &[])?;
    cluster.eventually("it to run", || Ok(effects(&path)?.contains_key("begin 0")))?;
    kubernetes.order("evict")?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("cloud"));
    assert_eq!(shown["executions"][0]["attempt"], 2, "{shown:#}");
    assert!(cluster.log("cloud").contains("Evicted: The node was low on resource"), "{}", cluster.log("cloud"));
    let (begun, ended) = (effects(&path)?["begin 0"], effects(&path)?["end 0"]);
    assert_eq!((begun, ended), (2, 1));
    std::fs::write(&path, "")?;
    let run = cluster.submit(&marking(&path, 1, "600", ""), &[])?;
    cluster.eventually("it to run", || Ok(effects(&path)?.contains_key("begin 0")))?;
    kubernetes.order("oom")?;
    let shown = cluster.wait_for_end(&run)?;
    assert!(error_of(&shown).contains("more memory"), "{shown:#}\n{}", cluster.log("cloud"));
    Ok(())
}

#[test]
fn a_job_that_somebody_deletes_is_interrupted_and_tried_again() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let cluster = kubernetes.site("")?;
    let path = cluster.directory().join("effects");
    std::fs::write(&path, "")?;
    let run = cluster.submit(&marking(&path, 1, "3", "    retry: { attempts: 2 }\n"), &[])?;
    cluster.eventually("it to run", || Ok(effects(&path)?.contains_key("begin 0")))?;
    kubernetes.kubectl(&["delete", "jobs", "-l", "app.kubernetes.io/managed-by=atoll"])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!((&shown["state"], &shown["executions"][0]["attempt"]), (&json!("succeeded"), &json!(2)), "{shown:#}");
    assert_eq!(effects(&path)?["end 0"], 1);
    Ok(())
}

#[test]
fn the_manifests_are_taken_and_the_doctor_finds_what_is_missing() -> Result<()> {
    let kubernetes = KubernetesCluster::start()?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes/agent.yaml");
    let manifest = manifest.to_str().context("a path")?;
    kubernetes.kubectl(&["apply", "--dry-run=client", "-f", manifest])?;
    let folder = tempfile::tempdir()?;
    let config = kubernetes.agent_config("")?;
    let checks = || -> Result<Vec<(String, String, String)>> {
        let mut doctor = atoll(&["site", "doctor", "--json", "--data-dir"]);
        doctor.arg(folder.path().join("data")).arg("--config").arg(&config).env("XDG_CONFIG_HOME", "/nowhere");
        let document = Output::of(&mut doctor)?.document()?;
        let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let checks = document["checks"].as_array().context("checks")?.iter();
        let own = checks.filter(|check| text(check, "check").starts_with("kubernetes"));
        Ok(own.map(|check| (text(check, "check"), text(check, "state"), text(check, "found"))).collect())
    };
    let states = |checks: &[(String, String, String)]| {
        checks.iter().map(|(name, state, _)| format!("{name} {state}")).collect::<Vec<_>>().join(", ")
    };
    let before = checks()?;
    assert_eq!(
        states(&before),
        "kubernetes ok, kubernetes-rights ok, kubernetes-volume problem, kubernetes-job ok",
        "{before:#?}"
    );
    kubernetes.kubectl(&["apply", "-f", manifest])?;
    kubernetes.order("forbidden")?;
    let after = checks()?;
    assert_eq!(
        states(&after),
        "kubernetes ok, kubernetes-rights problem, kubernetes-volume ok, kubernetes-job problem",
        "{after:#?}"
    );
    assert_eq!(after[1].2, "in namespace default the agent may not create jobs");
    assert_eq!(kubernetes.of_agent("jobs")?.len(), 0, "the doctor leaves nothing");
    kubernetes.order("away")?;
    assert_eq!(states(&checks()?), "kubernetes problem");
    let role: Value = serde_json::from_str(&{
        kubernetes.end_of("away")?;
        kubernetes.kubectl(&["get", "role", "atoll-agent", "-o", "json"])?
    })?;
    let may = |resource: &str| {
        let mut rules = role["rules"].as_array().into_iter().flatten();
        rules.find(|rule| rule["resources"] == json!([resource])).map(|rule| rule["verbs"].clone())
    };
    assert_eq!((may("jobs"), may("pods")), (Some(json!(["create", "list", "delete"])), Some(json!(["list"]))));
    Ok(())
}
