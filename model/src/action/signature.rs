//! Who vouches for a bundle: Ed25519 signatures over its digest. What makes and verifies them is elsewhere.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::id::ObjectId;

/// A public key, as `ed25519:` and its bytes in base64url.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey([u8; 32]);

const PREFIX: &str = "ed25519:";

impl PublicKey {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A text is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no public key: `atoll action key show FILE` prints one (ed25519:…)")]
pub struct ParseKeyError(String);

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let bytes = text.strip_prefix(PREFIX).and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok());
        let key = bytes.and_then(|bytes| bytes.try_into().ok());
        key.map(Self).ok_or_else(|| ParseKeyError(text.to_owned()))
    }
}

/// The two halves of a signature, R and S of RFC 8032, and the key that it is to be verified with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BundleSignature {
    pub key: PublicKey,
    r: [u8; 32],
    s: [u8; 32],
}

impl BundleSignature {
    /// Nothing if these are not as many bytes as a signature has.
    pub fn from_bytes(key: PublicKey, bytes: &[u8]) -> Option<Self> {
        let (r, s) = bytes.split_first_chunk()?;
        Some(Self { key, r: *r, s: s.try_into().ok()? })
    }

    pub fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.r);
        bytes[32..].copy_from_slice(&self.s);
        bytes
    }

    /// What is signed: nothing else that a key may sign begins so.
    pub fn statement(bundle: ObjectId) -> Vec<u8> {
        [b"atoll action bundle 1\n".as_slice(), bundle.digest()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_and_read() {
        let key = PublicKey::from_bytes([7; 32]);
        assert_eq!(key.to_string(), "ed25519:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "ed25519:", "ed25519:BwcH", "rsa:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_signature_has_sixty_four_bytes() {
        let key = PublicKey::from_bytes([1; 32]);
        let bytes: [u8; 64] = std::array::from_fn(|place| place as u8);
        assert_eq!(BundleSignature::from_bytes(key, &bytes).map(|signature| signature.bytes()), Some(bytes));
        assert_eq!(BundleSignature::from_bytes(key, &bytes[1..]), None);
        assert_eq!(BundleSignature::from_bytes(key, &[0; 65]), None);
    }
}
