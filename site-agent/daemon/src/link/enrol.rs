//! Redeeming a join token.

use std::path::Path;

use atoll_proto::v1::EnrolRequest;
use atoll_proto::{IdentityCall, InvalidJoinToken, JoinToken};

use super::certify::{Candidate, CertifyError};
use super::connection::{ConnectError, Connection};
use super::identity::IdentityKey;
use super::{Identity, IdentityError, tls};

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
    let connection = Connection::open(&token.url, config).await?;
    let candidate = Candidate::make()?;
    let request = EnrolRequest {
        token: Some(token.token.into()),
        secret: token.secret.to_vec().into(),
        signing_request: candidate.signing_request.clone().into(),
        proof: Some(candidate.proof(IdentityCall::Enrol, &key, &connection)),
        host: sysinfo::System::host_name().unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = connection.client().enrol(request).await.map_err(CertifyError::from)?.into_inner();
    let identity = candidate.identity(&token.url, token.token, answer)?;
    identity.store(directory)?;
    Ok(identity)
}
