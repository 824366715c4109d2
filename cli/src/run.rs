//! `atoll run`: reads a workflow file and what goes with it, checks it, sends it in, follows it.

mod progress;
mod submission;
pub(crate) mod upload;

use std::path::PathBuf;

use clap::Args;

use crate::output::{self, outln};
use crate::settings::Connection;

pub(crate) use submission::{Registered, Submission, check_requirements_here, taken_in};

/// The project of what says nothing of one.
pub(crate) const PROJECT: &str = "default";

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The workflow file, or the name of a workflow that is deployed.
    #[arg(value_name = "FILE_OR_NAME")]
    file: PathBuf,
    /// An input: NAME=VALUE, or NAME=@PATH for a file or a directory.
    #[arg(short = 'i', long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// The project that the run is counted to.
    #[arg(long)]
    project: Option<String>,
    /// Instead of the one that the file says, from -100 to 100: what is more comes first.
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-100..=100))]
    priority: Option<i8>,
    /// What the run is to be found by; may be given more than once.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Run steps with `cache` although the same was made before.
    #[arg(long)]
    no_cache: bool,
    /// Stay until it has ended; fail if it does.
    #[arg(long)]
    wait: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Submits a run; whether it succeeded, if it was waited for.
///
/// # Errors
/// When the file or the inputs are wrong, or the server refuses or cannot be reached.
pub(crate) async fn run(connection: &Connection, arguments: RunArguments) -> anyhow::Result<bool> {
    let client = connection.client();
    let project = arguments.project.as_deref().unwrap_or(PROJECT);
    let registered = Registered { client: client.as_ref().ok(), project };
    let submission = Submission::prepare(&arguments.file, &arguments.inputs, registered).await?;
    let submission = submission.tagged(arguments.project.clone(), arguments.priority, &arguments.labels)?;
    let submission = submission.without_cache(arguments.no_cache);
    let client = client?;
    if !arguments.wait {
        let document = submission.send(&client).await?;
        if arguments.json {
            output::json(&document);
        } else {
            outln!("{}", document["run"].as_str().unwrap_or_default());
        }
        return Ok(true);
    }
    let finished = submission.send_and_follow(&client).await?;
    if arguments.json {
        output::json(&finished.document);
    } else {
        outln!("{} {}", finished.run, finished.state);
        for (name, value) in &finished.outputs {
            outln!("  {name} = {}", crate::show::shown_value(value));
        }
        if let Some(error) = &finished.error {
            eprintln!("{error}");
        }
    }
    Ok(finished.state == "succeeded")
}
