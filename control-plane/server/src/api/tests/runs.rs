use std::sync::Arc;

use atoll_model::value::Value;
use serde_json::json;

use super::{endless, idle, members};
use crate::testing::Plane;

const HELLO: &str = "workflow: hello\nsteps:\n  hello:\n    run: echo hello\n";
const ADDS: &str = "workflow: adds\ninputs:\n  numbers: { type: list, default: [1, 2] }\nsteps:\n  add:\n    foreach: ${{ inputs.numbers }}\n    run: echo\n    outputs: { sum: integer }\noutputs:\n  sums: ${{ steps.add.outputs.sum }}\n";

#[tokio::test]
async fn a_run_is_shown_as_the_contract_prints_it() {
    let plane = Plane::start().await;
    plane.site("edge", Arc::new(|_, element| Some(vec![Value::Integer(i64::from(element) + 10)]))).await;
    let run = plane.run(ADDS).await;
    for field in ["run", "state", "workflow", "submitted_at", "started_at", "finished_at", "outputs", "error"] {
        assert!(members(&run).contains(&field), "{field} is not in {run}");
    }
    assert_eq!((&run["state"], &run["workflow"]), (&"succeeded".into(), &"adds".into()));
    assert_eq!((&run["outputs"], &run["error"]), (&json!({ "sums": [10, 11] }), &json!(null)));
    assert_eq!(run["counts"], json!({ "succeeded": 2 }));
    let executions = run["executions"].as_array().unwrap();
    assert_eq!(executions.len(), 2);
    let fields = [
        "execution",
        "step",
        "element",
        "attempt",
        "state",
        "site",
        "submitted_at",
        "placed_at",
        "started_at",
        "finished_at",
        "inputs",
        "outputs",
        "exit_code",
        "error",
        "usage",
    ];
    for field in fields {
        assert!(members(&executions[0]).contains(&field), "{field} is not in {}", executions[0]);
    }
    assert_eq!((&executions[1]["element"], &executions[1]["site"]), (&1.into(), &"edge".into()));
    assert_eq!(executions[1]["usage"]["cpu_seconds"], 1.5);
    assert_eq!(executions[1]["usage"]["disk_written_bytes"], 4_096);
    let id = executions[1]["execution"].as_str().unwrap();
    assert_eq!(&plane.get(&format!("/executions/{id}")).await.1, &executions[1]);
    let why = plane.get(&format!("/executions/{id}/why")).await.1;
    assert_eq!(why["chosen"], "edge");
    assert_eq!(members(&why["sites"][0]), ["site", "feasible", "reason", "terms"]);
}

#[tokio::test]
async fn executions_come_in_pages() {
    let plane = Plane::start().await;
    plane.site("edge", Arc::new(|_, _| Some(vec![Value::Integer(1)]))).await;
    let body = json!({ "source": ADDS, "inputs": { "numbers": [1, 2, 3, 4, 5] } });
    let run = plane.post("/runs", body).await.1["run"].as_str().unwrap().to_owned();
    plane.wait(&run).await;
    let elements = |page: &serde_json::Value| -> Vec<u64> {
        page["executions"].as_array().unwrap().iter().map(|row| row["element"].as_u64().unwrap()).collect()
    };
    assert_eq!(elements(&plane.get(&format!("/runs/{run}?limit=2")).await.1), [0, 1]);
    let page = plane.get(&format!("/runs/{run}?offset=3&limit=10")).await.1;
    assert_eq!(elements(&page), [3, 4]);
    let after = page["executions"][0]["execution"].as_str().unwrap();
    assert_eq!(elements(&plane.get(&format!("/runs/{run}?after={after}")).await.1), [4]);
    let bare = plane.get(&format!("/runs/{run}?executions=false")).await.1;
    assert!(!members(&bare).contains(&"executions"));
}

