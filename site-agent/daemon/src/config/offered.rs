//! What a site offers to work beside CPUs and memory.

use std::collections::BTreeMap;
use std::process::Command;

use super::ConfigError;

/// Amounts by name, in thousandths, of what the administrator says as numbers.
pub(super) fn amounts(said: BTreeMap<String, f64>) -> Result<BTreeMap<String, u32>, ConfigError> {
    let amount = |(name, amount): (String, f64)| {
        if !(0.0..=1e6).contains(&amount) || name.contains(' ') {
            return Err(ConfigError::Amount { name, amount });
        }
        Ok((name, (amount * 1e3).round() as u32))
    };
    said.into_iter().map(amount).collect()
}

/// The kinds of the GPUs that this machine has, by index, if its driver says so.
pub(crate) fn found_gpus() -> Vec<String> {
    let asked = Command::new("nvidia-smi").args(["--query-gpu=name", "--format=csv,noheader"]).output();
    let said = asked.ok().filter(|said| said.status.success()).map(|said| said.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().map(kind).filter(|kind| !kind.is_empty()).collect()
}

/// A name as one word: `NVIDIA A100-SXM4-40GB` is `nvidia-a100-sxm4-40gb`.
fn kind(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_one_word_that_its_parts_are_found_in() {
        assert_eq!(kind("NVIDIA A100-SXM4-40GB"), "nvidia-a100-sxm4-40gb");
        assert_eq!(kind("Tesla V100 (32GB)"), "tesla-v100-32gb");
    }

    #[test]
    fn amounts_are_no_less_than_nothing() {
        let said = |amount| BTreeMap::from([("licences".to_owned(), amount)]);
        assert_eq!(amounts(said(2.5)).expect("valid")["licences"], 2_500);
        assert!(amounts(said(-1.0)).is_err() && amounts(said(f64::NAN)).is_err());
    }
}
