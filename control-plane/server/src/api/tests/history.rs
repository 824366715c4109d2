//! Runs that have left the memory.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atoll_model::id::RunId;
use atoll_model::value::Value;
use serde_json::json;

use crate::testing::{Agent, Plane};

const ONE: &str = "workflow: one\nsteps:\n  a:\n    run: echo\n    outputs: { n: integer }\noutputs:\n  n: ${{ steps.a.outputs.n }}\n";

/// Waits until the core knows nothing of a run any more.
async fn forgotten(plane: &Plane, run: &str) {
    let run: RunId = run.parse().unwrap();
    let mut changes = plane.handle.changes();
    while plane.handle.query(move |core| core.run(run).is_some()).await.unwrap() {
        // One that was missed is as good as one that came.
        let _ = changes.recv().await;
    }
}

#[tokio::test]
async fn a_run_that_left_the_memory_is_shown_as_before() {
    let plane = Plane::start_keeping(Duration::from_millis(1)).await;
    plane.site("edge", Arc::new(|_, _| Some(vec![Value::Integer(3)]))).await;
    let body = json!({ "source": ONE, "project": "rivers", "labels": { "season": "wet" } });
    let (status, submitted) = plane.post("/runs", body).await;
    assert_eq!(status, 201, "{submitted}");
    let run = submitted["run"].as_str().unwrap();
    let seen = plane.wait(run).await;
    forgotten(&plane, run).await;

    let (status, shown) = plane.get(&format!("/runs/{run}")).await;
    assert_eq!((status, &shown), (200, &seen));
    assert_eq!((&shown["state"], &shown["outputs"]["n"]), (&"succeeded".into(), &3.into()));
    assert_eq!((&shown["project"], &shown["labels"]), (&"rivers".into(), &json!({ "season": "wet" })));
    let execution = shown["executions"][0]["execution"].as_str().unwrap();
    assert_eq!(plane.get(&format!("/executions/{execution}")).await.1["site"], "edge");
    assert_eq!(plane.get(&format!("/executions/{execution}/why")).await.1["chosen"], "edge");
    assert_eq!(plane.get(&format!("/runs/{run}/outputs")).await.1, json!({ "n": 3 }));
    assert_eq!(plane.get(&format!("/ledger?run={run}")).await.0, 200);
    // Submitted again under its key, it is the run that it was.
    let again = plane.ask("POST", "/api/v1/runs").header("Idempotency-Key", run).json(&json!({ "source": ONE }));
    let (status, again) = plane.json(again).await;
    assert_eq!((status, &again["run"], &again["finished_at"]), (201, &seen["run"], &seen["finished_at"]));
    // Whoever follows it learns that it is over.
    assert_eq!(plane.wait(run).await, seen);
}

#[tokio::test]
async fn a_submission_that_is_repeated_when_only_the_history_knows_its_run_makes_no_other() {
    let plane = Plane::start_keeping(Duration::from_millis(1)).await;
    plane.site("edge", Arc::new(|_, _| Some(vec![Value::Integer(3)]))).await;
    let key = uuid::Uuid::new_v4().to_string();
    let submit = || {
        let request = plane.ask("POST", "/api/v1/runs").header("Idempotency-Key", &key);
        plane.json(request.json(&json!({ "source": ONE })))
    };
    let first = submit().await.1;
    let run = first["run"].as_str().unwrap();
    plane.wait(run).await;
    forgotten(&plane, run).await;
    let (status, second) = submit().await;
    assert_eq!((status, &second["run"], &second["state"]), (201, &first["run"], &"succeeded".into()));
    assert_eq!(plane.get("/runs").await.1["runs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn runs_of_the_memory_and_of_the_history_are_one_list() {
    let plane = Plane::start_keeping(Duration::from_millis(1)).await;
    plane.site("edge", Arc::new(|_, _| Some(vec![Value::Integer(3)]))).await;
    let mut runs = Vec::new();
    for number in 0..3 {
        let body = json!({ "source": ONE, "labels": { "number": number.to_string() } });
        let submitted = plane.post("/runs", body).await.1;
        let run = submitted["run"].as_str().unwrap().to_owned();
        plane.wait(&run).await;
        forgotten(&plane, &run).await;
        runs.insert(0, run);
    }
    let live = plane
        .post(
            "/runs",
            json!({ "source": "workflow: other\nsteps:\n  a:\n    site: edge\n    when: false\n    run: x\n" }),
        )
        .await
        .1;
    let found = |document: &serde_json::Value| -> Vec<String> {
        document["runs"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap().to_owned()).collect()
    };
    runs.insert(0, live["run"].as_str().unwrap().to_owned());
    assert_eq!(found(&plane.get("/runs").await.1), runs);
    assert_eq!(found(&plane.get("/runs?workflow=one&state=succeeded&site=edge&project=default").await.1), runs[1..]);
    assert_eq!(found(&plane.get("/runs?label=number=1").await.1), runs[2..3]);
    let since = plane.get(&format!("/runs/{}", runs[1])).await.1["submitted_at"].as_str().unwrap().to_owned();
    assert_eq!(found(&plane.get(&format!("/runs?since={since}")).await.1), runs[..2]);
    assert_eq!(found(&plane.get(&format!("/runs?until={since}")).await.1), runs[2..]);

    let (mut paged, mut before) = (Vec::new(), String::new());
    loop {
        let page = plane.get(&format!("/runs?limit=2{before}")).await.1;
        paged.extend(found(&page));
        let Some(next) = page["next"].as_str() else { break };
        before = format!("&before={next}");
    }
    assert_eq!(paged, runs);
}

#[tokio::test]
async fn files_of_a_run_that_left_the_memory_are_refused_with_what_to_do_when_their_site_is_gone() {
    const FILE: &str = "workflow: file\nsteps:\n  a:\n    run: echo\n    outputs: { f: file }\noutputs:\n  f: ${{ steps.a.outputs.f }}\n";
    let plane = Plane::start_keeping(Duration::from_millis(1)).await;
    let agent = Arc::new(OnceLock::<Agent>::new());
    let maker = Arc::clone(&agent);
    let work = Arc::new(move |_: &_, _| Some(vec![maker.get().unwrap().keep("text", b"precious")]));
    assert!(agent.set(plane.site("edge", work).await).is_ok());
    let run = plane.run(FILE).await["run"].as_str().unwrap().to_owned();
    forgotten(&plane, &run).await;
    let file = format!("/runs/{run}/outputs/f");
    assert_eq!(plane.post("/sites/edge/revoke", json!({ "reason": "stolen" })).await.0, 200);
    let (status, refused) = plane.get(&file).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &"unavailable".into()));
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("was at site edge (revoked) only; submit the workflow again"), "{message}");
    // The rest of the run is shown as before.
    assert_eq!(plane.get(&format!("/runs/{run}")).await.1["state"], "succeeded");
}

#[tokio::test]
async fn wrong_questions_about_runs_are_refused_with_help() {
    let plane = Plane::start().await;
    for wrong in ["since=yesterday", "until=1", "label=season", "before=run_00000000000000000000000000"] {
        let (status, body) = plane.get(&format!("/runs?{wrong}")).await;
        assert!(matches!(status, 400 | 404), "{wrong}: {body}");
    }
    for labels in [json!({ "a=b": "c" }), json!({ "": "c" })] {
        let (status, body) = plane.post("/runs", json!({ "source": ONE, "labels": labels })).await;
        assert_eq!(status, 400, "{body}");
        assert!(body["error"]["help"].is_string(), "{body}");
    }
}
