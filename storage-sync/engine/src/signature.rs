//! Makes and verifies the signatures that people give to bundles.

use atoll_model::action::{BundleSignature, PublicKey};
use atoll_model::id::ObjectId;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// A key that signs bundles.
pub struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SigningKey({})", self.public_key())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("no key can be made: the system has no randomness")]
    Randomness,
    #[error("this is no Ed25519 key in PKCS#8: {0}")]
    NoKey(String),
}

impl SigningKey {
    /// A new key in PKCS#8 (DER), which is a secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate_pkcs8() -> Result<Vec<u8>, KeyError> {
        let key = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| KeyError::Randomness)?;
        Ok(key.as_ref().to_vec())
    }

    /// # Errors
    /// When these bytes are no such key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_pkcs8(der).map(Self).map_err(|error| KeyError::NoKey(error.to_string()))
    }

    pub fn public_key(&self) -> PublicKey {
        let bytes = self.0.public_key().as_ref();
        PublicKey::from_bytes(bytes.try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    pub fn sign(&self, bundle: ObjectId) -> BundleSignature {
        let signature = self.0.sign(&BundleSignature::statement(bundle));
        BundleSignature::from_bytes(self.public_key(), signature.as_ref()).expect("an Ed25519 signature has 64 bytes")
    }
}

/// Whether the holder of the signature's key has signed this bundle.
pub fn is_valid(signature: &BundleSignature, bundle: ObjectId) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, signature.key.bytes());
    key.verify(&BundleSignature::statement(bundle), &signature.bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().expect("randomness")).expect("a key")
    }

    #[test]
    fn a_signature_holds_for_one_bundle_and_one_key() {
        let (bundle, other) = (ObjectId::from_digest([1; 32]), ObjectId::from_digest([2; 32]));
        let signature = key().sign(bundle);
        assert!(is_valid(&signature, bundle));
        assert!(!is_valid(&signature, other));
        let claimed = BundleSignature::from_bytes(key().public_key(), &signature.bytes()).expect("64 bytes");
        assert!(!is_valid(&claimed, bundle), "another key says so");
        let mut bytes = signature.bytes();
        bytes[40] ^= 1;
        let changed = BundleSignature::from_bytes(signature.key, &bytes).expect("64 bytes");
        assert!(!is_valid(&changed, bundle));
    }

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        assert!(matches!(SigningKey::from_pkcs8(b"no key"), Err(KeyError::NoKey(_))));
    }
}
