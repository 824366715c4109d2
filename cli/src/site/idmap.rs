//! `atoll site idmap`: the local accounts of a site that executions run as.

use std::path::PathBuf;

use atoll_model::session::Requester;
use clap::{Args, Subcommand};
use site_agent_daemon::{AccountError, AccountTrial, Overrides, try_account};

use crate::failure::Failure;
use crate::output::{self, outln};
use crate::serve::load_agent;

#[derive(Debug, Subcommand)]
pub(crate) enum IdmapCommand {
    /// Say which account runs of a project and a person run as here, and try whether something can be run as it.
    Test(IdmapTestArguments),
}

#[derive(Debug, Args)]
pub(crate) struct IdmapTestArguments {
    /// The project of the run.
    #[arg(long)]
    project: String,
    /// Who asks for it.
    #[arg(long, default_value = "")]
    person: String,
    /// Where the agent keeps everything.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The agent's TOML file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Whether something can be run as the account.
pub(crate) fn idmap(command: IdmapCommand) -> anyhow::Result<bool> {
    let IdmapCommand::Test(IdmapTestArguments { project, person, data_dir, config, json }) = command;
    let config = load_agent(config.as_deref(), Overrides { data_dir, ..Overrides::default() })?;
    let trial = try_account(&config, &Requester { project, person }).map_err(failure)?;
    if json {
        output::json(&serde_json::to_value(&trial)?);
    } else {
        show(&trial);
    }
    Ok(trial.problem.is_none())
}

fn failure(error: AccountError) -> anyhow::Error {
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    Failure::Failed(format!("{error}{source}")).into()
}

fn show(trial: &AccountTrial) {
    let named = |group: &site_agent_daemon::GroupOfAccount| match &group.name {
        Some(name) => format!("{} ({name})", group.gid),
        None => group.gid.to_string(),
    };
    let groups: Vec<String> = trial.groups.iter().map(named).collect();
    outln!("account  {}", trial.account);
    outln!("uid      {}", trial.uid);
    outln!("gid      {}", trial.gid);
    outln!("groups   {}", groups.join(", "));
    outln!("by       {}", trial.rule);
    match (&trial.problem, &trial.advice) {
        (Some(problem), Some(advice)) => outln!("tried    {problem}\nto do    {advice}"),
        (Some(problem), None) => outln!("tried    {problem}"),
        (None, _) => outln!("tried    a program ran as it, with these numbers"),
    }
}
