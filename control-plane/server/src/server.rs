//! A control plane from its start to its end.

mod store;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use atoll_model::limits;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use control_plane_postgres::Member;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use storage_sync_engine::bucket::{AzureOptions, Bucket, BucketOptions, ByteStream, GcsOptions, S3Options};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::agents::{self, Agents};
use crate::api::tokens::{ApiTokens, write_atomically};
use crate::api::{self, App, Joining};
use crate::audit::Audit;
use crate::config::Config;
use crate::driver::{Driver, Handle, Notices, delete_objects};
use crate::history::keep_runs;
use crate::identity::{
    Authority, ServerCertificate, server_names, sha256, tls_for_agents, tls_for_people, tls_for_people_with_files,
};
use crate::keys::Keys;
use crate::repositories::{self, Imports};
use crate::telemetry::{Meters, install_log, start_exporter};

/// What is still being answered when the server is to end has this long.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs a control plane until `shutdown`, SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or cannot go on: above all when the journal cannot be written. Everything that was answered is
/// found again at the next start.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    config.check()?;
    install_log(&config.telemetry)?;
    let mut server = Server::start(&config).await?;
    let ended = {
        let asked = async {
            tokio::select! {
                () = shutdown => {}
                () = terminated() => {}
            }
        };
        server.until(asked).await
    };
    match ended {
        Ok(()) => server.shut_down().await,
        Err(error) => Err(error),
    }
}

/// Waits for SIGTERM or SIGINT.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process at once, which recovery is made for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

struct Server {
    handle: Handle,
    driver: Driver,
    tasks: TaskTracker,
    /// Ends the listeners.
    closing: CancellationToken,
    /// A listener that has failed says so here.
    failures: mpsc::Receiver<anyhow::Error>,
}

/// Bound sockets, so that port 0 is known before anything is made that names it.
struct Sockets {
    people: TcpListener,
    agents: TcpListener,
    people_address: SocketAddr,
    /// `host:port` by which agents reach this machine; with commas, those of the other servers follow.
    agents_address: String,
}

impl Sockets {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = async |address: SocketAddr, what: &str| {
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for {what}"))
        };
        let people = bind(config.listen, "people").await?;
        let agents = bind(config.agent_listen, "agents").await?;
        let agents_bound = agents.local_addr()?;
        let agents_address = config.agent_address.clone().unwrap_or_else(|| reachable(agents_bound).to_string());
        Ok(Self { people_address: people.local_addr()?, people, agents, agents_address })
    }
}

/// An address that others can connect to: for one that stands for all, one of this machine.
fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let networks = sysinfo::Networks::new_with_refreshed_list();
    let mut addresses: Vec<IpAddr> = networks
        .iter()
        .flat_map(|networks| networks.values())
        .flat_map(sysinfo::NetworkData::ip_networks)
        .map(|network| network.addr)
        .filter(|address| !address.is_loopback() && (bound.is_ipv6() || address.is_ipv4()))
        .collect();
    addresses.sort();
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let fallback = if bound.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) };
    let chosen = addresses.into_iter().find(|address| !link_local(address)).unwrap_or(fallback);
    SocketAddr::new(chosen, bound.port())
}

impl Server {
    async fn start(config: &Config) -> anyhow::Result<Self> {
        make_directory(&config.data_dir)?;
        let spool = config.data_dir.join("uploads");
        make_directory(&spool)?;
        let authority = Arc::new(Authority::open(&config.data_dir)?);
        let tokens = ApiTokens::open(&config.data_dir, &pin(config, &authority)?)?;
        let audit = Audit::open(&config.data_dir)?;
        let sockets = Sockets::bind(config).await?;
        let bucket = open_bucket(config, &sockets)?;
        let keys = Keys::open(config)?;
        if let Err(error) = bucket.check().await {
            // Work inside of sites goes on without it; what crosses borders waits.
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, location = config.bucket_location(), "the bucket cannot be reached now");
        }

