//! The long-lived processes: `atoll server` and `atoll agent`.

mod journal;

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use control_plane_server::config::Store;
use tokio_util::sync::CancellationToken;

use crate::Command;
use crate::failure::Failure;
use crate::installation::SUPERVISED;
use crate::output::outln;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ServerArguments {
    #[command(subcommand)]
    command: Option<ServerCommand>,
    /// A TOML file; flags win over it.
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Address of the HTTP API; port 0 takes a free one.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Address for agents.
    #[arg(long)]
    agent_listen: Option<SocketAddr>,
    /// Where the journal is kept: sled, redb, or postgres://USER@HOST/DATABASE.
    #[arg(long)]
    store: Option<String>,
    /// The bucket: a directory, s3://NAME/PREFIX, gs://NAME/PREFIX, or az://CONTAINER/PREFIX.
    #[arg(long)]
    bucket: Option<String>,
    /// Written when everything accepts connections.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Serve the API without TLS; on loopback only.
    #[arg(long)]
    plain_http: bool,
    /// A certificate of one's own for the API, with its whole chain (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Check the configuration, and end.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Subcommand)]
enum ServerCommand {
    /// Look into the journal of a server that does not run.
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// Move the installation of a server that does not run into a database that several servers share.
    Migrate {
        /// What to move: sled:DIR or redb:DIR, with the server's data directory.
        #[arg(long, value_name = "STORE:DIR")]
        from: String,
        /// Where to: postgres://USER@HOST/DATABASE.
        #[arg(long, value_name = "URL")]
        to: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Redeem a join token: make keys, get a certificate.
    Join {
        /// The token; `-` reads it from standard input, out of sight of other users.
        token: String,
        #[command(flatten)]
        options: AgentOptions,
        /// Go on as `atoll agent run`.
        #[arg(long)]
        run: bool,
    },
    /// Run the agent until it is stopped; what its executions run goes on without it.
    Run {
        #[command(flatten)]
        options: AgentOptions,
    },
    /// End everything that a stopped agent has left running.
    StopWork {
        #[command(flatten)]
        options: AgentOptions,
    },
    /// Print the template by which the agent speaks to a batch system, to be changed and named in its configuration.
    Template {
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(site_agent_daemon::Template::NAMES))]
        system: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AgentOptions {
    /// A TOML file; flags win over it.
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where executions work, if not in the data directory: a faster disk, say.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// A folder below which workflows may take files of this machine; may be given more than once.
    #[arg(long = "import-root", value_name = "DIR")]
    imports: Vec<PathBuf>,
    /// What URLs begin with that workflows may fetch from (`https://`, `s3://bucket`); may be given more than once.
    #[arg(long = "import-url", value_name = "PREFIX")]
    import_urls: Vec<String>,
    /// A folder below which workflows may publish, or what URLs of buckets begin with where they may (`s3://bucket`); may be
    /// given more than once.
    #[arg(long = "export-to", value_name = "DIR or PREFIX")]
    exports: Vec<String>,
    /// Address of the control plane, if it is not the one that the token named; of several servers, with commas.
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Where agents of other sites may ask this one for objects (TCP and UDP), so that these need not take the way over
    /// the bucket.
    #[arg(long, value_name = "ADDRESS:PORT")]
    direct_listen: Option<std::net::SocketAddr>,
    /// End what runs when the agent is stopped, instead of leaving it to the next one.
    #[arg(long)]
    stop_work_on_exit: bool,
}

impl AgentOptions {
    fn load(self) -> anyhow::Result<site_agent_daemon::Config> {
        let flags = site_agent_daemon::Overrides {
            data_dir: self.data_dir,
            work_dir: self.work_dir,
            imports: (!self.imports.is_empty()).then_some(self.imports),
            import_urls: (!self.import_urls.is_empty()).then_some(self.import_urls),
            exports: (!self.exports.is_empty()).then_some(self.exports),
            server: self.server,
            direct_listen: self.direct_listen,
            stop_work_on_exit: self.stop_work_on_exit.then_some(true),
            ..site_agent_daemon::Overrides::default()
        };
        load_agent(self.config.as_deref(), flags)
    }
}

/// The configuration of an agent: a file, then the environment, then flags.
///
/// # Errors
/// When anything in it is not what it must be.
pub(crate) fn load_agent(
    file: Option<&Path>,
    flags: site_agent_daemon::Overrides,
) -> anyhow::Result<site_agent_daemon::Config> {
    let variable = |name: &str| std::env::var(name).ok();
    site_agent_daemon::Config::load(file, &variable, flags).map_err(usage)
}

fn usage(error: impl std::error::Error) -> anyhow::Error {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    Failure::Usage(format!("{error}{source}")).into()
}

/// The runtime that a command wants: an agent's is small, since an idle one is to cost next to nothing.
///
/// # Errors
/// When the system gives no threads.
pub(crate) fn runtime(command: &Command) -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = if matches!(command, Command::Agent(_) | Command::Worker(_)) {
        site_agent_daemon::runtime()
    } else if matches!(command, Command::Server(_) | Command::Bench(_)) {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    runtime.context("cannot start a runtime")
}

pub(crate) async fn server(arguments: ServerArguments) -> anyhow::Result<()> {
    match arguments.command {
        Some(ServerCommand::Journal(command)) => return journal::journal(command),
        Some(ServerCommand::Migrate { from, to }) => return migrate(&from, &to).await,
        None => {}
    }
    let flags = control_plane_server::config::Flags {
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        agent_listen: arguments.agent_listen,
        store: arguments.store,
        bucket: arguments.bucket,
        ready_file: arguments.ready_file,
        plain_http: arguments.plain_http,
        tls_certificate: arguments.tls_cert,
        tls_key: arguments.tls_key,
    };
    let config = control_plane_server::Config::load(arguments.config.as_deref(), flags).map_err(usage)?;
    config.check().map_err(usage)?;
    if arguments.check {
        outln!("the configuration is valid");
        return Ok(());
    }
    raise_descriptors()?;
    // It listens for signals itself.
    control_plane_server::run(config, shutdown_of_supervised().cancelled_owned()).await
}

async fn migrate(from: &str, to: &str) -> anyhow::Result<()> {
    let wrong = |message: String| Failure::Usage(message);
    let (store, directory) =
        from.split_once(':').ok_or_else(|| wrong(format!("{from:?} is not STORE:DIR, as sled:/var/lib/atoll")))?;
    let store: Store = store.parse().map_err(wrong)?;
    let to: control_plane_postgres::Address = to.parse().map_err(|error| wrong(format!("{to:?}: {error}")))?;
    let directory = PathBuf::from(directory);
    let address = to.clone();
    let moving = tokio::task::spawn_blocking(move || control_plane_server::migrate(&store, &directory, &address));
    let moved = moving.await.context("the migration has failed")??;
    outln!("moved {} bytes of state and {} runs of the history to {to}", moved.state_bytes, moved.runs);
    outln!("start the server with the same data directory and --store '{to}'");
    Ok(())
}

/// Lets this process, and those that it starts, open as many files and sockets as it may: each agent that is connected takes
/// one. How many these are.
///
/// # Errors
/// When the limit cannot be set.
pub(crate) fn raise_descriptors() -> anyhow::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    Ok(hard)
}

pub(crate) async fn agent(command: AgentCommand) -> anyhow::Result<()> {
    match command {
        AgentCommand::Join { token, options, run } => {
            let token = if token == "-" { read_token()? } else { token };
            let config = options.load()?;
            let joined = site_agent_daemon::join(&config, &token).await?;
            eprintln!("joined as {} ({})", joined.site, joined.agent);
            if run { site_agent_daemon::run(config, shutdown()).await } else { Ok(()) }
        }
        AgentCommand::Run { options } => {
            site_agent_daemon::start_log();
            site_agent_daemon::run(options.load()?, shutdown()).await
        }
        AgentCommand::StopWork { options } => site_agent_daemon::stop_work(&options.load()?),
        AgentCommand::Template { system } => {
            print!("{}", site_agent_daemon::Template::text(&system).context("there is no such template")?);
            Ok(())
        }
    }
}

/// The join token on standard input, out of sight of other users.
pub(crate) fn read_token() -> anyhow::Result<String> {
    let mut token = String::new();
    std::io::stdin().read_to_string(&mut token).context("cannot read the token from standard input")?;
    Ok(token.trim().to_owned())
}

/// Cancelled by SIGTERM, SIGINT, or the end of standard input of a supervised process.
pub(crate) fn shutdown() -> CancellationToken {
    let token = shutdown_of_supervised();
    let cancelled = token.clone();
    #[expect(clippy::disallowed_methods, reason = "it lives as long as the process")]
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancelled.cancel();
    });
    token
}

/// Cancelled by the end of standard input, if whoever started this process wants it so.
fn shutdown_of_supervised() -> CancellationToken {
    let token = CancellationToken::new();
    if std::env::var_os(SUPERVISED).is_some() {
        let cancelled = token.clone();
        std::thread::spawn(move || {
            // Whether it ends or breaks: nobody holds the other end any more.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            cancelled.cancel();
        });
    }
    token
}
