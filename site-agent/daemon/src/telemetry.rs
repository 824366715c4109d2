//! What happens, told: the log (text on a terminal, JSON elsewhere), metrics, traces.

mod listener;
mod meters;
mod spans;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub(crate) use listener::{listen, serve};
pub(crate) use meters::{Meters, level};
pub(crate) use spans::{Spans, Traces, process_context, start_exporter};

/// What is logged unless `RUST_LOG` says otherwise.
const FILTER: &str = "info,h2=warn,hyper=warn,rustls=warn,sled=warn";

/// Begins to log. Only the first call in a process counts.
pub fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(FILTER));
    let terminal = std::io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let started = if terminal {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()
    } else {
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
        registry.with(json).try_init()
    };
    if started.is_err() {
        tracing::debug!("this process logs already");
    }
}
