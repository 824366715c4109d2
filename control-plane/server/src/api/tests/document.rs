use crate::api::openapi;
use crate::testing::Plane;

/// Method and path of every documented operation, with something that has the shape of an id where one is asked for.
fn operations() -> Vec<(String, String)> {
    let document = serde_json::to_value(openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let mut found = Vec::new();
    for (path, operations) in paths {
        let concrete = path
            .replace("{run}", "run_00000000000000000000000001")
            .replace("{execution}", "exec_00000000000000000000000001-0-0")
            .replace("{object}", &format!("b3:{}", "0".repeat(64)))
            .replace("{site}", "nowhere")
            .replace("{project}", "rivers")
            .replace("{name}", "nothing")
            .replace("{version}", "1.0");
        assert!(!concrete.contains('{'), "{path} has a part that is not known here");
        for method in operations.as_object().unwrap().keys() {
            found.push((method.to_uppercase(), concrete.clone()));
        }
    }
    found
}

#[tokio::test]
async fn every_documented_operation_is_served_and_no_other() {
    let plane = Plane::start().await;
    let operations = operations();
    for route in [
        ("POST", "/api/v1/runs"),
        ("GET", "/api/v1/runs"),
        ("PUT", "/api/v1/uploads"),
        ("DELETE", "/api/v1/sites/nowhere"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
    ] {
        assert!(operations.iter().any(|(method, path)| (method.as_str(), path.as_str()) == route), "{route:?}");
    }
    let mut paths: Vec<&String> = operations.iter().map(|(_, path)| path).collect();
    paths.dedup();
    for path in paths {
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            let documented = operations.contains(&(method.to_owned(), path.clone()));
            let response = plane.ask(method, path).send().await.unwrap();
            let status = response.status().as_u16();
            assert_eq!(status != 405, documented, "{method} {path} is answered with {status}");
            let text = response.text().await.unwrap();
            assert!(!text.contains("no_such_route"), "{method} {path}: {text}");
        }
    }
    let (status, body) = plane.get("/nothing/at/all").await;
    assert_eq!((status, &body["error"]["code"]), (404, &"no_such_route".into()));
}

#[tokio::test]
async fn only_what_shows_nothing_is_answered_without_a_token() {
    let plane = Plane::start().await;
    let stranger = format!("atoll.{}.x", "A".repeat(43));
    for (method, path) in operations() {
        let open = ["/healthz", "/metrics", "/api/v1/openapi.json"].contains(&path.as_str());
        for token in [None, Some(stranger.as_str()), Some("")] {
            let response = plane.ask_as(token, &method, &path).send().await.unwrap();
            assert_eq!(response.status() == 401, !open, "{method} {path}");
            if !open {
                assert_eq!(response.headers()["www-authenticate"], "Bearer");
            }
        }
    }
}

#[tokio::test]
async fn the_probes_answer() {
    let plane = Plane::start().await;
    let (status, health) = plane.json(plane.ask_as(None, "GET", "/healthz")).await;
    assert_eq!((status, &health["status"]), (200, &"ok".into()));
    let metrics = plane.ask_as(None, "GET", "/metrics").send().await.unwrap().text().await.unwrap();
    for figure in ["atoll_runs_submitted_total 0", "atoll_driver_batch_inputs_count", "# EOF"] {
        assert!(metrics.contains(figure), "{figure} is not in\n{metrics}");
    }
    let document = plane.json(plane.ask_as(None, "GET", "/api/v1/openapi.json")).await.1;
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
}
