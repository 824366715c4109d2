//! A journal in any of the stores, as the contract looks at it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use control_plane_postgres::{Address, Contents, Member, PostgresJournal};
use storage_sync_journal::{
    Backend, BatchSeq, Journal, JournalError, JournalId, JournalStats, MemoryDisk, OpenError, Options, open,
};

/// What the contract asks of a journal.
pub trait Subject {
    fn append(&mut self, batch: &[u8]) -> Result<BatchSeq, JournalError>;
    fn barrier(&mut self) -> Result<(), JournalError>;
    fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError>;
    fn compact_if_needed(&mut self) -> Result<bool, JournalError>;
    fn identity(&self) -> JournalId;
    fn durable(&self) -> BatchSeq;
    fn stats(&self) -> JournalStats;
}

macro_rules! subject {
    ($journal:ty) => {
        impl Subject for $journal {
            fn append(&mut self, batch: &[u8]) -> Result<BatchSeq, JournalError> {
                <$journal>::append(self, batch)
            }
            fn barrier(&mut self) -> Result<(), JournalError> {
                <$journal>::barrier(self)
            }
            fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError> {
                <$journal>::checkpoint(self, state)
            }
            fn compact_if_needed(&mut self) -> Result<bool, JournalError> {
                <$journal>::compact_if_needed(self)
            }
            fn identity(&self) -> JournalId {
                <$journal>::identity(self)
            }
            fn durable(&self) -> BatchSeq {
                <$journal>::durable(self)
            }
            fn stats(&self) -> JournalStats {
                <$journal>::stats(self)
            }
        }
    };
}
subject!(Journal);
subject!(PostgresJournal);

/// An open journal, and what it holds.
pub struct Found {
    pub journal: Box<dyn Subject>,
    pub checkpoint: Option<(BatchSeq, Vec<u8>)>,
    pub batches: Vec<(BatchSeq, Vec<u8>)>,
    pub format: u16,
    pub created: bool,
    pub repaired: Vec<String>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("created", &self.created).field("format", &self.format).finish_non_exhaustive()
    }
}

impl Found {
    pub fn batches(&self) -> Vec<(u64, Vec<u8>)> {
        self.batches.iter().map(|(seq, batch)| (seq.0, batch.clone())).collect()
    }
}

/// Why a journal was not opened, whichever store refused it.
#[derive(Debug)]
pub enum Refusal {
    Newer { found: u16, supported: u16 },
    InUse,
    Other(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Refusal {}

/// Where one journal lives, in a test.
pub trait Place: fmt::Debug {
    /// Opens the journal, making it if it is not there.
    ///
    /// # Errors
    /// When it is newer, in use, or anything else.
    fn open(&self, format: u16) -> Result<Found, Refusal>;

    /// A place for another journal in a store of the same kind.
    ///
    /// # Errors
    /// When it can't be made.
    fn another(&self) -> Result<Box<dyn Place>>;
}

/// A directory, or a disk in memory.
#[derive(Debug)]
pub struct Bench {
    directory: tempfile::TempDir,
    backend: Backend,
    memory: MemoryDisk,
}

impl Bench {
    /// # Errors
    /// When there is no room for a directory.
    pub fn new(backend: Backend) -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir()?, backend, memory: MemoryDisk::default() })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn options(&self, format: u16) -> Options {
        let options = Options::new(self.path().join("journal"), self.backend, format);
        Options { memory: self.memory.clone(), ballast_bytes: 0, ..options }
    }
}

impl Place for Bench {
    fn open(&self, format: u16) -> Result<Found, Refusal> {
        let opened = open(self.options(format)).map_err(|error| match error {
            OpenError::Newer { found, supported } => Refusal::Newer { found, supported },
            OpenError::Locked { .. } => Refusal::InUse,
            OpenError::NetworkFileSystem { .. }
            | OpenError::Damaged { .. }
            | OpenError::NoSpace { .. }
            | OpenError::Io { .. } => Refusal::Other(error.to_string()),
        })?;
        Ok(Found {
            journal: Box::new(opened.journal),
            checkpoint: opened.checkpoint,
            batches: opened.batches,
            format: opened.format,
            created: opened.created,
            repaired: opened.repaired.iter().map(ToString::to_string).collect(),
        })
    }

    fn another(&self) -> Result<Box<dyn Place>> {
        Ok(Box::new(Self::new(self.backend)?))
    }
}

/// A database of its own on a real server, removed at the end: what one test reads keeps no other's rubbish alive.
#[derive(Debug)]
pub struct Database {
    pub address: Address,
    server: String,
    name: String,
}

impl Database {
    /// Nothing, loudly, where no database is.
    ///
    /// # Errors
    /// When the variable that names it is wrong.
    pub fn fresh() -> Result<Option<Self>> {
        let Some(text) = std::env::var_os("ATOLL_TEST_POSTGRES") else {
            println!("SKIPPED: no PostgreSQL; tests/run.sh starts one and sets ATOLL_TEST_POSTGRES");
            return Ok(None);
        };
        let server = text.to_str().context("ATOLL_TEST_POSTGRES")?.to_owned();
        let name = tempfile::Builder::new().prefix("t_").rand_bytes(12).tempfile()?;
        let name = name.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_lowercase();
        statement(&server, &format!("CREATE DATABASE {name}"))?;
        let (base, _) = server.rsplit_once('/').context("ATOLL_TEST_POSTGRES names no database")?;
        Ok(Some(Self { address: format!("{base}/{name}").parse()?, server, name }))
    }

    pub fn member(name: &str) -> Member {
        Member {
            name: name.to_owned(),
            api_url: format!("https://{name}:7380"),
            agent_address: format!("{name}:7381"),
            authority: "ca".to_owned(),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(error) = statement(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.name)) {
            println!("a database was left behind: {error}");
        }
    }
}

/// Has PostgreSQL's own client carry out a statement, and returns what it says.
///
/// # Errors
/// When it refuses.
pub fn statement(server: &str, sql: &str) -> Result<String> {
    let output =
        Command::new("psql").args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, server]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{sql}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

impl Place for Database {
    fn open(&self, format: u16) -> Result<Found, Refusal> {
        use control_plane_postgres::OpenError as Error;
        let opened = PostgresJournal::open(self.address.clone(), Self::member("one"), format);
        let (journal, Contents { checkpoint, batches, format }, standby) = opened.map_err(|error| match error {
            Error::Newer { found, supported } => Refusal::Newer { found, supported },
            Error::Held { .. } => Refusal::InUse,
            Error::Store(_) | Error::Damaged(_) | Error::OtherAuthority { .. } => Refusal::Other(format!("{error:?}")),
        })?;
        Ok(Found {
            journal: Box::new(journal),
            checkpoint,
            batches,
            format,
            created: standby.is_created(),
            repaired: Vec::new(),
        })
    }

    fn another(&self) -> Result<Box<dyn Place>> {
        Ok(Box::new(Self::fresh()?.context("there was a database before")?))
    }
}
