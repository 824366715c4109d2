//! What is wrong with a message.

/// A message that cannot be turned into the model. Each names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{field} is missing")]
    Missing { field: &'static str },
    /// A number that stands for nothing that is known here.
    #[error("{field} has the value {value}, which this version does not know")]
    UnknownNumber { field: &'static str, value: u64 },
    /// A oneof without a member that is known here.
    #[error("{field} is of a kind that this version does not know")]
    UnknownKind { field: &'static str },
    #[error("{field} is nested more than {limit} levels deep")]
    TooDeep { field: &'static str, limit: usize },
    #[error("{field} has {found} entries where there should be {expected}")]
    Count { field: &'static str, expected: u64, found: u64 },
    #[error("{field} has {found} entries, more than {limit}")]
    TooMany { field: &'static str, limit: usize, found: u64 },
    #[error("{field} is out of range")]
    OutOfRange { field: &'static str },
    #[error("{field} is not valid: {reason}")]
    Invalid { field: &'static str, reason: String },
}

impl WireError {
    /// Whether a peer of another version may have meant it well, so that only the item is refused.
    pub fn refuses_item_only(&self) -> bool {
        match self {
            Self::UnknownNumber { .. } | Self::UnknownKind { .. } | Self::TooDeep { .. } => true,
            Self::Missing { .. }
            | Self::Count { .. }
            | Self::TooMany { .. }
            | Self::OutOfRange { .. }
            | Self::Invalid { .. } => false,
        }
    }
}

/// A frame as it was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Received<F> {
    pub frame: F,
    /// What in it was not understood and is replaced; for the log.
    pub refused: Vec<WireError>,
}

/// Takes a part that every version sends.
///
/// # Errors
/// When it is not there.
pub fn required<T>(part: Option<T>, field: &'static str) -> Result<T, WireError> {
    part.ok_or(WireError::Missing { field })
}
