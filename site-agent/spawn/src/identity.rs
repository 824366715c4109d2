//! Who a program runs as, if not as whoever starts it.

/// An account of the machine, by its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: u32,
    pub group: u32,
    /// The others that it is in.
    pub groups: Vec<u32>,
}
