//! What is wrong with something a person wrote, where, and what would be right.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in a file: line and column from 1, and the bytes it spans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    pub line: u32,
    /// In characters.
    pub column: u32,
    /// Offset of the first byte, from 0.
    pub start: u32,
    /// Offset after the last byte.
    pub end: u32,
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file as the person named it.
    pub file: String,
    pub place: Place,
    /// What is wrong, in a sentence without a full stop.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}: {}", self.file, self.place.line, self.place.column, self.message)?;
        match &self.help {
            Some(help) => write!(formatter, " ({help})"),
            None => Ok(()),
        }
    }
}
