//! Ordered tables of bytes in one redb file: for what is looked up later, rather than replayed at each start.

use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, TableDefinition, TableError};

use crate::guard::contained;

const CHECKSUM_BYTES: usize = 16;

/// What has gone wrong with a file of tables. Nothing of a change that failed is there.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    #[error("{path}: {message}")]
    Store { path: PathBuf, message: String },
    /// A value is not what was written.
    #[error("{path}: the value at {key} of {table} is damaged")]
    Damaged { path: PathBuf, table: String, key: String },
}

/// One change of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    Put { table: &'static str, key: Vec<u8>, value: Vec<u8> },
    Remove { table: &'static str, key: Vec<u8> },
}

/// Tables by name, each ordered by its keys; each value is checked when it is read. May be used by many threads.
pub struct Tables {
    database: Database,
    path: PathBuf,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Tables {
    /// Opens the file, making it if it is not there. Another process that has it open is an error.
    ///
    /// # Errors
    /// When it cannot be opened, or is not whole.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, TablesError> {
        let failed = |message: String| TablesError::Store { path: path.to_owned(), message };
        let open = || redb::Builder::new().set_cache_size(cache_bytes).create(path).map_err(|error| error.to_string());
        let database = contained(open).and_then(|opened| opened).map_err(failed)?;
        Ok(Self { database, path: path.to_owned() })
    }

    /// Makes all changes durable, or none.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn change(&self, changes: &[TableChange]) -> Result<(), TablesError> {
        let transaction = self.database.begin_write().map_err(|error| self.failed(error))?;
        for change in changes {
            let (TableChange::Put { table, .. } | TableChange::Remove { table, .. }) = change;
            let mut open = transaction.open_table(definition(table)).map_err(|error| self.failed(error))?;
            match change {
                TableChange::Put { key, value, .. } => {
                    let mut stored = Vec::with_capacity(value.len() + CHECKSUM_BYTES);
                    stored.extend_from_slice(value);
                    stored.extend_from_slice(&checksum(key, value));
                    open.insert(key.as_slice(), stored.as_slice()).map_err(|error| self.failed(error))?;
                }
                TableChange::Remove { key, .. } => {
                    open.remove(key.as_slice()).map_err(|error| self.failed(error))?;
                }
            }
        }
        transaction.commit().map_err(|error| self.failed(error))
    }

    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, TablesError> {
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let open = match transaction.open_table(definition(table)) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            open => open.map_err(|error| self.failed(error))?,
        };
        let found = open.get(key).map_err(|error| self.failed(error))?;
        found.map(|value| self.checked(table, key, value.value())).transpose()
    }

    /// Visits what stands from `from` on and below `below`, the last first, as it was when this began; `visit` says
    /// whether to go on.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn scan_back(
        &self,
        table: &str,
        from: &[u8],
        below: &[u8],
        visit: &mut dyn FnMut(&[u8], Vec<u8>) -> bool,
    ) -> Result<(), TablesError> {
        self.scan(table, from, below, true, visit)
    }

    /// The same, the first first.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn scan_on(
        &self,
        table: &str,
        from: &[u8],
        below: &[u8],
        visit: &mut dyn FnMut(&[u8], Vec<u8>) -> bool,
    ) -> Result<(), TablesError> {
        self.scan(table, from, below, false, visit)
    }

    fn scan(
        &self,
        table: &str,
        from: &[u8],
        below: &[u8],
        back: bool,
        visit: &mut dyn FnMut(&[u8], Vec<u8>) -> bool,
    ) -> Result<(), TablesError> {
        if from >= below {
            return Ok(());
        }
        let transaction = self.database.begin_read().map_err(|error| self.failed(error))?;
        let open = match transaction.open_table(definition(table)) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            open => open.map_err(|error| self.failed(error))?,
        };
        let mut range = open.range(from..below).map_err(|error| self.failed(error))?;
        while let Some(found) = if back { range.next_back() } else { range.next() } {
            let (key, value) = found.map_err(|error| self.failed(error))?;
            if !visit(key.value(), self.checked(table, key.value(), value.value())?) {
                break;
            }
        }
        Ok(())
    }

    fn checked(&self, table: &str, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, TablesError> {
        let (value, sum) = stored.split_at(stored.len().saturating_sub(CHECKSUM_BYTES));
        if checksum(key, value) == sum {
            return Ok(value.to_vec());
        }
        let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Err(TablesError::Damaged { path: self.path.clone(), table: table.to_owned(), key })
    }

    fn failed(&self, error: impl Into<redb::Error>) -> TablesError {
        TablesError::Store { path: self.path.clone(), message: error.into().to_string() }
    }
}

fn definition<'a>(table: &'a str) -> TableDefinition<'a, &'static [u8], &'static [u8]> {
    TableDefinition::new(table)
}

/// Over the key too, so that a value in another's place is seen.
fn checksum(key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes()).update(key).update(value);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: u8, value: &[u8]) -> TableChange {
        TableChange::Put { table: "t", key: vec![key], value: value.to_vec() }
    }

    fn keys(tables: &Tables, back: bool) -> Vec<u8> {
        let mut keys = Vec::new();
        tables
            .scan("t", &[2], &[5], back, &mut |key, _| {
                keys.push(key[0]);
                true
            })
            .expect("read");
        keys
    }

    #[test]
    fn what_was_put_is_found_in_order_after_a_restart() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("tables.redb");
        let tables = Tables::open(&path, 1 << 20).expect("opened");
        assert_eq!(tables.get("t", &[1]).expect("read"), None);
        let changes: Vec<TableChange> = (1..=5).map(|key| put(key, &[key; 3])).collect();
        tables.change(&changes).expect("changed");
        tables.change(&[TableChange::Remove { table: "t", key: vec![3] }, put(4, b"new")]).expect("changed");
        drop(tables);
        let tables = Tables::open(&path, 1 << 20).expect("opened again");
        assert_eq!(keys(&tables, true), [4, 2]);
        assert_eq!(keys(&tables, false), [2, 4]);
        assert_eq!(tables.get("t", &[4]).expect("read").as_deref(), Some(&b"new"[..]));
        assert_eq!(tables.get("t", &[3]).expect("read"), None);
    }

    #[test]
    fn a_value_in_the_place_of_another_is_damage() {
        let folder = tempfile::tempdir().expect("a directory");
        let tables = Tables::open(&folder.path().join("tables.redb"), 1 << 20).expect("opened");
        let stored = [&b"value"[..], &checksum(&[1], b"value")].concat();
        assert!(tables.checked("t", &[1], &stored).is_ok());
        let message = tables.checked("t", &[2], &stored).expect_err("damaged").to_string();
        assert!(message.ends_with("the value at 02 of t is damaged"), "{message}");
    }
}
