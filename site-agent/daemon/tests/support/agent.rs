//! An agent as a program of its own: `run CONFIG` until SIGTERM, and the shims that it starts.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use site_agent_daemon::{Config, Overrides};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result = match arguments.next().as_deref().and_then(|word| word.to_str()) {
        Some("shim") => return site_agent_daemon::shim_main(arguments),
        Some("run") => run(arguments.next().unwrap_or_default().as_ref()),
        Some(_) | None => Err(anyhow::anyhow!("it is started by tests: run CONFIG")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(Some(config), &|name| std::env::var(name).ok(), Overrides::default())?;
    site_agent_daemon::start_log();
    site_agent_daemon::runtime()?.block_on(async {
        let mut asked = signal(SignalKind::terminate()).context("no signals are to be had")?;
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let running = site_agent_daemon::run(config, shutdown);
        tokio::pin!(running);
        tokio::select! {
            result = &mut running => return result,
            _ = asked.recv() => ending.cancel(),
        }
        running.await
    })
}
