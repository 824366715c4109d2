use atoll_proto::JoinToken;
use serde_json::json;

use super::{idle, members};
use crate::testing::Plane;

#[tokio::test]
async fn a_site_is_shown_as_the_contract_prints_it() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    let (status, sites) = plane.get("/sites").await;
    assert_eq!(status, 200);
    let site = &sites["sites"][0];
    let fields = [
        "site",
        "state",
        "labels",
        "agent_version",
        "connected_since",
        "capacity",
        "free",
        "running",
        "queued",
        "batch_wait_seconds",
        "store",
    ];
    for field in fields {
        assert!(members(site).contains(&field), "{field} is not in {site}");
    }
    assert_eq!((&site["site"], &site["state"]), (&"edge".into(), &"ready".into()));
    let capacity = json!({
        "cpus": 8.0,
        "memory_bytes": 8_u64 << 30,
        "disk_free_bytes": 1_u64 << 40,
        "gpus": {},
        "named": {},
    });
    assert_eq!(site["capacity"], capacity);
    assert_eq!(members(&site["store"]), ["objects", "bytes"]);
    assert_eq!(plane.get("/sites/edge").await.0, 200);
}

#[tokio::test]
async fn a_token_says_how_to_join_and_makes_the_site() {
    let plane = Plane::start().await;
    let (status, body) =
        plane.post("/sites/lab/tokens", json!({ "ttl_seconds": 60, "labels": { "tier": "hpc" } })).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(members(&body), ["token", "join_command", "expires_at"]);
    let text = body["token"].as_str().unwrap();
    let token: JoinToken = text.parse().unwrap();
    assert_eq!((token.url.as_str(), token.ca_sha256), ("https://127.0.0.1:2", [9; 32]));
    assert_eq!(token.expires_at.to_string(), body["expires_at"].as_str().unwrap());
    assert!(body["join_command"].as_str().unwrap().starts_with("atoll agent join "));
    let site = plane.get("/sites/lab").await.1;
    assert_eq!((&site["state"], &site["labels"]["tier"]), (&"expected".into(), &"hpc".into()));
    let audit = std::fs::read_to_string(plane.directory.path().join("audit.jsonl")).unwrap();
    assert!(audit.contains("create token") && audit.contains(&token.token.to_string()));
    assert!(!audit.contains(text));
}

#[tokio::test]
async fn a_drained_site_says_so_and_takes_work_again() {
    let plane = Plane::start().await;
    plane.site("edge", idle()).await;
    assert_eq!(plane.post("/sites/edge/drain", json!(null)).await.1["state"], "draining");
    assert_eq!(plane.post("/sites/edge/undrain", json!(null)).await.1["state"], "ready");
}

#[tokio::test]
async fn a_revoked_site_is_closed_and_can_be_forgotten() {
    let plane = Plane::start().await;
    let agent = plane.site("edge", idle()).await;
    let (status, site) = plane.post("/sites/edge/revoke", json!({ "reason": "stolen" })).await;
    assert_eq!((status, &site["state"]), (200, &"revoked".into()));
    let (status, _) = plane.json(plane.ask("DELETE", "/api/v1/sites/edge")).await;
    assert_eq!(status, 204);
    assert_eq!(plane.get("/sites/edge").await.0, 404);
    assert!(agent.seen().contains(&"ready"));
}
