//! What is said between two agents: a length (u32, little-endian), then a message in postcard. The version is in the name
//! of the protocol (ALPN).

use std::time::Duration;

use atoll_model::value::ObjectRef;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::DirectError;
use crate::hash::SEGMENT_BYTES;
use crate::transfer::Filler;

pub(super) const ALPN: &[u8] = b"atoll-direct/1";
const FRAME_BYTES_MAX: usize = 64 << 10;

/// From the reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    /// First on each connection, and whenever the ticket is another. Answered with [`Answer::Granted`].
    Show { ticket: Vec<u8> },
    /// Answered with [`Answer::Described`].
    Describe { object: ObjectRef },
    /// A range of the object's stream. Answered with [`Answer::Bytes`] and the bytes.
    Range { object: ObjectRef, start: u64, end: u64, compress: bool },
    /// What came of the object is not what its name says. The holder looks at its copy, and answers with
    /// [`Answer::Looked`].
    Doubt { object: ObjectRef },
}

/// From the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Granted,
    Described {
        stream_bytes: u64,
    },
    /// So many bytes follow; compressed, they are one frame of Zstandard that holds the whole range.
    Bytes {
        wire_bytes: u64,
        compressed: bool,
    },
    Looked {
        damaged: bool,
    },
    Refused {
        message: String,
    },
}

pub(super) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let body = postcard::to_stdvec(message).expect("a message has an encoding");
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// The next message; nothing at the end of the connection.
pub(super) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map(Some).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

/// The answer to a request, within the time for it.
async fn read_answer(from: &mut (impl AsyncRead + Unpin), stall: Duration) -> Result<Answer, String> {
    match tokio::time::timeout(stall, read::<Answer>(from)).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err("it has closed the connection".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it does not answer for {} seconds", stall.as_secs())),
    }
}

/// Exactly so many bytes.
async fn read_bytes(from: &mut (impl AsyncRead + Unpin), length: usize, stall: Duration) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(length);
    let mut from = from.take(length as u64);
    while bytes.len() < length {
        match tokio::time::timeout(stall, from.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => return Err(format!("it ended after {} of {length} bytes", bytes.len())),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no byte came for {} seconds", stall.as_secs())),
        }
    }
    Ok(bytes)
}

/// The answer to a request, and what of its bytes does not go into `filler`: those that are compressed.
pub(super) async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    filler: Option<&mut Filler>,
    stall: Duration,
) -> Result<(Answer, Vec<u8>), DirectError> {
    let answer = read_answer(from, stall).await.map_err(DirectError::Lost)?;
    let Answer::Bytes { wire_bytes, compressed } = answer else { return Ok((answer, Vec::new())) };
    let Some(filler) = filler.filter(|_| wire_bytes <= SEGMENT_BYTES) else {
        return Err(DirectError::Lost(format!("it wants to send {wire_bytes} bytes at once")));
    };
    if compressed {
        let bytes = read_bytes(from, wire_bytes as usize, stall).await.map_err(DirectError::Lost)?;
        return Ok((answer, bytes));
    }
    if wire_bytes != filler.left() {
        let message = format!("it wants to send {wire_bytes} bytes instead of {}", filler.left());
        return Err(DirectError::Lost(message));
    }
    fill(from, filler, stall).await.map_err(DirectError::Lost)?;
    Ok((answer, Vec::new()))
}

async fn fill(from: &mut (impl AsyncRead + Unpin), filler: &mut Filler, stall: Duration) -> Result<(), String> {
    while filler.left() > 0 {
        let read = match tokio::time::timeout(stall, from.read(filler.room())).await {
            Ok(Ok(0)) => return Err(format!("it ended {} bytes too early", filler.left())),
            Ok(Ok(read)) => read,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no byte came for {} seconds", stall.as_secs())),
        };
        filler.advance(read).await.map_err(|gone| gone.to_string())?;
    }
    Ok(())
}
