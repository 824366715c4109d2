#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use super::*;
use crate::config::Store;

fn config(directory: &Path) -> Config {
    Config {
        data_dir: directory.join("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        agent_listen: "127.0.0.1:0".parse().unwrap(),
        ready_file: Some(directory.join("ready.json")),
        ..Config::default()
    }
}

fn ready(config: &Config) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(config.ready_file.as_ref().unwrap()).unwrap()).unwrap()
}

/// Trusts the CA that the ready file names, and nobody else.
fn client(ready: &serde_json::Value) -> reqwest::Client {
    let pem = std::fs::read(ready["ca_file"].as_str().unwrap()).unwrap();
    let ca = reqwest::Certificate::from_pem(&pem).unwrap();
    reqwest::Client::builder().tls_certs_only([ca]).build().unwrap()
}

async fn sites(ready: &serde_json::Value) -> serde_json::Value {
    let url = format!("{}/api/v1/sites", ready["url"].as_str().unwrap());
    let token = ready["token"].as_str().unwrap();
    let answer = client(ready).get(url).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_server_that_is_started_again_knows_what_it_knew_and_is_reached_over_https() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    for store in [Store::Sled, Store::Redb] {
        let config = Config { store: store.clone(), ..config(directory.path()) };
        let server = Server::start(&config).await.unwrap();
        let first = ready(&config);
        let mode = std::fs::metadata(config.ready_file.as_ref().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first["pid"], std::process::id());
        assert!(first["url"].as_str().unwrap().starts_with("https://127.0.0.1:"));
        let name = format!("lab-{store:?}").to_lowercase();
        let url = format!("{}/api/v1/sites/{name}/tokens", first["url"].as_str().unwrap());
        let token = first["token"].as_str().unwrap();
        let answer = client(&first).post(url).bearer_auth(token).json(&json!({})).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        let before = sites(&first).await;
        assert!(before["sites"].as_array().unwrap().iter().any(|site| site["site"] == name));
        server.shut_down().await.unwrap();

        let server = Server::start(&config).await.unwrap();
        let second = ready(&config);
        assert_eq!(second["token"], first["token"]);
        assert_eq!(sites(&second).await, before);
        server.shut_down().await.unwrap();
    }
}

#[tokio::test]
async fn a_data_directory_has_one_server() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path());
    let server = Server::start(&config).await.unwrap();
    let second = Server::start(&config).await.map(|_| ()).unwrap_err();
    assert!(format!("{second:#}").contains("in use by"), "{second:#}");
    server.shut_down().await.unwrap();
}

#[test]
fn an_address_that_stands_for_all_is_told_as_one_that_can_be_reached() {
    let reached = reachable("0.0.0.0:7381".parse().unwrap());
    assert!(!reached.ip().is_unspecified() && reached.port() == 7381);
    let bound = "127.0.0.1:7".parse().unwrap();
    assert_eq!(reachable(bound), bound);
}