#[tokio::test]
async fn runs_are_listed_newest_first_and_filtered() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(plane.run(HELLO).await["run"].as_str().unwrap().to_owned());
    }
    ids.reverse();
    let listed = async |query: &str| -> Vec<String> {
        let (status, body) = plane.get(&format!("/runs{query}")).await;
        assert_eq!(status, 200, "{body}");
        let runs = body["runs"].as_array().unwrap().iter();
        runs.map(|run| run["run"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed("").await, ids);
    assert_eq!(listed("?limit=2").await, ids[..2]);
    assert_eq!(listed(&format!("?before={}", ids[0])).await, ids[1..]);
    assert_eq!(listed("?state=succeeded&workflow=hello&site=edge").await, ids);
    assert!(listed("?state=failed").await.is_empty());
    assert!(listed("?site=elsewhere").await.is_empty());
}

#[tokio::test]
async fn a_submission_with_a_key_may_be_repeated() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let key = uuid::Uuid::new_v4().to_string();
    let submit = || {
        let request = plane.ask("POST", "/api/v1/runs").header("Idempotency-Key", &key);
        plane.json(request.json(&json!({ "source": HELLO })))
    };
    let (first, second) = (submit().await, submit().await);
    assert_eq!((first.0, second.0), (201, 201));
    assert_eq!(first.1["run"], second.1["run"]);
    assert_eq!(plane.get("/runs").await.1["runs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_run_belongs_to_the_trace_that_it_was_submitted_with() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (_, run) = plane.post("/runs", json!({ "source": HELLO, "traceparent": parent })).await;
    let context = run["traceparent"].as_str().unwrap();
    assert!(context.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && context != parent);
    let (_, made) = plane.post("/runs", json!({ "source": HELLO })).await;
    assert_ne!(made["traceparent"], run["traceparent"]);
    assert_eq!(made["traceparent"].as_str().unwrap().len(), parent.len());
}

#[tokio::test]
async fn events_tell_of_a_run_until_its_end() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let run = plane.post("/runs", json!({ "source": HELLO })).await.1["run"].as_str().unwrap().to_owned();
    let events = plane.ask("GET", &format!("/api/v1/runs/{run}/events")).send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let text = events.text().await.unwrap();
    let last = text.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["state"], &last["run"]), (&"succeeded".into(), &run.as_str().into()));
    assert!(text.contains("event: run\n"));
}

#[tokio::test]
async fn a_run_that_goes_on_is_cancelled_with_the_reason() {
    let plane = Plane::start().await;
    plane.site("edge", endless()).await;
    let run = plane.post("/runs", json!({ "source": HELLO })).await.1["run"].as_str().unwrap().to_owned();
    let (status, body) = plane.get(&format!("/runs/{run}/outputs")).await;
    assert_eq!((status, &body["error"]["code"]), (409, &"conflict".into()));
    let (status, body) = plane.post(&format!("/runs/{run}/cancel"), json!({ "reason": "wrong input" })).await;
    assert_eq!(status, 200, "{body}");
    assert!(["cancelling", "cancelled"].contains(&body["state"].as_str().unwrap()), "{body}");
    let audit = std::fs::read_to_string(plane.directory.path().join("audit.jsonl")).unwrap();
    let line = audit.lines().find(|line| line.contains("cancel run")).unwrap();
    assert!(line.contains("wrong input") && line.contains(&run) && line.contains("\"person\":\"admin\""), "{line}");
    assert!(!audit.contains(plane.token.split('.').nth(1).unwrap()));
}

#[tokio::test]
async fn logs_of_a_site_that_is_away_are_an_error_in_their_place() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let run = plane.run(HELLO).await;
    let path = format!("/api/v1/runs/{}/logs", run["run"].as_str().unwrap());
    let logs = plane.ask("GET", &path).send().await.unwrap();
    assert_eq!(logs.headers()["content-type"], "application/x-ndjson");
    let text = logs.text().await.unwrap();
    let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(line["error"]["execution"], run["executions"][0]["execution"]);
    assert!(line["error"]["message"].as_str().unwrap().contains("edge"), "{line}");
    let nothing = plane.ask("GET", &format!("{path}?stream=stderr&follow=true")).send().await.unwrap();
    assert_eq!(nothing.text().await.unwrap(), "");
}
