//! What an agent and a worker say to each other. Each connection begins with one frame of the worker that says what it is:
//! the one that they speak over, or that of a slot, which carries what the agent and the slot's shim say and nothing else.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use atoll_model::resources::Capacity;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::shim::protocol::{self, End, Key};

/// Of this protocol.
pub(super) const VERSION: u8 = 2;
/// A slot may hold thousands of ends that an agent has not heard.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// From a worker to its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum ToAgent {
    /// First frame of the connection that both speak over.
    Join(Box<Offer>),
    /// First frame of the connection of a slot.
    Slot {
        instance: u128,
        slot: u32,
    },
    Alive,
    /// No shim lives in the slot any more, nothing that one started, and so its attempts have ended.
    Cleared {
        slot: u32,
        ended: Vec<(Key, End)>,
    },
    /// The worker takes nothing new, and goes when it is told that nothing of the agent's is left there.
    Leaving,
}

/// What a worker brings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// Of this protocol, and of that of shims.
    pub versions: (u8, u8),
    pub name: String,
    /// One process of a worker.
    pub instance: u128,
    pub capacity: Capacity,
    /// The kinds of its GPUs, by index.
    pub gpus: Vec<String>,
    /// Why it cannot keep a step from everything else, if it cannot.
    pub not_strict: Option<String>,
    /// After so long without work it wants to leave.
    pub idle: Option<Duration>,
}

/// From an agent to its worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum ToWorker {
    Welcome(Welcome),
    /// It is not wanted, for this reason; it need not ask again.
    Refused(String),
    /// Start a shim in this slot, set up as this JSON says, and connect it. Ends of these need not be remembered.
    Start {
        slot: u32,
        path: PathBuf,
        setup: String,
        forgotten: Vec<Key>,
    },
    /// Connect the shim of this slot, or say that it is gone.
    Reach {
        slot: u32,
        path: PathBuf,
    },
    Alive,
    /// Nothing of the agent's is left there.
    Farewell,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// Who hears nothing for so long takes the connection for broken.
    pub silence_max: Duration,
}

pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &impl Serialize) -> io::Result<()> {
    let mut bytes = Vec::new();
    protocol::encode(frame, &mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads one frame. Not to be cancelled where the next one is wanted.
pub(super) async fn read<Frame: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let length = stream.read_u32_le().await? as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("a frame would be {length} bytes long")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[tokio::test]
    async fn frames_come_back_in_order_and_an_absurd_one_is_refused() {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        write(&mut near, &ToAgent::Alive).await.unwrap();
        write(&mut near, &ToAgent::Slot { instance: 7, slot: 3 }).await.unwrap();
        near.write_u32_le(u32::MAX).await.unwrap();
        assert_eq!(read::<ToAgent>(&mut far).await.unwrap(), ToAgent::Alive);
        assert_eq!(read::<ToAgent>(&mut far).await.unwrap(), ToAgent::Slot { instance: 7, slot: 3 });
        assert!(read::<ToAgent>(&mut far).await.is_err());
    }
}
