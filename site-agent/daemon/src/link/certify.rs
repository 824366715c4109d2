//! New certificates: each for a new TLS key, with a proof of the identity key that is bound to the connection.

use std::time::SystemTime;

use atoll_model::id::TokenId;
use atoll_proto::v1::{self, IdentityProof, RecoverRequest, RenewCertificateRequest};
use atoll_proto::{IdentityCall, proof_statement};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::Identity;
use super::connection::Connection;
use super::identity::IdentityKey;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    #[error("a key or signing request cannot be made")]
    Make(#[from] rcgen::Error),
    #[error("the control plane refuses: {}", .0.message())]
    Refused(tonic::Status),
    #[error("the control plane cannot be asked: {}", .0.message())]
    Unavailable(tonic::Status),
    #[error("the answer of the control plane is not one: {0}")]
    Answer(String),
}

impl From<tonic::Status> for CertifyError {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Refused(status),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unavailable(status),
        }
    }
}

/// A TLS key for which a certificate is asked. While answers get lost it is asked again with the same one.
pub(super) struct Candidate {
    /// PKCS#8.
    key: Zeroizing<Vec<u8>>,
    pub(super) signing_request: Vec<u8>,
}

impl Candidate {
    pub(super) fn make() -> Result<Self, CertifyError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let signing_request = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key: Zeroizing::new(key.serialize_der()), signing_request })
    }

    pub(super) fn proof(&self, call: IdentityCall, key: &IdentityKey, connection: &Connection) -> IdentityProof {
        let statement = proof_statement(call, connection.exporter(), &self.signing_request);
        IdentityProof { public_key: key.public_key().to_vec().into(), signature: key.sign(&statement).into() }
    }

    /// Takes the answer for this key.
    pub(super) fn identity(&self, url: &str, token: TokenId, answer: v1::Identity) -> Result<Identity, CertifyError> {
        let no_answer = |what: &str| CertifyError::Answer(what.to_owned());
        let certificates = |ders: Vec<bytes::Bytes>| ders.into_iter().map(|der| CertificateDer::from(der.to_vec()));
        let identity = Identity {
            agent: answer.agent.ok_or_else(|| no_answer("it names no agent"))?.into(),
            site: answer.site.parse().map_err(|_| no_answer("it names no site"))?,
            url: url.to_owned(),
            token,
            join_counter: answer.join_counter,
            tls_key: self.key.clone(),
            chain: certificates(answer.certificate_chain).collect(),
            ca_bundle: certificates(answer.ca_bundle).collect(),
            issued_at: SystemTime::now(),
            lifetime: Identity::lifetime_of(answer.not_before, answer.not_after),
        };
        if identity.chain.is_empty() || identity.ca_bundle.is_empty() {
            return Err(no_answer("it has no certificate"));
        }
        Ok(identity)
    }
}

/// Asks for the next certificate over a connection that the present one opened.
pub(super) async fn renew(
    present: &Identity,
    key: &IdentityKey,
    candidate: &Candidate,
    connection: &Connection,
) -> Result<Identity, CertifyError> {
    let request = RenewCertificateRequest {
        signing_request: candidate.signing_request.clone().into(),
        proof: Some(candidate.proof(IdentityCall::Renew, key, connection)),
        join_counter: present.join_counter,
    };
    let answer = connection.client().renew_certificate(request).await?.into_inner();
    same_agent(present, candidate.identity(&present.url, present.token, answer)?)
}

/// Asks for a certificate when the present one has expired, on a connection without one.
pub(super) async fn recover(
    present: &Identity,
    key: &IdentityKey,
    candidate: &Candidate,
    connection: &Connection,
) -> Result<Identity, CertifyError> {
    let request = RecoverRequest {
        agent: Some(present.agent.into()),
        signing_request: candidate.signing_request.clone().into(),
        proof: Some(candidate.proof(IdentityCall::Recover, key, connection)),
        join_counter: present.join_counter,
    };
    let answer = connection.client().recover(request).await?.into_inner();
    same_agent(present, candidate.identity(&present.url, present.token, answer)?)
}

fn same_agent(present: &Identity, next: Identity) -> Result<Identity, CertifyError> {
    if next.agent == present.agent && next.site == present.site {
        Ok(next)
    } else {
        Err(CertifyError::Answer("it is for another agent".to_owned()))
    }
}
