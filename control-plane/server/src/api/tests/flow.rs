//! What a server does that is asked for more than it takes, and what projects may have.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{endless, idle, members};
use crate::admission::{Limits, memory_used};
use crate::testing::Plane;

const HELLO: &str = "workflow: hello\nsteps:\n  hello:\n    run: echo hello\n";
const FAN: &str = "workflow: fan\nsteps:\n  a:\n    run: echo\n    foreach: ${{ range(5) }}\n";

/// Submits until it is taken; the run, and how often it was not.
async fn insist(plane: &Plane) -> (String, u32) {
    let mut refused = 0;
    loop {
        let response = plane.ask("POST", "/api/v1/runs").json(&json!({ "source": HELLO })).send().await.unwrap();
        let (status, again) = (response.status(), response.headers().get("retry-after").cloned());
        let body: Value = response.json().await.unwrap();
        if status == 201 {
            return (body["run"].as_str().unwrap().to_owned(), refused);
        }
        assert_eq!(status, 429, "{body}");
        assert!(again.is_some_and(|again| again.to_str().unwrap().parse::<u64>().unwrap() > 0));
        let code = body["error"]["code"].as_str().unwrap();
        assert!(["too_many_runs", "too_many_submissions"].contains(&code), "{body}");
        refused += 1;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn whoever_brings_more_than_is_taken_is_asked_to_come_again_and_all_that_was_taken_succeeds() {
    let limits = Limits { live_runs: 5, submissions_at_once: 2, ..Limits::default() };
    let plane = Arc::new(Plane::start_within(limits).await);
    let mut taken = Vec::new();
    let edge = plane.join("edge").await;
    for _ in 0..5 {
        taken.push(insist(&plane).await.0);
    }
    let (status, refused) = plane.post("/runs", json!({ "source": HELLO })).await;
    assert_eq!((status, &refused["error"]["code"]), (429, &"too_many_runs".into()));
    assert!(refused["error"]["message"].as_str().unwrap().contains("5 runs have not ended"), "{refused}");
    plane.connect(edge, idle()).await;
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let plane = Arc::clone(&plane);
        flood.spawn(async move { insist(&plane).await });
    }
    let mut refused = 0;
    while let Some(submission) = flood.join_next().await {
        let (run, times) = submission.unwrap();
        taken.push(run);
        refused += times;
    }
    assert!(refused > 0, "a flood of forty meets a limit of two at a time");
    for run in &taken {
        assert_eq!(plane.wait(run).await["state"], "succeeded");
    }
}

#[tokio::test]
async fn a_server_without_memory_says_so_before_it_reads_what_is_brought() {
    let limits = Limits { memory_bytes: Some(1), ..Limits::default() };
    let plane = Plane::start_within(limits).await;
    for path in ["/runs", "/plan", "/check"] {
        let (status, refused) = plane.post(path, json!("no workflow at all")).await;
        assert_eq!((status, &refused["error"]["code"]), (429, &"memory_full".into()), "{path}");
    }
    assert_eq!(plane.get("/runs").await.0, 200, "what is there is shown");
}

#[tokio::test]
async fn when_everything_is_stuck_whoever_brings_more_is_asked_to_come_again_before_memory_is_at_risk() {
    let limit = memory_used().unwrap() + (64 << 20);
    let plane = Plane::start_within(Limits { memory_bytes: Some(limit), ..Limits::default() }).await;
    plane.site("edge", endless()).await;
    let body = json!({ "source": format!("{FAN}# {}\n", "x".repeat(400_000)) });
    let mut taken = 0;
    let refused = loop {
        let response = plane.ask("POST", "/api/v1/runs").json(&body).send().await.unwrap();
        if response.status() != 201 {
            break response;
        }
        taken += 1;
        assert!(taken < 5_000, "{taken} runs, and no end");
    };
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "memory_full");
    assert!(taken > 0 && memory_used().unwrap() < limit + (64 << 20), "{taken} were taken");
    assert_eq!(plane.get("/runs").await.0, 200, "what is there is shown");
}

#[tokio::test]
async fn a_project_is_shown_with_what_it_may_have_and_has() {
    let plane = Plane::start().await;
    plane.site("edge", endless()).await;
    assert_eq!(plane.get("/projects/rivers").await.0, 404);
    let change = json!({ "share": 3, "max_executions": 2, "max_runs": 7 });
    let (status, set) = plane.post("/projects/rivers", change).await;
    assert_eq!(status, 200, "{set}");
    assert_eq!((&set["share"], &set["max_executions"], &set["max_runs"]), (&3.into(), &2.into(), &7.into()));
    let body = json!({ "source": FAN, "project": "rivers", "priority": -7 });
    let (_, run) = plane.post("/runs", body).await;
    assert_eq!(run["priority"], -7);
    let project = plane.get("/projects/rivers").await.1;
    assert_eq!((&project["executions"], &project["executions_waiting"]), (&2.into(), &3.into()), "{project}");
    assert_eq!(project["workflows"]["fan"]["executions"], 2);
    let shown = plane.get(&format!("/runs/{}", run["run"].as_str().unwrap())).await.1;
    let waiting =
        shown["executions"].as_array().unwrap().iter().find(|execution| execution["state"] == "ready").unwrap();
    let why = plane.get(&format!("/executions/{}/why", waiting["execution"].as_str().unwrap())).await.1;
    assert_eq!(why["waiting_for"], "the limit of project rivers: 2 executions at a time, and 2 are at sites");
    assert_eq!(why["crashes"], json!([]));
    let (_, lifted) = plane.post("/projects/rivers", json!({ "max_executions": null })).await;
    assert_eq!((&lifted["max_executions"], &lifted["max_runs"]), (&Value::Null, &7.into()), "what is left out stays");
    assert_eq!(lifted["executions"], 5);
    let listed = plane.get("/projects").await.1;
    assert_eq!(listed["projects"].as_array().unwrap().len(), 1);
    let fields =
        ["executions", "executions_waiting", "max_executions", "max_runs", "project", "runs", "runs_live", "share"];
    assert!(fields.iter().all(|field| members(&listed["projects"][0]).contains(field)));
    for wrong in [json!({ "share": 0 }), json!({ "max_runs": 0 })] {
        assert_eq!(plane.post("/projects/rivers", wrong).await.0, 422);
    }
    let (status, _) = plane.post("/runs", json!({ "source": FAN, "priority": 101 })).await;
    assert_eq!(status, 400);
}