        let meters = Arc::new(Meters::new());
        let (traced, traces) = start_exporter(&config.telemetry)?.unzip();
        let notices = Notices::new(traced.clone(), Arc::clone(&meters));
        let member = member(config, &sockets, &authority);
        let store::Started { handle, driver, deletions, kept, history } =
            store::start_driver(config, member, notices, &meters).await?;
        let tasks = TaskTracker::new();
        let keeping = keep_runs(Arc::clone(&history), config.history.clone(), handle.clone(), kept);
        tasks.spawn(when_leading(handle.clone(), keeping));
        keys.check(&handle).await?;
        tasks.spawn(when_leading(handle.clone(), keys.clone().wrap_anew(handle.clone())));
        tasks.spawn(delete_objects(bucket.clone(), keys.clone(), handle.clone(), deletions));
        if let Some(traces) = traces {
            tasks.spawn(traces.run(handle.clone()));
        }

        let settings = agents::Settings { certificate_lifetime: Duration::from_secs(config.certificate_seconds) };
        let agents = Agents::new(handle.clone(), Arc::clone(&authority), (bucket.clone(), keys.clone()), settings);
        let app = Arc::new(App {
            handle: handle.clone(),
            history,
            bucket: bucket.clone(),
            keys,
            audit,
            meters,
            logs: agents.logs(),
            joining: Joining { url: agents_url(&sockets.agents_address), ca_sha256: authority.fingerprint() },
            tasks: tasks.clone(),
            traced,
            imports: Imports::default(),
            spool,
            tokens,
            admission: Admission::new(&config.limits, &config.data_dir),
        });
        let importing = repositories::Settings::new(config.git(), config.data_dir.join("imports"))?;
        tasks.spawn(when_leading(handle.clone(), repositories::import_repositories(Arc::clone(&app), importing)));
        let mut server =
            Self { handle, driver, tasks, closing: CancellationToken::new(), failures: mpsc::channel(2).1 };
        server.listen(config, &authority, sockets, agents, &app)?;
        Ok(server)
    }

    /// Opens both listeners, then says that everything is ready.
    fn listen(
        &mut self,
        config: &Config,
        authority: &Arc<Authority>,
        sockets: Sockets,
        agents: Agents,
        app: &Arc<App>,
    ) -> anyhow::Result<()> {
        let Sockets { people, agents: agents_listener, people_address, agents_address } = sockets;
        let configured = config.names.iter().map(String::as_str).chain(config.public_url.as_deref());
        let configured = configured.chain(agents_address.split(','));
        let listening = [config.listen.ip(), config.agent_listen.ip()];
        let certificate = ServerCertificate::issue(Arc::clone(authority), &server_names(listening, configured))?;
        let agents_tls = tls_for_agents(authority, Arc::clone(&certificate))?;
        let people_tls: Option<Arc<ServerConfig>> = match (&config.tls, config.plain_http) {
            (_, true) => None,
            (Some(files), false) => Some(tls_for_people_with_files(&files.certificate, &files.key)?),
            (None, false) => Some(tls_for_people(certificate)?),
        };
        let url = people_url(config, people_address);

        let (failed, failures) = mpsc::channel(2);
        self.failures = failures;
        let beside = bucket_routes(app.bucket.clone());
        let serving_agents = agents::serve(agents, agents_listener, agents_tls, beside, self.closing.clone());
        self.tasks.spawn(report(failed.clone(), async { Ok(serving_agents.await?) }));
        self.tasks.spawn(api::listener::serve(people, people_tls, api::router(Arc::clone(app)), self.closing.clone()));

        tracing::info!(url, agents = agents_address, data_dir = %config.data_dir.display(), "the control plane is up");
        if let Some(path) = &config.ready_file {
            let ready = json!({
                "url": url,
                "agent_addr": agents_address,
                "token": app.tokens.first(),
                "ca_file": authority.file(),
                "leads": app.handle.leader().is_none(),
                "pid": std::process::id(),
            });
            write_atomically(path, ready.to_string().as_bytes())
                .with_context(|| format!("cannot write the ready file {}", path.display()))?;
        }
        Ok(())
    }

    /// Waits until somebody asks for the end, or something cannot go on.
    async fn until(&mut self, asked: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = asked => Ok(()),
            ended = self.driver.ended() => {
                ended?;
                bail!("the driver has ended, and nobody asked for it")
            }
            Some(failure) = self.failures.recv() => Err(failure),
        }
    }

    /// Says goodbye to the agents, answers what was asked, ends.
    async fn shut_down(mut self) -> anyhow::Result<()> {
        tracing::info!("the control plane is going down");
        self.handle.shut_down().await;
        let ended = self.driver.ended().await;
        self.closing.cancel();
        drop(self.handle);
        self.tasks.close();
        if tokio::time::timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::warn!("some answers were cut off");
        }
        Ok(ended?)
    }
}

