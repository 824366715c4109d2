//! Runs components, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    site_agent_wasm::main(&arguments)
}
