//! `atoll worker`: a further machine of a site, and `atoll site worker-token`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use atoll_model::time::Timestamp;
use atoll_model::units::{parse_amount, parse_cpu, parse_duration, parse_size};
use clap::Args;
use serde_json::json;
use site_agent_daemon::{Overrides, WorkerOptions};

use crate::failure::Failure;
use crate::output::{self, outln};
use crate::serve::{load_agent, read_token, shutdown};

#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    /// The data directory of the site's agent, which this machine shares: the token is taken from there.
    #[arg(long, required_unless_present = "token")]
    data_dir: Option<PathBuf>,
    /// The token that `atoll site worker-token` prints; `-` reads it from standard input, out of sight of other users.
    #[arg(long, env = "ATOLL_WORKER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Unlike that of every other worker of the site; the machine's name unless given.
    #[arg(long)]
    name: Option<String>,
    /// CPUs that are offered, whole ones or parts; those of the machine unless given.
    #[arg(long)]
    cpus: Option<String>,
    /// Memory that is offered, as `8GiB`; nine tenths of the machine's unless given.
    #[arg(long)]
    memory: Option<String>,
    /// The kind of a GPU, by index; may be given more than once. What `nvidia-smi` lists unless given.
    #[arg(long = "gpu", value_name = "KIND")]
    gpus: Vec<String>,
    /// What else there is a number of; may be given more than once.
    #[arg(long = "resource", value_name = "NAME=AMOUNT")]
    resources: Vec<String>,
    /// The worker has ended after this long.
    #[arg(long, value_name = "DURATION", conflicts_with = "until")]
    time_limit: Option<String>,
    /// The worker has ended at this time: RFC 3339.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// How long what runs may go on once the worker is to end: it takes nothing new so long before its time is over.
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    drain: String,
    /// The worker ends when it has had nothing to do for so long, or has not reached the agent, but for a minute at least.
    #[arg(long, value_name = "DURATION")]
    idle: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerTokenArguments {
    /// Where the agent keeps everything.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The agent's TOML file; flags win over it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Works for a site until it is told to end, or its time is over.
pub(crate) async fn worker(arguments: WorkerArguments) -> anyhow::Result<()> {
    site_agent_daemon::start_log();
    site_agent_daemon::work(arguments.options()?, shutdown()).await
}

/// Prints the token of the agent that keeps everything in the data directory.
pub(crate) fn worker_token(arguments: WorkerTokenArguments) -> anyhow::Result<()> {
    let flags = Overrides { data_dir: arguments.data_dir, ..Overrides::default() };
    let config = load_agent(arguments.config.as_deref(), flags)?;
    let token = site_agent_daemon::worker_token(&config.data_dir)?;
    if arguments.json {
        output::json(&json!({ "token": token, "data_dir": config.data_dir }));
    } else {
        outln!("{token}");
    }
    Ok(())
}

impl WorkerArguments {
    fn options(self) -> anyhow::Result<WorkerOptions> {
        let token = match (self.token, self.data_dir) {
            (Some(token), _) if token == "-" => read_token()?,
            (Some(token), _) => token,
            (None, Some(data_dir)) => site_agent_daemon::worker_token(&std::path::absolute(data_dir)?)?,
            (None, None) => return Err(wrong("--data-dir", "or --token says which site")),
        };
        let quantity = |flag, text: &str| parse_duration(text).map_err(|error| wrong(flag, &error.to_string()));
        let until = self.until.as_deref().map(time_left).transpose()?;
        let limit = self.time_limit.as_deref().map(|text| quantity("--time-limit", text)).transpose()?;
        let cpus = self.cpus.as_deref().map(parse_cpu).transpose();
        let memory = self.memory.as_deref().map(parse_size).transpose();
        Ok(WorkerOptions {
            token,
            name: self.name,
            cpu_millis: cpus.map_err(|error| wrong("--cpus", &error.to_string()))?,
            memory_bytes: memory.map_err(|error| wrong("--memory", &error.to_string()))?,
            gpus: (!self.gpus.is_empty()).then_some(self.gpus),
            resources: self.resources.iter().map(|text| resource(text)).collect::<anyhow::Result<_>>()?,
            time_limit: limit.or(until),
            drain: quantity("--drain", &self.drain)?,
            idle: self.idle.as_deref().map(|text| quantity("--idle", text)).transpose()?,
            shim_program: None,
        })
    }
}

fn wrong(flag: &str, message: &str) -> anyhow::Error {
    Failure::Usage(format!("{flag}: {message}")).into()
}

fn time_left(text: &str) -> anyhow::Result<Duration> {
    let at = Timestamp::parse_rfc3339(text).map_err(|_| wrong("--until", "a time, as 2027-03-01T18:00:00Z"))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("the clock is wrong")?;
    Ok(at.saturating_since(Timestamp::ZERO + now))
}

fn resource(text: &str) -> anyhow::Result<(String, u32)> {
    let (name, amount) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() || name.contains(' ') {
        return Err(wrong("--resource", &format!("{text:?} is not NAME=AMOUNT")));
    }
    let amount = parse_amount(amount).map_err(|error| wrong("--resource", &format!("{name}: {error}")))?;
    Ok((name.to_owned(), amount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_a_name_and_an_amount() {
        assert_eq!(resource("licences=0.5").expect("valid"), ("licences".to_owned(), 500));
        for text in ["licences", "=1", "a b=1", "licences=x", "licences=-1", "licences=nan"] {
            assert!(resource(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_that_is_over_leaves_nothing() {
        assert_eq!(time_left("2001-01-01T00:00:00Z").expect("a time"), Duration::ZERO);
        assert!(time_left("2999-01-01T00:00:00Z").expect("a time") > Duration::from_secs(1_000_000));
        assert!(time_left("tomorrow").is_err());
    }
}
