use serde_json::{Value, json};

use super::idle;
use crate::api::BODY_BYTES_MAX;
use crate::testing::Plane;

const RUN: &str = "run_00000000000000000000000001";
const EXECUTION: &str = "exec_00000000000000000000000001-0-0";

fn refusal((status, body): (u16, Value)) -> (u16, String, String) {
    let error = &body["error"];
    (
        status,
        error["code"].as_str().unwrap_or_default().to_owned(),
        error["message"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let plane = Plane::start().await;
    let object = format!("b3:{}", "0".repeat(64));
    let paths = [
        format!("/runs/{RUN}"),
        format!("/runs/{RUN}/events"),
        format!("/runs/{RUN}/logs"),
        format!("/runs/{RUN}/outputs"),
        format!("/runs/{RUN}/outputs/text"),
        format!("/executions/{EXECUTION}"),
        format!("/executions/{EXECUTION}/why"),
        format!("/executions/{EXECUTION}/logs"),
        format!("/objects/{object}"),
        "/sites/nowhere".to_owned(),
    ];
    for path in paths {
        let (status, code, message) = refusal(plane.get(&path).await);
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}: {message}");
    }
    let posts = [
        (format!("/runs/{RUN}/cancel"), json!({})),
        (format!("/executions/{EXECUTION}/resolve"), json!({ "run_again": true })),
        ("/sites/nowhere/drain".to_owned(), json!({})),
        ("/sites/nowhere/undrain".to_owned(), json!({})),
        ("/sites/nowhere/revoke".to_owned(), json!({})),
    ];
    for (path, body) in posts {
        let (status, code, message) = refusal(plane.post(&path, body).await);
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}: {message}");
    }
    assert_eq!(plane.json(plane.ask("DELETE", "/api/v1/sites/nowhere")).await.0, 404);
}

#[tokio::test]
async fn what_is_no_id_or_no_query_is_a_bad_request_that_says_why() {
    let plane = Plane::start().await;
    let cases = [
        ("/runs/17", "id of a run"),
        ("/runs/17/events", "id of a run"),
        ("/runs/17/logs", "id of a run"),
        ("/runs/17/outputs", "id of a run"),
        ("/runs/17/outputs/x", "id of a run"),
        ("/executions/exec_1", "id of an execution"),
        ("/executions/exec_1/why", "id of an execution"),
        ("/executions/exec_1/logs", "id of an execution"),
        ("/objects/b3:xyz", "id of an object"),
        ("/sites/Not%20A%20Site", "site name"),
        ("/ledger?run=17", "id of a run"),
        ("/ledger?site=UPPER", "site name"),
        ("/ledger?color=red", "color"),
        ("/runs?state=happy", "no state of a run"),
        ("/runs?limit=many", "limit"),
        ("/runs?before=17", "id of a run"),
        ("/runs?unknown=1", "unknown"),
    ];
    for (path, said) in cases {
        let (status, code, message) = refusal(plane.get(path).await);
        assert_eq!((status, code.as_str()), (400, "bad_request"), "{path}: {message}");
        assert!(message.contains(said), "{path}: {message}");
    }
    let (status, _, message) = refusal(plane.get(&format!("/executions/{EXECUTION}/logs?stream=both")).await);
    assert_eq!(status, 400);
    assert!(message.contains("both"));
}

#[tokio::test]
async fn bodies_that_are_not_what_is_asked_for_are_refused() {
    let plane = Plane::start().await;
    let cases = [
        ("/runs", json!({}), "source"),
        ("/runs", json!({ "source": 7 }), "source"),
        ("/runs", json!({ "source": "x", "colour": "red" }), "colour"),
        ("/runs", json!({ "source": "x", "traceparent": "00-1-2-3" }), "traceparent"),
        ("/plan", json!([]), ""),
        ("/check", json!({ "file_name": "x" }), "source"),
        ("/sites/lab/tokens", json!({ "ttl_seconds": 0 }), "ttl_seconds"),
        ("/sites/lab/tokens", json!({ "ttl_seconds": -1 }), "ttl_seconds"),
        ("/sites/lab/tokens", json!({ "labels": { "": "x" } }), "label"),
        ("/sites/lab/tokens", json!({ "labels": { "a": "x\ny" } }), "label"),
    ];
    for (path, body, said) in cases {
        let (status, code, message) = refusal(plane.post(path, body.clone()).await);
        assert_eq!((status, code.as_str()), (400, "bad_request"), "{path} {body}: {message}");
        assert!(message.contains(said), "{path} {body}: {message}");
    }
    let text = plane.ask("POST", "/api/v1/runs").body("not json");
    assert_eq!(refusal(plane.json(text).await).0, 400);
    let key = plane.ask("POST", "/api/v1/runs").header("Idempotency-Key", "again").json(&json!({ "source": "x" }));
    assert_eq!(refusal(plane.json(key).await).0, 400);
    let large = plane.ask("POST", "/api/v1/runs").json(&json!({ "source": "x".repeat(BODY_BYTES_MAX) }));
    let (status, code, _) = refusal(plane.json(large).await);
    assert_eq!((status, code.as_str()), (413, "too_large"));
}

