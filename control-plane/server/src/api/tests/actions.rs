//! Versions of actions, as people push them and are shown them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use storage_sync_engine::signature::SigningKey;
use storage_sync_engine::stream::pack_bundle;

use super::idle;
use crate::testing::Plane;

const MANIFEST: &str =
    "name: clean\nversion: \"1.0\"\ndescription: Cleans.\nlabels: { domain: text }\ncommand: [sh, main.sh]\n";
const PATH: &str = "/projects/rivers/actions";
const USES: &str = "workflow: w\nsteps:\n  a: { action: clean@1.0 }\n";

/// Sends a folder with this manifest and program in; its digest.
async fn send(plane: &Plane, manifest: Option<&str>, program: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    if let Some(manifest) = manifest {
        std::fs::write(folder.path().join("action.yaml"), manifest).unwrap();
    }
    std::fs::write(folder.path().join("main.sh"), program).unwrap();
    let packed = pack_bundle(folder.path()).unwrap();
    let bytes = packed.read_at(0, usize::MAX >> 1).unwrap();
    let path = format!("/api/v1/uploads?kind=tree&name=action&stream_bytes={}", bytes.len());
    let (status, sent) = plane.json(plane.ask("PUT", &path).body(bytes)).await;
    assert_eq!(status, 201, "{sent}");
    sent["object"].as_str().unwrap().to_owned()
}

async fn push(plane: &Plane, object: &str, signatures: Value) -> (u16, Value) {
    plane.post(PATH, json!({ "object": object, "signatures": signatures })).await
}

fn signed(key: &SigningKey, object: &str) -> Value {
    let signature = key.sign(object.parse().unwrap());
    json!({ "key": signature.key.to_string(), "signature": URL_SAFE_NO_PAD.encode(signature.bytes()) })
}

#[tokio::test]
async fn a_version_is_pushed_listed_and_shown_as_its_folder_says() {
    let plane = Plane::start().await;
    let object = send(&plane, Some(MANIFEST), "true\n").await;
    let (status, pushed) = push(&plane, &object, json!([])).await;
    assert_eq!(status, 201, "{pushed}");
    assert_eq!(
        (&pushed["action"], &pushed["version"], &pushed["kind"], &pushed["digest"]),
        (&json!("clean"), &json!("1.0"), &json!("processor"), &json!(object))
    );
    assert_eq!((&pushed["description"], &pushed["labels"]), (&json!("Cleans."), &json!({ "domain": "text" })));
    let (status, again) = push(&plane, &object, json!([])).await;
    assert_eq!((status, &again["pushed_at"]), (201, &pushed["pushed_at"]), "the same again is the same");
    let other = send(&plane, Some(MANIFEST), "false\n").await;
    let (status, refused) = push(&plane, &other, json!([])).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("conflict")), "{refused}");
    for (query, count) in [("", 1), ("?label=domain=text", 1), ("?label=domain=other", 0), ("?name=claen", 0)] {
        let listed = plane.get(&format!("{PATH}{query}")).await.1;
        assert_eq!(listed["actions"].as_array().unwrap().len(), count, "{query}: {listed}");
    }
    let shown = plane.get(&format!("{PATH}/clean/1.0")).await.1;
    assert_eq!(shown["manifest"], MANIFEST);
    let (status, missing) = plane.get(&format!("{PATH}/clean/2.0")).await;
    assert_eq!(status, 404);
    assert!(missing.to_string().contains("it has 1.0"), "{missing}");
    let (status, wrong) = plane.get(&format!("{PATH}/clean/a%20b")).await;
    assert_eq!((status, &wrong["error"]["code"]), (400, &json!("bad_request")), "{wrong}");
}

#[tokio::test]
async fn what_is_no_action_is_refused_with_the_reason() {
    let plane = Plane::start().await;
    let without = send(&plane, None, "true\n").await;
    let (status, refused) = push(&plane, &without, json!([])).await;
    assert_eq!(status, 422);
    assert!(refused.to_string().contains("there is no action.yaml"), "{refused}");
    let broken = send(&plane, Some("name: clean\nversion: '1.0'\nkind: source\ncommand: [x]\n"), "true\n").await;
    let (status, refused) = push(&plane, &broken, json!([])).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("invalid_action")), "{refused}");
    assert_eq!(refused["error"]["diagnostics"][0]["line"], 4);
    let (status, refused) = push(&plane, &format!("b3:{}", "0".repeat(64)), json!([])).await;
    assert_eq!(status, 422, "{refused}");
    assert!(refused.to_string().contains("was not sent in"), "{refused}");
}

#[tokio::test]
async fn only_signatures_that_hold_are_kept() {
    let plane = Plane::start().await;
    let key = || SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
    let (first, second) = (key(), key());
    let object = send(&plane, Some(MANIFEST), "true\n").await;
    let mut of_other = signed(&first, &format!("b3:{}", "1".repeat(64)));
    let (status, refused) = push(&plane, &object, json!([of_other])).await;
    assert_eq!(status, 422);
    assert!(refused.to_string().contains("does not hold"), "{refused}");
    of_other["signature"] = json!("short");
    assert_eq!(push(&plane, &object, json!([of_other])).await.0, 422);
    push(&plane, &object, json!([signed(&first, &object)])).await;
    let (_, pushed) = push(&plane, &object, json!([signed(&second, &object), signed(&first, &object)])).await;
    assert_eq!(pushed["signed_by"], json!([first.public_key().to_string(), second.public_key().to_string()]));
}

#[tokio::test]
async fn a_step_names_a_version_and_is_warned_of_one_that_is_deprecated() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let object = send(&plane, Some(MANIFEST), "true\n").await;
    assert_eq!(push(&plane, &object, json!([])).await.0, 201);
    let body = json!({ "source": USES, "project": "rivers" });
    let (status, submitted) = plane.post("/runs", body.clone()).await;
    assert_eq!((status, &submitted["warnings"]), (201, &json!([])), "{submitted}");
    assert_eq!(plane.wait(submitted["run"].as_str().unwrap()).await["state"], "succeeded");
    let (status, refused) = plane.post("/runs", json!({ "source": USES })).await;
    assert_eq!(status, 422, "of another project");
    assert!(refused.to_string().contains("there is no action clean in project default"), "{refused}");
    let path = format!("{PATH}/clean/1.0");
    let (status, shown) = plane.post(&format!("{path}/deprecate"), json!({ "reason": "use 1.1" })).await;
    assert_eq!((status, &shown["deprecated"]["reason"]), (200, &json!("use 1.1")), "{shown}");
    let submitted = plane.post("/runs", body).await.1;
    let warnings = json!(["step a uses clean 1.0, which is deprecated: use 1.1"]);
    assert_eq!(submitted["warnings"], warnings);
    let ended = plane.wait(submitted["run"].as_str().unwrap()).await;
    assert_eq!((&ended["state"], &ended["warnings"]), (&json!("succeeded"), &warnings), "{ended}");
    let shown = plane.post(&format!("{path}/deprecate"), json!({ "undo": true })).await.1;
    assert_eq!(shown["deprecated"], Value::Null);
    assert_eq!(plane.json(plane.ask("DELETE", &format!("/api/v1{path}"))).await.0, 204);
    assert_eq!(plane.get(&path).await.0, 404);
    assert_eq!(plane.json(plane.ask("DELETE", &format!("/api/v1{path}"))).await.0, 404);
}
