//! Ids. Each prints its kind, and parses only from a text of that kind. Shells mint them; cores never do.

mod encoding;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A text that is not the id it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseIdError {
    pub text: String,
    pub expected: &'static str,
}

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ENCODED_LENGTH: usize = 26;

/// Crockford's base 32 of 128 bits, most significant digit first, so that the text sorts as the number does.
fn encode(bits: u128) -> String {
    (0..ENCODED_LENGTH).rev().map(|digit| char::from(ALPHABET[((bits >> (digit * 5)) & 31) as usize])).collect()
}

fn decode(text: &str) -> Option<u128> {
    if text.len() != ENCODED_LENGTH || text.as_bytes()[0] > b'7' {
        return None;
    }
    text.bytes().try_fold(0u128, |bits, byte| {
        let digit = ALPHABET.iter().position(|known| *known == byte)?;
        Some((bits << 5) | digit as u128)
    })
}

macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    u128::deserialize(deserializer).map(Self)
                }
            }
        }

        impl $name {
            /// Takes 128 bits that a shell made unique (a UUID of version 7 or 4).
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($prefix, "_{}"), encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, formatter)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or_else(|| ParseIdError { text: text.to_owned(), expected: $expected })
            }
        }
    };
}

wide_id!(
    /// One traversal of a workflow.
    RunId, "run", "the id of a run (run_…)"
);
wide_id!(
    /// The process that speaks for a site, as its certificate names it.
    AgentId, "agent", "the id of an agent (agent_…)"
);
wide_id!(
    /// One life of a journal: a new one is made with each journal that is created or rebuilt.
    JournalId, "journal", "the id of a journal (journal_…)"
);
wide_id!(
    /// A join token; the public half of what an administrator hands to a site.
    TokenId, "token", "the id of a token (token_…)"
);
wide_id!(
    /// Bytes on their way into the bucket.
    TransferId, "transfer", "the id of a transfer (transfer_…)"
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $number:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $number);

        impl $name {
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }
    };
}

counter!(
    /// Fencing number of a session: one more for each session the control plane accepts from any agent of a site.
    Epoch, u64
);
counter!(
    /// Position of a command in the log of commands to one agent; contiguous, from 1.
    CommandSeq, u64
);
counter!(
    /// Position of a report in the outbox of one agent journal; contiguous, from 1.
    ReportSeq, u64
);
counter!(
    /// Fencing number of a try at an execution, from 1.
    Attempt, u32
);
counter!(
    /// A step's place in its workflow, from 0.
    StepIndex, u16
);
counter!(
    /// A site's number within one control plane, from 1; never given twice.
    SiteId, u32
);

impl Attempt {
    pub const FIRST: Self = Self(1);
}

impl StepIndex {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One step of one run, or one element of it if the step fans out (element 0 if it does not).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExecutionId {
    pub run: RunId,
    pub step: StepIndex,
    pub element: u32,
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "exec_{}-{}-{}", encode(self.run.0), self.step, self.element)
    }
}

impl fmt::Debug for ExecutionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for ExecutionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parse = || {
            let mut parts = text.strip_prefix("exec_")?.split('-');
            let run = RunId(decode(parts.next()?)?);
            let step = StepIndex(parts.next()?.parse().ok()?);
            let element = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(Self { run, step, element })
        };
        parse().ok_or_else(|| ParseIdError { text: text.to_owned(), expected: "the id of an execution (exec_…)" })
    }
}

/// The name of a site: 1 to 63 of `a`–`z`, `0`–`9` and `-`, beginning with a letter, ending with no `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SiteName(Arc<str>);

impl SiteName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SiteName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let valid = (1..=63).contains(&text.len())
            && text.as_bytes()[0].is_ascii_lowercase()
            && !text.ends_with('-')
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if valid {
            Ok(Self(Arc::from(text)))
        } else {
            Err(ParseIdError {
                text: text.to_owned(),
                expected: "a site name (a to z, 0 to 9 and -, beginning with a letter, at most 63 characters)",
            })
        }
    }
}

impl TryFrom<String> for SiteName {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<SiteName> for String {
    fn from(name: SiteName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for SiteName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for SiteName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// The name of immutable bytes: the BLAKE3 digest of a file, or of a tree's manifest under a context of its own, so that
/// a file is never mistaken for a manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 32]);

impl ObjectId {
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the prefix.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "b3:{}", self.hex())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for ObjectId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let parse = || {
            let hex = text.strip_prefix("b3:")?;
            if hex.len() != 64 || !hex.is_ascii() {
                return None;
            }
            let mut digest = [0; 32];
            for (place, byte) in digest.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&hex[place * 2..place * 2 + 2], 16).ok()?;
            }
            Some(Self(digest))
        };
        parse().ok_or_else(|| ParseIdError { text: text.to_owned(), expected: "the id of an object (b3:…)" })
    }
}
