//! Digests of values that are compared, and never kept as values.

use serde::Serialize;

/// Digests one value after the other; the same values in the same order give the same digest, and no others do.
#[derive(Debug, Clone)]
pub struct Digester(blake3::Hasher);

impl Digester {
    /// For one purpose, which a text names that nothing else uses.
    pub fn new(purpose: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(purpose))
    }

    /// Nothing if the value cannot be encoded; then there is no digest of it.
    pub fn add(&mut self, value: &impl Serialize) -> Option<()> {
        let encoded = postcard::to_stdvec(value).ok()?;
        self.0.update(&(encoded.len() as u64).to_le_bytes());
        self.0.update(&encoded);
        Some(())
    }

    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_split_otherwise_is_something_else() {
        let digest = |texts: &[&str]| {
            let mut digester = Digester::new("test");
            texts.iter().for_each(|text| digester.add(text).expect("a text can be encoded"));
            digester.finish()
        };
        assert_eq!(digest(&["ab", "c"]), digest(&["ab", "c"]));
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(Digester::new("one").finish(), Digester::new("other").finish());
    }
}
