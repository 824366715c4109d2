//! Who is who: the CA of this control plane, the certificates that it issues to itself and to agents, and how TLS is
//! spoken with either.
//!
//! TLS 1.3 only, one provider (aws-lc-rs), X25519MLKEM768 preferred. There is no CRL: certificates of agents live for a
//! day, and what a revoked agent may do is asked for at each call.

mod agent_certificate;
mod authority;
pub(crate) mod key_file;
mod server_certificate;
mod tls;

pub use agent_certificate::{AgentIdentity, IssuedCertificate, SigningRequest, SigningRequestError};
pub use authority::{Authority, AuthorityError};
pub use server_certificate::{ServerCertificate, server_names};
pub use tls::{tls_for_agents, tls_for_people, tls_for_people_with_files};

/// SHA-256, by the one provider.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}
