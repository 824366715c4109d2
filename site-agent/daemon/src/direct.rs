//! Objects that go from this site straight to others, and come from them: who may have what, and where they ask.

use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use atoll_model::id::{AgentId, SiteName};
use atoll_model::value::ObjectRef;
use site_agent_core::Event;
use storage_sync_engine::direct::{AgentTls, Dialer, DirectConfig, Host, Listening, Serving, listen};
use storage_sync_engine::transfer::Transfers;
use tokio_util::sync::CancellationToken;

use crate::IDENTITY;
use crate::config::Config;
use crate::driver::Inbox;
use crate::link::{Identity, LinkCredentials};
use crate::telemetry::Meters;
use crate::withheld::Withheld;

/// Before an answer that did not come is asked for again.
const ADVERTISE_AGAIN: Duration = Duration::from_secs(10);

/// What the agent shows other agents.
#[derive(Debug, Clone)]
pub(crate) struct Direct {
    agent: AgentId,
    tls: AgentTls,
    dialer: Dialer,
    /// Where the identity is, which changes with each renewal.
    directory: PathBuf,
}

impl Direct {
    /// # Errors
    /// When the identity is of no use for TLS.
    pub(crate) fn new(identity: &Identity, data_dir: &Path) -> anyhow::Result<Self> {
        let (chain, key, roots) = identity.tls_parts();
        let tls = AgentTls::new(chain, key, &roots)?;
        let dialer = Dialer::new(tls.clone(), DirectConfig::default(), Some(data_dir.join("links.json")));
        Ok(Self { agent: identity.agent, tls, dialer, directory: data_dir.join(IDENTITY) })
    }

    pub(crate) fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// Listens, if the site's administrator wants that, and says where; until `stopping`.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn start(
        &self,
        config: &Config,
        transfers: &Transfers,
        inbox: &Inbox,
        meters: &Arc<Meters>,
        withheld: &Withheld,
    ) -> anyhow::Result<Option<Listening>> {
        let Some(address) = config.direct_listen else { return Ok(None) };
        let gate = Gate {
            to: config.direct_to.clone(),
            inbox: Mutex::new(inbox.clone()),
            meters: Arc::clone(meters),
            withheld: withheld.clone(),
        };
        let (store, incoming) = (transfers.store().clone(), transfers.incoming());
        let (tls, rate) = (self.tls.clone(), config.link_rate());
        let serving = Serving::relaying(store, self.agent, tls, Arc::new(gate), rate, incoming);
        let listening = listen(serving, address).await.context("other agents cannot be listened for")?;
        tracing::info!(address = %listening.address, "other agents may ask here for objects");
        Ok(Some(listening))
    }

    /// Tells each control plane that the agent connects to where it listens, and takes new certificates into use, which
    /// come with a new connection.
    pub(crate) async fn advertise(
        self,
        credentials: LinkCredentials,
        listening: Option<SocketAddr>,
        config: Config,
        stopping: CancellationToken,
    ) {
        let advertising = async {
            let mut connections = credentials.connections();
            while connections.connected().await {
                self.renew();
                let addresses = listening.map_or_else(Vec::new, |bound| self.addresses(bound, &config));
                match credentials.advertise(&addresses).await {
                    Ok(()) => connections.changed().await,
                    Err(error) => {
                        tracing::debug!(%error, "the control plane does not hear where this agent listens");
                        tokio::time::sleep(ADVERTISE_AGAIN).await;
                    }
                }
            }
        };
        stopping.run_until_cancelled(advertising).await;
    }

    fn renew(&self) {
        let renewed = Identity::load(&self.directory).map_err(anyhow::Error::from).and_then(|identity| {
            let (chain, key, roots) = identity.tls_parts();
            self.tls.replace(chain, key, &roots).map_err(anyhow::Error::from)
        });
        if let Err(error) = renewed {
            tracing::warn!(error = format!("{error:#}"), "other agents are shown the certificate of before");
        }
    }

    /// Where others may reach what listens at `bound`: as the administrator says, else by the address that this machine
    /// has towards the control plane.
    fn addresses(&self, bound: SocketAddr, config: &Config) -> Vec<SocketAddr> {
        if !config.direct_addresses.is_empty() {
            return config.direct_addresses.clone();
        }
        if !bound.ip().is_unspecified() {
            return vec![bound];
        }
        let server = Identity::load(&self.directory).ok().map(|identity| identity.url);
        let server = config.server.clone().or(server).unwrap_or_default();
        let first = server.split(',').next().unwrap_or_default().trim_start_matches("https://").to_owned();
        let own = first.to_socket_addrs().ok().into_iter().flatten().find_map(|server| {
            let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
            // Nothing is sent: the system only says from which address it would be.
            let socket = UdpSocket::bind(any).ok()?;
            socket.connect(server).ok()?;
            socket.local_addr().ok()
        });
        own.map(|own| SocketAddr::new(own.ip(), bound.port())).into_iter().collect()
    }
}

/// What the site's administrator says about objects that leave, whatever the control plane says.
struct Gate {
    to: Option<Vec<SiteName>>,
    inbox: Mutex<Inbox>,
    meters: Arc<Meters>,
    withheld: Withheld,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gate").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Host for Gate {
    fn admit(&self, to: &SiteName, object: ObjectRef) -> Result<(), String> {
        if let Some(reason) = self.withheld.object_to(object.id, to.as_str()) {
            return Err(reason);
        }
        match &self.to {
            Some(sites) if !sites.contains(to) => {
                Err(format!("the configuration of this site's agent (direct_to) does not name {to}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn damaged(&self, object: ObjectRef, message: &str) {
        let damaged = Event::Damaged { object: object.id, kind: object.kind, message: message.to_owned() };
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).tell(vec![damaged]);
    }

    fn sent(&self, _: AgentId, _: ObjectRef, wire_bytes: u64) {
        self.meters.given_bytes.inc_by(wire_bytes);
    }
}
