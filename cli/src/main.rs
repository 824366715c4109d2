//! The one binary: everything that a person types, and the processes of the control plane and of the agents.

mod action;
mod bench;
mod check;
mod client;
mod crashes;
mod data;
mod dev;
mod diagnostics;
mod failure;
mod files;
mod get;
mod installation;
mod logs;
mod output;
mod policy;
mod project;
mod repo;
mod run;
mod serve;
mod settings;
mod show;
mod site;
mod table;
mod why;
mod worker;
mod workflow;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::failure::{Failure, exit_code};
use crate::settings::Connection;

/// What the engine holds is many small things that live for very different times: where there are millions of them, the C
/// library's allocator looks for room longer than everything else takes (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Workflows across many sites from one control plane.
#[derive(Debug, Parser)]
#[command(name = "atoll", version, max_term_width = 110, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A control plane and its sites on this machine, in one command.
    Dev(Box<dev::DevArguments>),
    /// The control plane, in the foreground.
    Server(Box<serve::ServerArguments>),
    /// The agent of a site.
    #[command(subcommand)]
    Agent(serve::AgentCommand),
    /// A further machine of a site: takes work from its agent.
    Worker(Box<worker::WorkerArguments>),
    /// Say what is wrong with a workflow file.
    Check(check::CheckArguments),
    /// Say where each step would run, and which bytes would move.
    Plan(check::PlanArguments),
    /// Submit a run.
    Run(run::RunArguments),
    /// List runs.
    Runs(show::RunsArguments),
    /// Show a run and its executions.
    Show(show::ShowArguments),
    /// Print what steps have written.
    Logs(logs::LogsArguments),
    /// Say why an execution runs where it does, or why an object is where it is.
    Why(why::WhyArguments),
    /// List the bytes that crossed a border, each with its reason.
    Ledger(why::LedgerArguments),
    /// Download outputs of a run.
    Get(get::GetArguments),
    /// Cancel a run.
    Cancel(show::CancelArguments),
    /// Objects and their copies: where they are, which stay, which go.
    #[command(subcommand)]
    Data(data::DataCommand),
    /// List the sites.
    Sites(site::SitesArguments),
    /// One site: its tokens, its state, and what is wrong with its machine.
    #[command(subcommand)]
    Site(site::SiteCommand),
    /// Projects: what each may have, and has.
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// Policies: where data may go, and what a site lets others have.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Measure what Atoll costs.
    Bench(bench::BenchArguments),
    /// Keep a server and a token for later commands.
    Login,
    /// Workflows that are deployed, whose sources start their runs.
    #[command(subcommand)]
    Workflow(workflow::WorkflowCommand),
    /// Actions: reusable units of code.
    #[command(subcommand)]
    Action(action::ActionCommand),
    /// Git repositories that actions are imported from.
    #[command(subcommand)]
    Repo(repo::RepoCommand),
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// The process that watches over executions; started by agents.
    #[command(hide = true)]
    Shim {
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A shim is small: it never sees an asynchronous runtime.
    if let Command::Shim { arguments } = arguments.command {
        #[cfg(feature = "wasm")]
        if let Some((_, words)) = arguments.split_first().filter(|(first, _)| *first == site_agent_daemon::COMPONENT) {
            return site_agent_wasm::main(words);
        }
        return site_agent_daemon::shim_main(arguments);
    }
    match perform(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            report(&error);
            exit_code(&error)
        }
    }
}

fn report(error: &anyhow::Error) {
    if let Some(Failure::Invalid { diagnostics, source_text }) = error.downcast_ref::<Failure>() {
        anstream::eprint!("{}", diagnostics::render(diagnostics, source_text.as_ref()));
        return;
    }
    let style = anstyle::AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{style}error{style:#}: {error:#}");
}

/// Runs the command; whether what it was asked for succeeded.
fn perform(arguments: Arguments) -> anyhow::Result<bool> {
    let runtime = serve::runtime(&arguments.command)?;
    let done = runtime.block_on(async move {
        let connection = &arguments.connection;
        match arguments.command {
            Command::Dev(arguments) => return dev::dev(*arguments).await,
            Command::Run(arguments) => return run::run(connection, arguments).await,
            Command::Data(command) => return data::data(connection, command).await,
            Command::Site(command) => return site::site(connection, command).await,
            Command::Repo(command) => return repo::repo(connection, command).await,
            Command::Workflow(command) => return workflow::workflow(connection, command).await,
            Command::Server(arguments) => serve::server(*arguments).await?,
            Command::Agent(command) => serve::agent(command).await?,
            Command::Worker(arguments) => worker::worker(*arguments).await?,
            Command::Check(arguments) => check::check(connection, &arguments).await?,
            Command::Plan(arguments) => check::plan(connection, &arguments).await?,
            Command::Runs(arguments) => show::runs(connection, &arguments).await?,
            Command::Show(arguments) => show::show(connection, &arguments).await?,
            Command::Logs(arguments) => logs::logs(connection, &arguments).await?,
            Command::Why(arguments) => why::why(connection, &arguments).await?,
            Command::Ledger(arguments) => why::ledger(connection, &arguments).await?,
            Command::Get(arguments) => get::get(connection, &arguments).await?,
            Command::Cancel(arguments) => show::cancel(connection, &arguments).await?,
            Command::Sites(arguments) => site::sites(connection, &arguments).await?,
            Command::Project(command) => project::project(connection, command).await?,
            Command::Policy(command) => policy::policy(connection, command).await?,
            Command::Bench(arguments) => bench::bench(arguments).await?,
            Command::Login => connection.log_in().await?,
            Command::Action(command) => action::action(connection, command).await?,
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Arguments::command(), "atoll", &mut script);
                output::text(&String::from_utf8_lossy(&script));
            }
            Command::Shim { .. } => unreachable!("shims are started without a runtime"),
        }
        Ok(true)
    });
    if done.is_err() {
        // What has failed does not wait for threads that wait for others, as for a database that does not answer.
        runtime.shutdown_background();
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_every_command_are_consistent() {
        Arguments::command().debug_assert();
    }
}
