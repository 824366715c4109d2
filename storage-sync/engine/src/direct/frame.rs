//! What is said between two agents: a length (u32, little-endian), then a message in postcard. The version is in the name
//! of the protocol (ALPN).

use std::time::Duration;

use atoll_model::value::ObjectRef;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use zstd::stream::raw::{DParameter, Decoder, Operation as _};

use super::DirectError;
use crate::hash::SEGMENT_BYTES;
use crate::transfer::Filler;

pub(super) const ALPN: &[u8] = b"atoll-direct/1";
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Compressed bytes that are unpacked in one go: a moment's work, whatever comes out.
const UNPACKED_AT_ONCE: usize = 64 << 10;
/// The most that a sender may have a reader remember while it unpacks, as a power of two: 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;

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
    /// Instead of [`Answer::Described`]: the holder is itself being given the object, and gives what it has of it.
    Coming {
        stream_bytes: u64,
    },
    /// Not all of what was asked for has come to the holder: to be asked again.
    NotYet,
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

/// The answer to a request; its bytes go into `filler` as they come.
pub(super) async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    filler: Option<&mut Filler>,
    stall: Duration,
) -> Result<Answer, DirectError> {
    let answer = read_answer(from, stall).await.map_err(DirectError::Lost)?;
    let Answer::Bytes { wire_bytes, compressed } = answer else { return Ok(answer) };
    let Some(filler) = filler.filter(|_| wire_bytes <= SEGMENT_BYTES) else {
        return Err(DirectError::Lost(format!("it wants to send {wire_bytes} bytes at once")));
    };
    if compressed {
        unpack(from, wire_bytes as usize, filler, stall).await.map_err(DirectError::Lost)?;
        return Ok(answer);
    }
    if wire_bytes != filler.left() {
        let message = format!("it wants to send {wire_bytes} bytes instead of {}", filler.left());
        return Err(DirectError::Lost(message));
    }
    fill(from, filler, stall).await.map_err(DirectError::Lost)?;
    Ok(answer)
}

/// At least one byte.
async fn read_some(from: &mut (impl AsyncRead + Unpin), to: &mut [u8], stall: Duration) -> Result<usize, String> {
    match tokio::time::timeout(stall, from.read(to)).await {
        Ok(Ok(0)) => Err("it ended too early".to_owned()),
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no byte came for {} seconds", stall.as_secs())),
    }
}

async fn fill(from: &mut (impl AsyncRead + Unpin), filler: &mut Filler, stall: Duration) -> Result<(), String> {
    while filler.left() > 0 {
        let read = read_some(from, filler.room(), stall).await?;
        filler.came(read);
        filler.advance(read).await.map_err(|gone| gone.to_string())?;
    }
    Ok(())
}

