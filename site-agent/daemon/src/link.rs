//! The link to the control plane: who this agent is, one connection with its certificate, the session on it, URLs and logs
//! beside it.
//!
//! The agent opens every connection. It speaks only with a server that the CA of its join token vouches for, and sends
//! nothing before that is verified.

mod backoff;
mod bulk;
mod certify;
mod connection;
mod credentials;
mod enrol;
mod identity;
mod inspect;
mod run;
mod servers;
mod signatures;
mod tls;

pub use bulk::{LogRequest, LogSource};
pub use certify::CertifyError;
pub use connection::ConnectError;
pub(crate) use connection::{CONNECT_TIMEOUT, says_expired};
pub use credentials::LinkCredentials;
pub(crate) use enrol::Registrar;
pub use enrol::{EnrolError, enrol};
pub use identity::{Identity, IdentityError};
pub(crate) use inspect::{CertificateFault, Expected, Inspection, RoundTrip, certificate_fault};
pub(crate) use run::Held;
pub use run::{Link, LinkEnd, LinkEvent, LinkHandle, LinkOptions};
pub(crate) use servers::urls;
pub use tls::http_client;

/// SHA-256, by the one provider.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}