/// The URL by which people reach the API.
fn people_url(config: &Config, bound: SocketAddr) -> String {
    let scheme = if config.plain_http { "http" } else { "https" };
    config.public_url.clone().unwrap_or_else(|| format!("{scheme}://{}", reachable(bound)))
}

/// Every address at which agents may look for the control plane, as a join token carries them.
fn agents_url(addresses: &str) -> String {
    let urls: Vec<String> = addresses.split(',').map(|address| format!("https://{address}")).collect();
    urls.join(",")
}

/// What the other servers of the installation are told of this one.
fn member(config: &Config, sockets: &Sockets, authority: &Authority) -> Member {
    let host = sysinfo::System::host_name().unwrap_or_default();
    let agents = &sockets.agents_address;
    Member {
        name: format!("process {} on {host}", std::process::id()),
        api_url: people_url(config, sockets.people_address),
        agent_address: agents.split(',').next().unwrap_or(agents).to_owned(),
        authority: authority.fingerprint_hex(),
    }
}

/// What only a leader does, from the time that this server leads.
async fn when_leading(handle: Handle, work: impl Future<Output = ()>) {
    if handle.wait_to_lead().await {
        work.await;
    }
}

async fn report(failed: mpsc::Sender<anyhow::Error>, serving: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = serving.await {
        // Whoever would hear it is going down already.
        let _ = failed.send(error).await;
    }
}

/// What API tokens pin: the own CA, or the last of the certificates that an operator has given.
fn pin(config: &Config, authority: &Authority) -> anyhow::Result<[u8; 32]> {
    let Some(files) = &config.tls else { return Ok(authority.fingerprint()) };
    let unusable = || format!("{} holds no usable certificate", files.certificate.display());
    let chain = CertificateDer::pem_file_iter(&files.certificate).with_context(unusable)?;
    let last = chain.last().with_context(unusable)?.with_context(unusable)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&last).with_context(unusable)?;
    Ok(sha256(parsed.public_key().raw))
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

fn open_bucket(config: &Config, sockets: &Sockets) -> anyhow::Result<Bucket> {
    let options = BucketOptions {
        url_lifetime: limits::URL_LIFETIME,
        serve_url: format!("https://{}", sockets.agents_address.split(',').next().unwrap_or_default()),
        signing_key: signing_key(&config.data_dir.join("bucket.key"))?,
        s3: S3Options {
            endpoint: config.s3.endpoint.clone(),
            region: config.s3.region.clone(),
            credentials_file: config.s3.credentials_file.clone(),
        },
        gcs: GcsOptions {
            endpoint: config.gcs.endpoint.clone(),
            credentials_file: config.gcs.credentials_file.clone(),
        },
        azure: AzureOptions {
            account: config.azure.account.clone(),
            endpoint: config.azure.endpoint.clone(),
            credentials_file: config.azure.credentials_file.clone(),
        },
    };
    let location = config.bucket_location();
    Bucket::open(&location, options).with_context(|| format!("cannot open the bucket {location}"))
}

/// The key that signs URLs of a directory bucket; made at the first start, kept so that a restart voids none.
fn signing_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let damaged = || format!("{} is damaged; remove it to have a new one made", path.display());
            <[u8; 32]>::try_from(bytes.as_slice()).ok().with_context(damaged)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            aws_lc_rs::rand::fill(&mut key).ok().context("the system has no randomness")?;
            write_atomically(path, &key).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What the agents' listener serves beside gRPC: the bytes of a bucket that is a directory, under signed URLs. It lives
/// there because that is the one address that every agent reaches, under a certificate that every agent trusts.
fn bucket_routes(bucket: Bucket) -> Router {
    if !bucket.is_served() {
        return Router::new();
    }
    Router::new().route("/bucket/{*path}", any(serve_bucket)).with_state(bucket)
}

async fn serve_bucket(State(bucket): State<Bucket>, request: Request) -> Response {
    use futures::TryStreamExt as _;
    let (parts, body) = request.into_parts();
    let body: ByteStream = Box::pin(body.into_data_stream().map_err(std::io::Error::other));
    bucket.serve(http::Request::from_parts(parts, body)).await.map(axum::body::Body::from_stream)
}