#[tokio::test]
async fn a_workflow_that_is_wrong_is_shown_with_every_place() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let source = "workflow: wrong\nsteps:\n  a:\n    run: echo\n    site: nowhere\n    colour: red\n";
    for path in ["/runs", "/plan"] {
        let (status, body) = plane.post(path, json!({ "source": source, "file_name": "wrong.yaml" })).await;
        assert_eq!((status, &body["error"]["code"]), (422, &"invalid_workflow".into()), "{body}");
        let first = &body["error"]["diagnostics"][0];
        assert_eq!((&first["file"], &first["line"]), (&"wrong.yaml".into(), &6.into()), "{body}");
        assert!(first["message"].as_str().unwrap().contains("colour"), "{body}");
    }
    let (status, body) = plane.post("/check", json!({ "source": source })).await;
    assert_eq!((status, &body["valid"]), (200, &false.into()));
    let unknown_site = source.replace("    colour: red\n", "");
    let body = plane.post("/check", json!({ "source": unknown_site })).await.1;
    assert!(body["errors"][0]["message"].as_str().unwrap().contains("nowhere"), "{body}");
    let fine = unknown_site.replace("nowhere", "edge");
    assert_eq!(plane.post("/check", json!({ "source": fine })).await.1, json!({ "valid": true, "errors": [] }));
    let (status, plan) = plane.post("/plan", json!({ "source": fine })).await;
    assert_eq!((status, &plan["steps"][0]["site"]), (200, &"edge".into()), "{plan}");
    assert!(plane.get("/runs").await.1["runs"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn inputs_that_do_not_fit_are_refused() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let source = "workflow: given\ninputs:\n  number: { type: integer }\nsteps:\n  a:\n    with: { number: \"${{ inputs.number }}\" }\n    run: echo\n";
    let cases = [
        (json!({}), "number has no default"),
        (json!({ "number": "seven" }), "expected"),
        (json!({ "number": 7, "other": 8 }), "no input other"),
    ];
    for (inputs, said) in cases {
        let (status, code, message) = refusal(plane.post("/runs", json!({ "source": source, "inputs": inputs })).await);
        assert_eq!((status, code.as_str()), (422, "invalid"), "{message}");
        assert!(message.contains(said), "{message}");
    }
    let named = "workflow: acts\nsteps:\n  a:\n    action: ./clean\n";
    let (status, body) = plane.post("/runs", json!({ "source": named })).await;
    assert_eq!(status, 422);
    assert!(body["error"]["diagnostics"][0]["message"].as_str().unwrap().contains("clean"), "{body}");
}

#[tokio::test]
async fn uploads_that_are_not_what_they_say_are_refused() {
    let plane = Plane::start().await;
    let upload =
        |query: &str, body: &'static str| plane.json(plane.ask("PUT", &format!("/api/v1/uploads{query}")).body(body));
    for (query, status) in [
        ("", 400),
        ("?kind=file", 400),
        ("?kind=pipe&name=x", 400),
        ("?kind=file&name=a%2Fb", 400),
        ("?kind=file&name=..", 400),
        ("?kind=file&name=x&name_base64=eA", 400),
        ("?kind=file&name_base64=%21", 400),
        ("?kind=tree&name=x", 400),
        ("?kind=file&name=x&stream_bytes=99", 422),
        ("?kind=file&name=x&stream_bytes=1", 422),
    ] {
        let (found, _, message) = refusal(upload(query, "no tree at all").await);
        assert_eq!(found, status, "{query}: {message}");
        assert!(!message.is_empty());
    }
    assert_eq!(upload("?kind=file&name=empty", "").await.0, 201);
}