/// One frame of Zstandard.
async fn unpack(
    from: &mut (impl AsyncRead + Unpin),
    wire_bytes: usize,
    filler: &mut Filler,
    stall: Duration,
) -> Result<(), String> {
    let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|error| error.to_string())?;
    let mut buffer = vec![0; wire_bytes.min(UNPACKED_AT_ONCE)];
    let mut left = wire_bytes;
    while left > 0 {
        let most = buffer.len().min(left);
        let read = read_some(from, &mut buffer[..most], stall).await?;
        filler.came(read);
        left -= read;
        let mut packed = &buffer[..read];
        loop {
            let room = filler.room();
            let whole = room.len();
            let unpacked = decoder.run_on_buffers(packed, room);
            let status = unpacked.map_err(|error| format!("what it sent cannot be unpacked: {error}"))?;
            packed = &packed[status.bytes_read..];
            if status.bytes_written > 0 {
                filler.advance(status.bytes_written).await.map_err(|gone| gone.to_string())?;
            }
            if packed.is_empty() && status.bytes_written < whole.max(1) {
                break;
            }
            if status.bytes_read == 0 && status.bytes_written == 0 {
                return Err("it sent more than it was asked for".to_owned());
            }
        }
    }
    if filler.left() > 0 {
        return Err(format!("it sent {} bytes too few", filler.left()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write as _;

    use zstd::stream::raw::CParameter;

    use super::*;
    use crate::buffers::Pool;

    const STALL: Duration = Duration::from_secs(5);

    /// What came of an answer that holds `content`, compressed, for a range of `wanted` bytes.
    async fn unpacked(content: &[u8], wanted: usize, cut: usize) -> (Vec<u8>, u64, Result<Answer, DirectError>) {
        received(&zstd::bulk::compress(content, 1).unwrap(), wanted, cut).await
    }

    async fn received(packed: &[u8], wanted: usize, cut: usize) -> (Vec<u8>, u64, Result<Answer, DirectError>) {
        let wire_bytes = packed.len() as u64;
        let mut wire = encode(&Answer::Bytes { wire_bytes, compressed: true });
        wire.extend_from_slice(&packed[..packed.len() - cut]);
        let (mut filler, mut parts) = Filler::new(&Pool::new(1 << 10), wanted as u64, 1 << 10);
        let receiving = async {
            let answer = receive(&mut wire.as_slice(), Some(&mut filler), STALL).await;
            let came = filler.wire_bytes();
            drop(filler);
            (came, answer)
        };
        let taking = async {
            let mut taken = Vec::new();
            while let Some(part) = parts.recv().await {
                taken.extend_from_slice(&part);
            }
            taken
        };
        let ((came, answer), taken) = tokio::join!(receiving, taking);
        (taken, came, answer)
    }

    #[tokio::test]
    async fn what_is_compressed_is_there_part_by_part_as_it_comes() {
        let content: Vec<u8> = (0..20_000u32).flat_map(|number| (number * number / 7).to_le_bytes()).collect();
        let (taken, came, answer) = unpacked(&content, content.len(), 0).await;
        assert!(
            matches!(answer, Ok(Answer::Bytes { compressed: true, wire_bytes }) if wire_bytes == came),
            "{answer:?}"
        );
        assert_eq!(taken, content);

        let zeros = vec![0; 1 << 20];
        assert_eq!(unpacked(&zeros, zeros.len(), 0).await.0, zeros);

        let random: Vec<u8> =
            (0..4_000u32).flat_map(|number| *blake3::hash(&number.to_le_bytes()).as_bytes()).collect();
        let (taken, _, answer) = unpacked(&random, random.len(), 10).await;
        assert!(matches!(answer, Err(DirectError::Lost(_))), "{answer:?}");
        assert!(!taken.is_empty() && random.starts_with(&taken), "what came before the end is of use");
    }

    #[tokio::test]
    async fn what_unpacks_to_another_length_is_not_taken() {
        let content = vec![7; 50_000];
        for wanted in [49_999, 50_001, 1] {
            let (_, _, answer) = unpacked(&content, wanted, 0).await;
            assert!(matches!(answer, Err(DirectError::Lost(_))), "{wanted}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn g9_what_unpacks_to_more_than_was_asked_for_is_given_up_where_that_ends() {
        let (taken, _, answer) = unpacked(&vec![0; 64 << 20], 4_096, 0).await;
        assert!(matches!(answer, Err(DirectError::Lost(_))), "{answer:?}");
        assert_eq!(taken, [0; 4_096], "of 64 MiB no more than what was asked for is there");
    }

    #[tokio::test]
    async fn g9_what_wants_more_than_8_mib_of_memory_to_be_unpacked_is_refused() {
        let packed = |window_log| {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
            encoder.write_all(&[7; 4_096]).unwrap();
            encoder.finish().unwrap()
        };
        let whole = received(&packed(WINDOW_LOG_MAX), 4_096, 0).await;
        assert_eq!((whole.0.len(), whole.2.is_ok()), (4_096, true));
        let refused = received(&packed(WINDOW_LOG_MAX + 1), 4_096, 0).await;
        assert!(matches!(refused.2, Err(DirectError::Lost(_))), "{:?}", refused.2);
        assert_eq!(refused.0, [0; 0]);
    }
}
