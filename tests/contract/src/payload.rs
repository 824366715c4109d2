//! Batches and checkpoints that say what they are, so that a wrong one is known by itself.

use anyhow::{Result, ensure};

use crate::random::Random;

const HEADER_BYTES: usize = 25;

/// What a payload claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub kind: Kind,
    /// The process that wrote it.
    pub run: u64,
    /// The batch, or the last batch that a checkpoint stands for.
    pub seq: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Batch,
    Checkpoint,
}

impl Kind {
    fn letter(self) -> u8 {
        match self {
            Self::Batch => b'B',
            Self::Checkpoint => b'C',
        }
    }
}

pub fn make(claim: Claim, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + length];
    bytes[0] = claim.kind.letter();
    bytes[1..9].copy_from_slice(&claim.run.to_be_bytes());
    bytes[9..17].copy_from_slice(&claim.seq.to_be_bytes());
    bytes[17..25].copy_from_slice(&(length as u64).to_be_bytes());
    Random::new(claim.run ^ claim.seq.rotate_left(32)).fill(&mut bytes[HEADER_BYTES..]);
    bytes
}

/// Checks every byte, and returns the run that wrote it.
///
/// # Errors
/// If it is anything but what [`make`] makes for `kind` and `seq`.
pub fn check(bytes: &[u8], kind: Kind, seq: u64) -> Result<u64> {
    ensure!(bytes.len() >= HEADER_BYTES, "{kind:?} {seq} has {} bytes", bytes.len());
    let run = u64::from_be_bytes(bytes[1..9].try_into()?);
    let claim = Claim { kind, run, seq };
    ensure!(bytes == make(claim, bytes.len() - HEADER_BYTES), "{kind:?} {seq} is not what was written");
    Ok(run)
}
