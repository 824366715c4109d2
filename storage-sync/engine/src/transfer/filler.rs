//! A range on its way to whoever takes it in: cut into parts, each of which goes on as soon as it is whole.

use tokio::sync::mpsc;

use crate::buffers::{Buffer, Pool};

/// Parts that wait for whoever takes them in: as many as come while a disk takes breath.
const AHEAD: usize = 2;

/// Is filled in the order of the stream, by one connection after the other if need be.
#[derive(Debug)]
pub(crate) struct Filler {
    pool: Pool,
    to: mpsc::Sender<Buffer>,
    part_bytes: usize,
    current: Option<Buffer>,
    filled: usize,
    /// Bytes that are still to come.
    left: u64,
    wire_bytes: u64,
}

/// Nobody takes in what comes.
#[derive(Debug, thiserror::Error)]
#[error("nobody takes in what comes")]
pub(crate) struct Abandoned;

impl Filler {
    /// For `bytes` bytes in parts of `part_bytes`, the last of which may be shorter.
    pub(crate) fn new(pool: &Pool, bytes: u64, part_bytes: usize) -> (Self, mpsc::Receiver<Buffer>) {
        let (to, parts) = mpsc::channel(AHEAD);
        (Self { pool: pool.clone(), to, part_bytes, current: None, filled: 0, left: bytes, wire_bytes: 0 }, parts)
    }

    /// Bytes that came over the wire for it so far: fewer than it has, if they were compressed.
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// So many bytes came over the wire, of use or not.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.wire_bytes += bytes as u64;
    }

    /// Bytes that are still to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Where the next bytes go; empty if none are to come.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let whole = (self.left as usize).saturating_add(self.filled).min(self.part_bytes);
        let current = self.current.get_or_insert_with(|| self.pool.take(whole));
        &mut current[self.filled..]
    }

    /// So many bytes were put there.
    pub(crate) async fn advance(&mut self, bytes: usize) -> Result<(), Abandoned> {
        self.filled += bytes;
        self.left -= bytes as u64;
        if self.current.as_ref().is_some_and(|current| current.len() == self.filled)
            && let Some(part) = self.current.take()
        {
            self.filled = 0;
            return self.to.send(part).await.map_err(|_| Abandoned);
        }
        Ok(())
    }

    /// Copies bytes that came elsewhere; what is too much of them is left out.
    pub(crate) async fn put(&mut self, mut bytes: &[u8]) -> Result<(), Abandoned> {
        while !bytes.is_empty() && self.left > 0 {
            let room = self.room();
            let (taken, rest) = bytes.split_at(room.len().min(bytes.len()));
            room[..taken.len()].copy_from_slice(taken);
            bytes = rest;
            self.advance(taken.len()).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn a_range_comes_out_in_parts_and_in_order_however_it_came_in() {
        let bytes: Vec<u8> = (0..100u8).collect();
        for step in [1, 7, 16, 33, 100] {
            let (mut filler, mut parts) = Filler::new(&Pool::new(16), 90, 16);
            let filling = async {
                for piece in bytes.chunks(step) {
                    filler.put(piece).await.unwrap();
                }
                let left = filler.left();
                drop(filler);
                left
            };
            let taking = async {
                let mut taken = Vec::new();
                while let Some(part) = parts.recv().await {
                    taken.push(part.to_vec());
                }
                taken
            };
            let (left, taken) = tokio::join!(filling, taking);
            assert_eq!(left, 0);
            assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16, 16, 16, 16, 10]);
            assert_eq!(taken.concat(), bytes[..90]);
        }
    }
}
