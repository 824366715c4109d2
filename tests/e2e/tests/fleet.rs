//! Many agents at once: each of them has a session, and has one again after the control plane was killed.

use anyhow::Result;
use e2e_tests::{Output, atoll};
use serde_json::Value;

#[test]
fn a_fleet_of_agents_connects_and_comes_back_after_the_server_was_killed() -> Result<()> {
    let mut command = atoll(&["bench", "agents", "--count", "50", "--idle-seconds", "1", "--json"]);
    let output = Output::of(&mut command)?;
    assert_eq!(output.code, 0, "{}", output.stderr);
    let document: Value = serde_json::from_str(&output.stdout)?;
    assert_eq!((&document["bench"], &document["settings"]["count"]), (&Value::from("agents"), &Value::from(50)));
    let results = document["results"].as_object().unwrap();
    assert_eq!(results["agents"], 50);
    for name in [
        "join_seconds",
        "connect_seconds",
        "server_rss_bytes_connected",
        "bytes_per_agent",
        "idle_cpu_share_of_a_core",
        "restart_seconds",
        "reconnect_seconds",
    ] {
        assert!(results[name].is_number(), "{name} in {results:#?}");
    }
    Ok(())
}

#[test]
fn a_fleet_that_the_system_has_no_room_for_is_refused_with_what_to_change() -> Result<()> {
    let output = Output::of(&mut atoll(&["bench", "agents", "--count", "400000000"]))?;
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("open files") || output.stderr.contains("ip_local_port_range"), "{}", output.stderr);
    Ok(())
}
