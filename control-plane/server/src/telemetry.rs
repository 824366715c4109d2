//! What happens, told: the log, metrics, traces.

mod meters;
#[cfg(test)]
mod tests;
mod traces;

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::{LogFormat, Telemetry};

pub(crate) use meters::Meters;
pub(crate) use traces::{SubmitSpan, Traced, start_exporter};

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.log is no filter")]
pub struct LogFilterError(#[from] tracing_subscriber::filter::ParseError);

/// Sends the log of the whole process to standard error: text on a terminal, JSON elsewhere. What was installed before
/// stays.
///
/// # Errors
/// When the filter cannot be read.
pub fn install_log(settings: &Telemetry) -> Result<(), LogFilterError> {
    let filter = EnvFilter::builder().parse(&settings.log)?;
    let terminal = std::io::stderr().is_terminal();
    let text = match settings.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let layer = if text { layer.boxed() } else { layer.json().flatten_event(true).boxed() };
    // Whoever embeds the server, and installed a log of its own, keeps it.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    Ok(())
}
