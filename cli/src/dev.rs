//! `atoll dev`: a control plane and its sites on this machine, in one command.

mod summary;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use crate::client::{Client, Finished};
use crate::installation::{Installation, Options};
use crate::run::{PROJECT, Registered, Submission};

#[derive(Debug, Args)]
pub(crate) struct DevArguments {
    /// Names of the sites, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "edge,hpc")]
    sites: Vec<String>,
    /// Where everything is kept, and found again at the next start [default: ./atoll-dev; with --run a temporary folder].
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The bucket: a directory, s3://NAME/PREFIX, gs://NAME/PREFIX, or az://CONTAINER/PREFIX [default: a directory in the data directory].
    #[arg(long)]
    bucket: Option<String>,
    /// Address of the HTTP API; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Written when everything is up: url, token, sites and process ids, as JSON.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Run one workflow to its end, print what ran where and what crossed a border, stop everything.
    #[arg(long, value_name = "FILE")]
    run: Option<PathBuf>,
    /// An input of the run: NAME=VALUE, or NAME=@PATH for a file or a directory.
    #[arg(short = 'i', long = "input", value_name = "NAME=VALUE", requires = "run")]
    inputs: Vec<String>,
    /// With --run: where the outputs go [default: ./atoll-results/RUN].
    #[arg(short = 'o', long, value_name = "DIR", requires = "run")]
    output: Option<PathBuf>,
    /// With --run: print the run as one JSON document.
    #[arg(long, requires = "run")]
    json: bool,
}

/// Runs `atoll dev`; whether what was asked for succeeded.
///
/// # Errors
/// When the installation does not start, or the run cannot be submitted.
pub(crate) async fn dev(arguments: DevArguments) -> anyhow::Result<bool> {
    if let Some(file) = &arguments.run {
        crate::run::check_requirements_here(file)?;
    }
    let temporary = match (&arguments.data_dir, &arguments.run) {
        (None, Some(_)) => {
            Some(tempfile::Builder::new().prefix("atoll-dev-").tempdir().context("cannot make a temporary folder")?)
        }
        (Some(_), _) | (None, None) => None,
    };
    let directory = match (&temporary, &arguments.data_dir) {
        (Some(temporary), _) => temporary.path().to_owned(),
        (None, Some(directory)) => directory.clone(),
        (None, None) => PathBuf::from("atoll-dev"),
    };
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make the folder {}", directory.display()))?;
    let directory =
        directory.canonicalize().with_context(|| format!("cannot open the folder {}", directory.display()))?;
    let options = Options {
        directory,
        sites: arguments.sites.clone(),
        listen: arguments.listen,
        bucket: arguments.bucket.clone(),
        store: None,
        agent_arguments: Vec::new(),
    };
    eprintln!("starting a control plane and the sites {}", arguments.sites.join(", "));
    // Whoever interrupts while it starts drops the processes, which ends them.
    let installation = tokio::select! {
        started = Installation::start(options) => started?,
        () = interrupted() => bail!("interrupted"),
    };
    write_ready_file(&arguments, &installation)?;
    match &arguments.run {
        Some(file) => run_one(&arguments, file, installation).await,
        None => keep_up(&arguments, installation).await,
    }
}

async fn run_one(arguments: &DevArguments, file: &Path, mut installation: Installation) -> anyhow::Result<bool> {
    let client = Client::new(installation.url(), installation.token())?;
    let ran = {
        let run = run_and_report(arguments, file, &client);
        tokio::pin!(run);
        loop {
            tokio::select! {
                ran = &mut run => break ran,
                message = installation.supervise() => match message {
                    Ok(message) => eprintln!("{message}"),
                    Err(error) => break Err(error),
                },
                () = interrupted() => break Err(anyhow::anyhow!("interrupted")),
            }
        }
    };
    installation.stop().await;
    ran
}

async fn run_and_report(arguments: &DevArguments, file: &Path, client: &Client) -> anyhow::Result<bool> {
    let registered = Registered { client: Some(client), project: PROJECT };
    let submission = Submission::prepare(file, &arguments.inputs, registered).await?;
    let outcome: Finished = submission.send_and_follow(client).await?;
    let executions = client.executions(&outcome.run).await?;
    let entries = client.ledger(&outcome.run).await?;
    let succeeded = outcome.state == "succeeded";
    let results = if succeeded && !outcome.outputs.is_empty() {
        let directory = arguments.output.clone().unwrap_or_else(|| Path::new("atoll-results").join(&outcome.run));
        crate::get::all_outputs(client, &outcome.run, &directory).await?;
        Some(directory)
    } else {
        None
    };
    if arguments.json {
        println!("{}", outcome.document);
    }
    // Standard output belongs to the document where there is one.
    let text = summary::describe(&outcome, &executions, &entries, results.as_deref());
    if arguments.json {
        eprint!("{text}")
    } else {
        print!("{text}")
    }
    Ok(succeeded)
}

async fn keep_up(arguments: &DevArguments, mut installation: Installation) -> anyhow::Result<bool> {
    println!("\nAtoll is up: {} with the sites {}.\n", installation.url(), arguments.sites.join(" and "));
    println!("In another terminal:\n");
    println!("  export ATOLL_URL={} ATOLL_TOKEN={}", installation.url(), installation.token());
    println!("  atoll run examples/earthquakes/workflow.yaml --wait\n");
    println!("Everything is kept in {}. Ctrl-C ends it.", installation.directory().display());
    loop {
        tokio::select! {
            message = installation.supervise() => {
                eprintln!("{}", message?);
                write_ready_file(arguments, &installation)?;
            }
            () = interrupted() => break,
        }
    }
    eprintln!("stopping");
    installation.stop().await;
    Ok(true)
}

fn write_ready_file(arguments: &DevArguments, installation: &Installation) -> anyhow::Result<()> {
    let Some(path) = &arguments.ready_file else { return Ok(()) };
    let mut pids: BTreeMap<String, u32> = installation.agent_pids();
    pids.insert("server".to_owned(), installation.server_pid());
    let document = json!({
        "url": installation.url(),
        "token": installation.token(),
        "ui": installation.url(),
        "sites": arguments.sites,
        "pids": pids,
    });
    crate::files::write_private(path, document.to_string().as_bytes())
}

/// Returns when the process is asked to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals have their default effect, which is to end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
