//! Certificates for agents: the first one for a join token, the next for a present certificate, or for a known key.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use atoll_model::id::{AgentId, SiteName, TokenId};
use atoll_proto::v1::{EnrolRequest, Identity, IdentityProof, RecoverRequest, RenewCertificateRequest};
use atoll_proto::{IdentityCall, proof_statement, required};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use control_plane_core::{Request, Response};
use tonic::Status;

use super::Agents;
use super::peer::Peer;
use super::status::{of_rejection, of_wire_error};
use crate::identity::{SigningRequest, sha256};

/// Whom to certify, as the core said.
struct Subject {
    agent: AgentId,
    site: SiteName,
    join_counter: u64,
}

impl Agents {
    /// Redeems a join token. The signing request is looked at first: one that is no good uses no token up.
    pub(super) async fn enrol(&self, peer: &Peer, request: EnrolRequest) -> Result<Identity, Status> {
        self.admit(peer)?;
        let token: TokenId = required(request.token, "token").map_err(|error| of_wire_error(&error))?.into();
        if request.secret.len() != 32 {
            return Err(Status::invalid_argument("the secret of a join token has 32 bytes"));
        }
        let signing_request = verify_request(&request.signing_request)?;
        let identity_key = verify_proof(IdentityCall::Enrol, peer, request.proof, &request.signing_request)?;
        let body = Request::Enrol {
            token,
            secret_hash: sha256(&request.secret),
            identity_key,
            agent: AgentId::from_bits(uuid::Uuid::now_v7().as_u128()),
        };
        let response = self.0.handle.request(body).await.map_err(|rejection| {
            tracing::warn!(%token, remote = %peer.remote(), reason = %rejection, "a join token was refused");
            of_rejection(rejection)
        })?;
        let subject = subject(response)?;
        let (agent, site) = (subject.agent, &subject.site);
        tracing::info!(
            %token, %agent, %site, remote = %peer.remote(), host = request.host, version = request.agent_version,
            "an agent has joined"
        );
        self.issue(&subject, identity_key, &signing_request)
    }

    /// Certifies an agent whose certificate has expired, for the key that it enrolled with.
    pub(super) async fn recover(&self, peer: &Peer, request: RecoverRequest) -> Result<Identity, Status> {
        self.admit(peer)?;
        let agent = required(request.agent, "agent").map_err(|error| of_wire_error(&error))?.into();
        let signing_request = verify_request(&request.signing_request)?;
        let identity_key = verify_proof(IdentityCall::Recover, peer, request.proof, &request.signing_request)?;
        let body = Request::RecoverIdentity { agent, identity_key, join_counter: request.join_counter };
        let response = self.0.handle.request(body).await.map_err(|rejection| {
            tracing::warn!(%agent, remote = %peer.remote(), reason = %rejection, "a recovery was refused");
            of_rejection(rejection)
        })?;
        let subject = subject(response)?;
        tracing::info!(%agent, site = %subject.site, remote = %peer.remote(), "an agent has recovered its identity");
        self.issue(&subject, identity_key, &signing_request)
    }

    /// Certifies an agent anew, for itself only: the certificate of the connection says who, and the proof must be of
    /// the identity key that this certificate carries.
    pub(super) async fn renew(&self, peer: &Peer, request: RenewCertificateRequest) -> Result<Identity, Status> {
        let (identity, _) = peer.agent()?;
        let signing_request = verify_request(&request.signing_request)?;
        let identity_key = verify_proof(IdentityCall::Renew, peer, request.proof, &request.signing_request)?;
        if identity_key != identity.identity_key {
            tracing::warn!(agent = %identity.agent, remote = %peer.remote(), "a renewal with another identity key");
            return Err(Status::permission_denied("the proof is not of the identity key that the certificate names"));
        }
        let body = Request::RenewCertificate { agent: identity.agent, join_counter: request.join_counter };
        let response = self.0.handle.request(body).await.map_err(|rejection| {
            tracing::warn!(agent = %identity.agent, reason = %rejection, "a renewal was refused");
            of_rejection(rejection)
        })?;
        self.issue(&subject(response)?, identity_key, &signing_request)
    }

    fn admit(&self, peer: &Peer) -> Result<(), Status> {
        if self.0.enrolments.admits(peer.remote().ip(), Instant::now()) {
            Ok(())
        } else {
            Err(Status::resource_exhausted("too many attempts from this address; try again in a minute"))
        }
    }

    fn issue(&self, subject: &Subject, identity_key: [u8; 32], request: &SigningRequest) -> Result<Identity, Status> {
        let Subject { agent, site, join_counter } = subject;
        let (now, lifetime) = (SystemTime::now(), self.0.settings.certificate_lifetime);
        let authority = &self.0.authority;
        let issued = authority.certify_agent(*agent, site, identity_key, request, now, lifetime).map_err(|error| {
            tracing::error!(%agent, error = ?error, "a certificate could not be issued");
            Status::internal("the certificate could not be issued; the server's log says why")
        })?;
        Ok(Identity {
            agent: Some((*agent).into()),
            site: site.to_string(),
            certificate_chain: issued.chain.iter().map(|der| der.to_vec().into()).collect(),
            ca_bundle: vec![authority.certificate().to_vec().into()],
            join_counter: *join_counter,
            not_before: micros(issued.not_before),
            not_after: micros(issued.not_after),
        })
    }
}

fn subject(response: Response) -> Result<Subject, Status> {
    match response {
        Response::Enrolled { agent, site, join_counter } | Response::Certify { agent, site, join_counter } => {
            Ok(Subject { agent, site, join_counter })
        }
        Response::Submitted { .. }
        | Response::Authorised { .. }
        | Response::Offered { .. }
        | Response::Staged { .. }
        | Response::ProjectKey { .. }
        | Response::Emitted { .. }
        | Response::Done => Err(Status::internal("the answer does not fit the request")),
    }
}

fn verify_request(der: &[u8]) -> Result<SigningRequest, Status> {
    SigningRequest::verify(der).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// SHA-256 of the identity key that signed for this call, this connection and this request.
fn verify_proof(
    call: IdentityCall,
    peer: &Peer,
    proof: Option<IdentityProof>,
    signing_request: &[u8],
) -> Result<[u8; 32], Status> {
    let proof = required(proof, "proof").map_err(|error| of_wire_error(&error))?;
    let statement = proof_statement(call, peer.exporter(), signing_request);
    UnparsedPublicKey::new(&ED25519, &proof.public_key)
        .verify(&statement, &proof.signature)
        .map_err(|_| Status::unauthenticated("the proof of the identity key is not valid on this connection"))?;
    Ok(sha256(&proof.public_key))
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
