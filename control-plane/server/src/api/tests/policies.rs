//! Policies of projects, as people apply them and are shown them.

use std::sync::{Arc, Mutex};

use atoll_model::session::StepTemplate;
use serde_json::json;

use super::idle;
use crate::testing::{Agent, Plane, Work};

const MAKES: &str = "workflow: makes\nsteps:\n  a:\n    run: echo\n    outputs: { data: file }\noutputs:\n  data: ${{ steps.a.outputs.data }}\n";
const CONFINED: &str = "attributes:\n  zone: { type: enum, values: [eu, us] }\nplacement:\n  - match: { step: a }\n    confine: { to: edge, bucket: allowed }\n";
const PATH: &str = "/projects/rivers/policy";

async fn apply(plane: &Plane, body: serde_json::Value) -> (u16, serde_json::Value) {
    plane.json(plane.ask("PUT", &format!("/api/v1{PATH}")).json(&body)).await
}

#[tokio::test]
async fn a_policy_is_applied_shown_and_kept_with_its_versions() {
    let plane = Plane::start().await;
    assert_eq!(plane.get(PATH).await.1["version"], 0);
    let (status, applied) = apply(&plane, json!({ "source": CONFINED, "file_name": "eu.yaml" })).await;
    assert_eq!((status, &applied["version"]), (200, &1.into()), "{applied}");
    assert_eq!((&applied["rules"][0]["file"], &applied["rules"][0]["line"]), (&"eu.yaml".into(), &4.into()));
    assert_eq!(applied["rules"][0]["says"], json!(["confine"]));
    assert!(applied["applied_by"].is_string() && applied["applied_at"].is_string());
    let second = json!({ "source": "placement: []\n", "file_name": "eu.yaml", "instead_of": 1 });
    assert_eq!(apply(&plane, second.clone()).await.1["version"], 2);
    let stale = json!({ "source": CONFINED, "instead_of": 1 });
    assert_eq!(apply(&plane, stale).await.0, 409);
    let shown = plane.get(PATH).await.1;
    let versions = shown["versions"].as_array().unwrap();
    assert_eq!(versions.iter().map(|version| &version["version"]).collect::<Vec<_>>(), [1, 2]);
    assert_ne!(versions[0]["hash"], versions[1]["hash"]);
}

#[tokio::test]
async fn a_policy_that_is_wrong_is_refused_with_file_line_and_column() {
    let plane = Plane::start().await;
    let (status, refused) = apply(&plane, json!({ "source": "placement:\n  - push: sometimes\n" })).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &"invalid_policy".into()), "{refused}");
    assert!(refused.to_string().contains("policy.yaml"), "{refused}");
    let (status, _) = plane.json(plane.ask_as(None, "PUT", &format!("/api/v1{PATH}")).json(&json!({}))).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_confined_object_is_not_downloaded_and_the_reason_names_the_rule_only() {
    let plane = Plane::start().await;
    assert_eq!(apply(&plane, json!({ "source": CONFINED, "file_name": "eu.yaml" })).await.0, 200);
    let made: Arc<Mutex<Option<Agent>>> = Arc::default();
    let known = Arc::clone(&made);
    let work: Work = Arc::new(move |_, _| {
        known.lock().unwrap().as_ref().map(|agent: &Agent| vec![agent.keep("data", b"the secret content")])
    });
    let agent = plane.site("edge", work).await;
    *made.lock().unwrap() = Some(agent);
    let body = json!({ "source": MAKES, "project": "rivers" });
    let (status, submitted) = plane.post("/runs", body).await;
    assert_eq!(status, 201, "{submitted}");
    let run = submitted["run"].as_str().unwrap();
    assert_eq!(plane.wait(run).await["state"], "succeeded");
    let (status, refused) = plane.get(&format!("/runs/{run}/outputs/data")).await;
    assert_eq!(status, 403, "{refused}");
    assert!(refused.to_string().contains("eu.yaml:4") && !refused.to_string().contains("secret"), "{refused}");
    let rules = plane.get(&format!("/runs/{run}/rules")).await.1;
    assert_eq!(
        (&rules["data"][0]["data"], &rules["data"][0]["sites"]),
        (&"a.data".into(), &json!(["edge"])),
        "{rules}"
    );
    let plan = plane.post("/plan", json!({ "source": MAKES, "project": "rivers" })).await.1;
    assert_eq!(plan["steps"][0]["site"], "edge");
}

#[tokio::test]
async fn a_workflow_that_no_site_may_run_under_the_rules_is_refused_with_them() {
    let plane = Plane::start().await;
    plane.site("hpc", idle()).await;
    plane.join("edge").await;
    assert_eq!(apply(&plane, json!({ "source": CONFINED, "file_name": "eu.yaml" })).await.0, 200);
    let elsewhere = MAKES.replace("    run: echo\n", "    run: echo\n    site: hpc\n");
    let (status, refused) = plane.post("/runs", json!({ "source": elsewhere, "project": "rivers" })).await;
    assert_eq!(status, 422, "{refused}");
    assert!(refused.to_string().contains("eu.yaml:4"), "{refused}");
    assert_eq!(plane.post("/runs", json!({ "source": elsewhere })).await.0, 201, "another project has no such rule");
}

async fn simulate(plane: &Plane, source: &str) -> (u16, serde_json::Value) {
    plane.post(&format!("{PATH}/simulate"), json!({ "source": source, "file_name": "eu.yaml" })).await
}

#[tokio::test]
async fn rules_are_tried_on_recorded_runs_before_they_are_applied() {
    let plane = Plane::start().await;
    let made: Arc<Mutex<Option<Agent>>> = Arc::default();
    let known = Arc::clone(&made);
    let work: Work = Arc::new(move |template: &StepTemplate, _| {
        if template.outputs.is_empty() {
            return Some(Vec::new());
        }
        known.lock().unwrap().as_ref().map(|agent: &Agent| vec![agent.keep("data", b"content")])
    });
    *made.lock().unwrap() = Some(plane.site("edge", Arc::clone(&work)).await);
    plane.site("hpc", work).await;
    let crosses = format!(
        "{}  b:\n    run: cat\n    site: hpc\n    with: {{ data: \"${{{{ steps.a.outputs.data }}}}\" }}\n",
        "workflow: crosses\nsteps:\n  a:\n    run: echo\n    site: edge\n    outputs: { data: file }\n"
    );
    let run = plane.post("/runs", json!({ "source": crosses, "project": "rivers" })).await.1;
    assert_eq!(plane.wait(run["run"].as_str().unwrap()).await["state"], "succeeded");
    let (status, same) = simulate(&plane, "placement: []\n").await;
    assert_eq!(status, 200, "{same}");
    assert_eq!((&same["before"]["bytes"], &same["after"]["bytes"]), (&7.into(), &7.into()), "{same}");
    assert_eq!(same["runs"][0]["after"]["executions"], json!({ "edge": 1, "hpc": 1 }));
    let confined = simulate(&plane, "placement:\n  - confine: edge\n").await.1;
    assert_eq!((&confined["refused"], &confined["runs"][0]["before"]["bytes"]), (&1.into(), &7.into()), "{confined}");
    assert!(confined["runs"][0]["error_after"].as_str().unwrap().contains("eu.yaml:2"), "{confined}");
    assert_eq!(plane.get(PATH).await.1["version"], 0, "nothing is changed");
}
