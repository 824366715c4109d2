use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::testing::{Agent, Plane};

const MAKES: &str = "workflow: makes\nsteps:\n  make:\n    run: echo\n    outputs: { text: file }\noutputs:\n  text: ${{ steps.make.outputs.text }}\n  number: ${{ 40 + 2 }}\n";
const TAKES: &str = "workflow: takes\ninputs:\n  given: { type: TYPE }\nsteps:\n  take:\n    with: { given: \"${{ inputs.given }}\" }\n    run: cat\n";

#[tokio::test]
async fn an_output_is_staged_sent_and_written_into_the_ledger() {
    let plane = Plane::start().await;
    let made: Arc<OnceLock<Agent>> = Arc::default();
    let maker = Arc::clone(&made);
    let work = Arc::new(move |_: &_, _| Some(vec![maker.get().unwrap().keep("text", b"precious")]));
    made.set(plane.site("edge", work).await).unwrap();
    let run = plane.run(MAKES).await;
    let id = run["run"].as_str().unwrap();
    assert_eq!(run["state"], "succeeded", "{run}");
    let outputs = plane.get(&format!("/runs/{id}/outputs")).await.1;
    assert_eq!((&outputs["number"], &outputs["text"]["kind"]), (&42.into(), &"file".into()));

    let text = plane.ask("GET", &format!("/api/v1/runs/{id}/outputs/text")).send().await.unwrap();
    assert_eq!(text.headers()["x-atoll-kind"], "file");
    assert_eq!(text.headers()["x-atoll-object"].to_str().unwrap(), outputs["text"]["object"]);
    assert_eq!(text.bytes().await.unwrap(), "precious");
    assert_eq!(plane.get(&format!("/runs/{id}/outputs/number")).await.1, 42);

    let ledger = plane.get(&format!("/ledger?run={id}")).await.1;
    let ways: Vec<_> =
        ledger["entries"].as_array().unwrap().iter().map(|entry| (&entry["from"], &entry["to"])).collect();
    assert_eq!(ways, [(&json!("edge"), &json!("bucket")), (&json!("bucket"), &json!("client"))], "{ledger}");
    assert_eq!(ledger["bytes_total"], 16);
    let object = plane.get(&format!("/objects/{}", outputs["text"]["object"].as_str().unwrap())).await.1;
    assert_eq!(object["replicas"], json!(["edge", "bucket"]));
    assert_eq!((&object["kind"], &object["bytes"]), (&"file".into(), &8.into()));
}

#[tokio::test]
async fn a_file_that_is_sent_in_is_the_value_of_an_input() {
    let plane = Plane::start().await;
    plane.site("edge", super::idle()).await;
    let name = "Grüße 東京.csv";
    let query = format!("kind=file&name_base64={}", URL_SAFE_NO_PAD.encode(name));
    let upload = plane.ask("PUT", &format!("/api/v1/uploads?{query}")).body("a,b\n");
    let (status, value) = plane.json(upload).await;
    assert_eq!(status, 201, "{value}");
    let digest = format!("b3:{}", blake3::hash(b"a,b\n"));
    assert_eq!(value, json!({ "kind": "file", "object": digest, "bytes": 4, "name": name }));
    let body = json!({ "source": TAKES.replace("TYPE", "file"), "inputs": { "given": value } });
    let (status, run) = plane.post("/runs", body).await;
    assert_eq!(status, 201, "{run}");
    let run = plane.wait(run["run"].as_str().unwrap()).await;
    assert_eq!((&run["state"], &run["executions"][0]["inputs"]["given"]), (&"succeeded".into(), &value));
}

#[tokio::test]
async fn the_files_of_a_directory_that_is_sent_in_are_what_its_manifests_say() {
    let plane = Plane::start().await;
    plane.site("edge", super::idle()).await;
    let tree = tempfile::tempdir().unwrap();
    for name in ["b.csv", "a.csv", "c.txt"] {
        std::fs::write(tree.path().join(name), name).unwrap();
    }
    let packed = storage_sync_engine::stream::pack(tree.path()).unwrap();
    let stream = packed.read_at(0, 1 << 20).unwrap();
    let (status, mut sent) = plane.json(plane.ask("PUT", "/api/v1/uploads?kind=tree&name=all").body(stream)).await;
    assert_eq!(status, 201, "{sent}");
    // What a client says of it does not count.
    sent["files"] = 1.into();
    let source = "workflow: each\ninputs: { all: { type: directory } }\nsteps:\n  each:\n    foreach: \"${{ files(inputs.all, '*.csv') }}\"\n    with: { file: \"${{ item }}\" }\n    run: cat\n";
    let body = json!({ "source": source, "inputs": { "all": sent } });
    let plan = plane.post("/plan", body.clone()).await;
    assert_eq!(plan.0, 200, "{}", plan.1);
    let (status, run) = plane.post("/runs", body.clone()).await;
    assert_eq!(status, 201, "{run}");
    let run = plane.wait(run["run"].as_str().unwrap()).await;
    assert_eq!(run["state"], "succeeded", "{run}");
    let mut names: Vec<_> =
        run["executions"].as_array().unwrap().iter().map(|e| &e["inputs"]["file"]["name"]).collect();
    names.sort_by_key(|name| name.to_string());
    assert_eq!(names, ["a.csv", "b.csv"]);

    let mut unsent = body;
    unsent["inputs"]["all"]["object"] = format!("b3:{}", "1".repeat(64)).into();
    let (status, error) = plane.post("/runs", unsent).await;
    assert_eq!(status, 422, "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("was not sent in"), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_sent_in_is_named_by_its_stream() {
    let plane = Plane::start().await;
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("below")).unwrap();
    std::fs::write(tree.path().join("below/a"), "alpha").unwrap();
    std::fs::write(tree.path().join("b"), "").unwrap();
    let packed = storage_sync_engine::stream::pack(tree.path()).unwrap();
    let stream = packed.read_at(0, 1 << 20).unwrap();
    let send = |stream: Vec<u8>, length: u64| {
        let path = format!("/api/v1/uploads?kind=tree&name=tree&stream_bytes={length}");
        plane.json(plane.ask("PUT", &path).body(stream))
    };
    let (status, value) = send(stream.clone(), packed.stream_bytes()).await;
    assert_eq!(status, 201, "{value}");
    let object = packed.object().id.to_string();
    assert_eq!(value, json!({ "kind": "directory", "object": object, "bytes": 5, "files": 2, "name": "tree" }));

    let mut damaged = stream.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let (status, error) = send(damaged, packed.stream_bytes()).await;
    assert_eq!((status, &error["error"]["code"]), (422, &"damaged_upload".into()));
    let (status, error) = send(stream[..stream.len() - 1].to_vec(), packed.stream_bytes()).await;
    assert_eq!((status, &error["error"]["code"]), (422, &"damaged_upload".into()));
}
