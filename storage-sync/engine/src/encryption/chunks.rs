//! Sealing a stream as it goes, and opening any range of one as it comes.

use std::fmt;
use std::ops::Range;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::BytesMut;

use super::{CHUNK_BYTES, HEADER_BYTES, Header, ObjectKey, StreamKey, TAG_BYTES, Tampered, chunks, encrypted_bytes};

struct Cipher(LessSafeKey);

impl Cipher {
    fn new(key: &StreamKey) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.secret()).expect("the key has the length of one")))
    }

    /// Seals what `out` ends with, from `start` on.
    fn seal(&self, chunk: u64, last: bool, out: &mut BytesMut, start: usize) {
        let sealed = self.0.seal_in_place_separate_tag(nonce(chunk, last), Aad::empty(), &mut out[start..]);
        // It fails only for more bytes than a chunk has.
        out.extend_from_slice(sealed.expect("a chunk can be sealed").as_ref());
    }

    fn open<'a>(&self, chunk: u64, last: bool, sealed: &'a mut [u8]) -> Result<&'a [u8], Tampered> {
        let opened = self.0.open_in_place(nonce(chunk, last), Aad::empty(), sealed);
        opened.map(|bytes| &*bytes).map_err(|_| Tampered { chunk })
    }
}

/// Used once under a key: each upload has a key of its own, and each of its chunks a number of its own.
fn nonce(chunk: u64, last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 9..NONCE_LEN - 1].copy_from_slice(&chunk.to_be_bytes());
    nonce[NONCE_LEN - 1] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

/// Encrypts a stream from its beginning to its end.
pub(crate) struct Encrypting {
    cipher: Cipher,
    header: Option<Header>,
    chunk: u64,
    /// The beginning of the next chunk: it is sealed when it is known whether another follows.
    open: Vec<u8>,
}

impl fmt::Debug for Encrypting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Encrypting").field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

impl Encrypting {
    pub(crate) fn new(key: &ObjectKey, header: Header) -> Self {
        Self { cipher: Cipher::new(&key.stream_key(&header)), header: Some(header), chunk: 0, open: Vec::new() }
    }

    /// Takes the next bytes, and adds to `out` what of them can be sealed.
    pub(crate) fn push(&mut self, mut bytes: &[u8], out: &mut BytesMut) {
        self.begin(out);
        let chunk_bytes = CHUNK_BYTES as usize;
        while self.open.len() + bytes.len() > chunk_bytes {
            let (taken, rest) = bytes.split_at(chunk_bytes - self.open.len());
            self.seal(taken, false, out);
            bytes = rest;
        }
        self.open.extend_from_slice(bytes);
    }

    /// The stream has ended.
    pub(crate) fn finish(&mut self, out: &mut BytesMut) {
        self.begin(out);
        self.seal(&[], true, out);
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if let Some(header) = self.header.take() {
            out.extend_from_slice(&header.to_bytes());
        }
    }

    fn seal(&mut self, rest: &[u8], last: bool, out: &mut BytesMut) {
        let start = out.len();
        out.extend_from_slice(&self.open);
        out.extend_from_slice(rest);
        self.open.clear();
        self.cipher.seal(self.chunk, last, out, start);
        self.chunk += 1;
    }
}

/// Opens a range of an encrypted stream as the chunks that hold it come.
pub(crate) struct RangeReader {
    cipher: Cipher,
    stream_bytes: u64,
    range: Range<u64>,
    /// The chunk that comes next.
    chunk: u64,
    sealed: Vec<u8>,
}

impl fmt::Debug for RangeReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RangeReader").field("range", &self.range).finish_non_exhaustive()
    }
}

impl RangeReader {
    /// For bytes of a stream of this length. There is none for a range of no bytes.
    pub(crate) fn new(key: &StreamKey, stream_bytes: u64, range: Range<u64>) -> Self {
        assert!(range.start < range.end && range.end <= stream_bytes, "a range lies within its stream");
        Self {
            cipher: Cipher::new(key),
            stream_bytes,
            chunk: range.start / CHUNK_BYTES,
            range,
            sealed: Vec::with_capacity((CHUNK_BYTES + TAG_BYTES) as usize),
        }
    }

    /// Which bytes of the object in the bucket are to be pushed.
    pub(crate) fn encrypted_range(&self) -> Range<u64> {
        let place =
            |chunk: u64| (HEADER_BYTES + chunk * (CHUNK_BYTES + TAG_BYTES)).min(encrypted_bytes(self.stream_bytes));
        place(self.range.start / CHUNK_BYTES)..place(self.range.end.div_ceil(CHUNK_BYTES))
    }

    /// Takes from `bytes` what completes the next chunk; gives what of the range is in it. Nothing when more is needed, or
    /// no more is.
    ///
    /// # Errors
    /// [`Tampered`] when the chunk does not open: nothing of it may be used, or comes out.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<&[u8]>, Tampered> {
        let start = self.chunk * CHUNK_BYTES;
        if start >= self.range.end {
            return Ok(None);
        }
        let length = (self.stream_bytes - start).min(CHUNK_BYTES);
        // What was given out the last time stands there still.
        if self.sealed.len() as u64 == CHUNK_BYTES + TAG_BYTES {
            self.sealed.clear();
        }
        let missing = (length + TAG_BYTES) as usize - self.sealed.len();
        let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
        self.sealed.extend_from_slice(taken);
        *bytes = rest;
        if taken.len() < missing {
            return Ok(None);
        }
        let chunk = self.chunk;
        self.chunk += 1;
        let opened = self.cipher.open(chunk, chunk + 1 == chunks(self.stream_bytes), &mut self.sealed)?;
        let (from, to) = (self.range.start.max(start) - start, self.range.end.min(start + length) - start);
        Ok(Some(&opened[from as usize..to as usize]))
    }
}
