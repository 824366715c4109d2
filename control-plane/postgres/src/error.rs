//! What can go wrong with the database.

use std::path::PathBuf;

use storage_sync_journal::IntegrityFault;

/// Why the database was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot connect to the database")]
    Connect(#[source] tokio_postgres::Error),
    #[error("the database does not answer")]
    TimedOut,
    #[error("the database failed: {message}")]
    Query {
        message: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} holds no usable certificate of a CA", .0.display())]
    Authority(PathBuf),
    #[error("no runtime for the connection")]
    Runtime(#[source] std::io::Error),
    /// Another server has taken the lead: what this one wrote was refused.
    #[error("another server leads now: the database has refused to write under epoch {epoch}")]
    Superseded { epoch: u64 },
    #[error(
        "the database ends with batch {found}, but batch {acknowledged} was acknowledged: it has lost what it had committed"
    )]
    Lost { found: u64, acknowledged: u64 },
    #[error(
        "the tables are of version {found}, and this program knows versions up to {supported}: run the newer program"
    )]
    NewerSchema { found: u32, supported: u32 },
}

impl StoreError {
    /// Whether another connection may do better.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => error.as_db_error().is_none_or(|error| is_passing(error.code().code())),
            Self::TimedOut => true,
            Self::Query { source, .. } => {
                source.is_closed() || source.as_db_error().is_none_or(|error| is_passing(error.code().code()))
            }
            Self::File { .. }
            | Self::Authority(_)
            | Self::Runtime(_)
            | Self::Superseded { .. }
            | Self::Lost { .. }
            | Self::NewerSchema { .. } => false,
        }
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(source: tokio_postgres::Error) -> Self {
        let message = source.as_db_error().map_or_else(|| source.to_string(), |error| error.message().to_owned());
        Self::Query { message, source }
    }
}

/// Of the classes of SQLSTATE: connection exceptions, insufficient resources, operator intervention (a restart), and
/// conflicts that a repetition ends.
fn is_passing(code: &str) -> bool {
    ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class))
}

/// Why a journal was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Written by a newer version of the program.
    #[error(
        "the journal was written in format {found}, and this program reads up to {supported}: run the newer program"
    )]
    Newer { found: u16, supported: u16 },
    /// Another server leads.
    #[error("{holder} leads")]
    Held { holder: String },
    #[error("the journal in the database is damaged")]
    Damaged(#[source] IntegrityFault),
    /// The servers of one installation have one CA.
    #[error(
        "the database belongs to an installation with another CA ({theirs}, not {ours}): copy ca.pem, ca.key, bucket.key, master.key, admin-token and api-tokens.json from a server that has joined it into the data directory"
    )]
    OtherAuthority { theirs: String, ours: String },
}

impl From<tokio_postgres::Error> for OpenError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}
