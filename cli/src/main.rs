// The command line IS WRITTEN, in the modules beside this file (main_wired.rs is the real main, to be moved here as soon as
// what it calls has landed). Do not write it again: adapt, polish and test it.
// It still waits for: atoll_model::{units, action, workflow::{parse, check_sites, schema, Given, HeldAt, SiteFacts},
// value::{from_text, Value::to_json}, resources::parse_bytes → use units::parse_size}, Workflow.requires (a list of programs,
// `requires: [python3]` at the top of a workflow file; the daemon refuses to start work without them),
// a step's `command: [/bin/true]` as an action without a bundle,
// site_agent_daemon::{is_joined, stop_work, Config.server, Config.stop_work_on_exit}, control_plane_server::{Config::load, run}.
fn main() {}
