//! Redeeming a join token.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_proto::v1::{self, EnrolRequest};
use atoll_proto::{IdentityCall, InvalidJoinToken, JoinToken};
use rustls::ClientConfig;

use super::certify::{Candidate, CertifyError};
use super::connection::{ConnectError, Connection};
use super::identity::IdentityKey;
use super::run::Held;
use super::servers::{Pause, Servers};
use super::{Identity, IdentityError, tls};

/// How long a server is waited for that is about to lead.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why no agent has joined.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error(transparent)]
    Token(#[from] InvalidJoinToken),
    #[error(
        "this data directory belongs to {agent} of the site {site} already; use another one, or remove it after revoking the site"
    )]
    OtherAgent { agent: atoll_model::id::AgentId, site: atoll_model::id::SiteName },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Certify(#[from] CertifyError),
}

/// Redeems a join token: makes the agent's keys in `directory`, has its certificate issued, and stores both. Repeated with
/// the same token and directory it does nothing once it has succeeded, and the same again while it has not.
///
/// # Errors
/// When the token is not one, used by another, or expired; when the server cannot be reached or is not the one that the
/// token pins; when the directory belongs to another agent.
pub async fn enrol(directory: &Path, token: &str) -> Result<Identity, EnrolError> {
    let token = token.parse::<JoinToken>()?;
    match Identity::load(directory) {
        Ok(present) if present.token == token.token => return Ok(present),
        Ok(Identity { agent, site, .. }) => return Err(EnrolError::OtherAgent { agent, site }),
        Err(IdentityError::NotJoined(_)) => {}
        Err(error @ (IdentityError::File { .. } | IdentityError::Damaged { .. } | IdentityError::Key)) => {
            return Err(error.into());
        }
    }
    let key = IdentityKey::find_or_make(directory)?;
    let config = tls::with_pin(token.ca_sha256).map_err(ConnectError::from)?;
    let candidate = Candidate::make()?;
    let mut servers = Servers::of(&token.url);
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        let error = match redeem(servers.current(), &token, &key, &candidate, &config).await {
            Ok(answer) => break answer,
            Err(error) => error,
        };
        let status = match &error {
            EnrolError::Certify(CertifyError::Unavailable(status)) => Some(status),
            EnrolError::Connect(_) => None,
            EnrolError::Certify(_) | EnrolError::Token(_) | EnrolError::OtherAgent { .. } | EnrolError::Identity(_) => {
                return Err(error);
            }
        };
        match servers.failed(status) {
            Pause::Nothing => {}
            Pause::Short(wait) if Instant::now() < deadline => tokio::time::sleep(wait).await,
            Pause::Short(_) | Pause::BackOff => return Err(error),
        }
    };
    let identity = candidate.identity(&token.url, token.token, answer)?;
    identity.store(directory)?;
    Ok(identity)
}

async fn redeem(
    url: &str,
    token: &JoinToken,
    key: &IdentityKey,
    candidate: &Candidate,
    config: &Arc<ClientConfig>,
) -> Result<v1::Identity, EnrolError> {
    let connection = Connection::open(url, Arc::clone(config)).await?;
    Ok(redeem_over(&connection, token, key, candidate).await?)
}

async fn redeem_over(
    connection: &Connection,
    token: &JoinToken,
    key: &IdentityKey,
    candidate: &Candidate,
) -> Result<v1::Identity, CertifyError> {
    let request = EnrolRequest {
        token: Some(token.token.into()),
        secret: token.secret.to_vec().into(),
        signing_request: candidate.signing_request.clone().into(),
        proof: Some(candidate.proof(IdentityCall::Enrol, key, connection)),
        host: sysinfo::System::host_name().unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(connection.client().enrol(request).await?.into_inner())
}

/// Redeems many tokens of one control plane over one connection, and writes nothing down.
#[derive(Debug)]
pub(crate) struct Registrar {
    connection: Connection,
    pin: [u8; 32],
}

impl Registrar {
    /// # Errors
    /// When the server that the token names cannot be reached, or is not the one that it pins.
    pub(crate) async fn open(token: &JoinToken) -> Result<Self, ConnectError> {
        let config = tls::with_pin(token.ca_sha256)?;
        let url = token.url.split(',').next().unwrap_or_default();
        Ok(Self { connection: Connection::open(url, config).await?, pin: token.ca_sha256 })
    }

    /// # Errors
    /// When the server refuses, or cannot be asked.
    pub(crate) async fn join(&self, token: &JoinToken) -> Result<Held, EnrolError> {
        if token.ca_sha256 != self.pin {
            return Err(ConnectError::WrongAuthority { url: token.url.clone() }.into());
        }
        let (key, candidate) = (IdentityKey::make()?, Candidate::make()?);
        let answer = redeem_over(&self.connection, token, &key, &candidate).await?;
        let identity = candidate.identity(&token.url, token.token, answer)?;
        Ok(Held { identity, key, directory: None })
    }
}
