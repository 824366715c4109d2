//! What an agent signs to prove that it has its identity key.

/// Label of the keying material that is exported from the TLS connection of a call, without a context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-atoll-identity";

/// A call that carries a proof; one made for one call proves nothing to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityCall {
    Enrol,
    Recover,
    Renew,
}

/// The bytes that are signed: bound to the call, to the TLS connection, and to the key that is to be certified.
pub fn proof_statement(call: IdentityCall, exporter: &[u8; 32], signing_request: &[u8]) -> Vec<u8> {
    let purpose: &[u8] = match call {
        IdentityCall::Enrol => b"atoll-enrol-v1\0",
        IdentityCall::Recover => b"atoll-recover-v1\0",
        IdentityCall::Renew => b"atoll-renew-v1\0",
    };
    [purpose, exporter, signing_request].concat()
}
