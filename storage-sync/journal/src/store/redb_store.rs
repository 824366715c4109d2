//! A generation in one redb file.

use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::frame::{FRAME_BYTES_MAX, FRAME_OVERHEAD, KEY_BYTES, Record};
use crate::store::{Store, StoreError, Visit, directory_bytes, is_out_of_space};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// What redb needs beside a record so that the record and its key still fit one run of four pages.
const LEAF_OVERHEAD: usize = 98;

pub(crate) struct RedbStore {
    database: Database,
    transaction: Option<redb::WriteTransaction>,
    directory: PathBuf,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl RedbStore {
    pub(crate) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory)?;
        let mut builder = redb::Builder::new();
        builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX));
        let database = builder.create(directory.join("journal.redb")).map_err(failed)?;
        let transaction = database.begin_write().map_err(failed)?;
        transaction.open_table(RECORDS).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        File::open(directory)?.sync_all()?;
        Ok(Self { database, transaction: None, directory: directory.to_owned() })
    }
}

impl Store for RedbStore {
    fn payload_max(&self) -> usize {
        FRAME_BYTES_MAX - FRAME_OVERHEAD - LEAF_OVERHEAD
    }

    fn apply(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => self.database.begin_write().map_err(failed)?,
        };
        {
            let mut table = transaction.open_table(RECORDS).map_err(failed)?;
            for record in records {
                table.insert(record.key.as_slice(), record.frame.as_slice()).map_err(failed)?;
            }
        }
        self.transaction = Some(transaction);
        Ok(())
    }

    fn sync(&mut self) -> Result<u32, StoreError> {
        let Some(transaction) = self.transaction.take() else { return Ok(0) };
        transaction.commit().map_err(failed)?;
        Ok(1)
    }

    fn scan(&self, visit: Visit<'_>) -> Result<(), StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(RECORDS).map_err(failed)?;
        for item in table.iter().map_err(failed)? {
            let (key, value) = item.map_err(failed)?;
            if !visit(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }

    fn last(&self) -> Result<Option<[u8; KEY_BYTES]>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(RECORDS).map_err(failed)?;
        let last = table.last().map_err(failed)?;
        Ok(last.and_then(|(key, _)| key.value().try_into().ok()))
    }

    fn disk_bytes(&self) -> u64 {
        directory_bytes(&self.directory)
    }
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    let error = error.into();
    if let redb::Error::Io(error) = &error
        && is_out_of_space(error)
    {
        return StoreError::NoSpace;
    }
    StoreError::Failed(error.to_string())
}
