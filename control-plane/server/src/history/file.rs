//! The history in a file of its own, `history.redb` in the data directory.
//!
//! | table | key | value |
//! |---|---|---|
//! | `runs` | run | all of the run |
//! | `heads` | place: time of submission, run | what a list shows of it |
//! | `index` | what is asked for and its value, place | nothing |
//! | `about` | `format` | format of heads and index, which are made again from the runs when it is another |

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use atoll_model::id::RunId;
use atoll_model::time::Timestamp;
use control_plane_core::FinishedRun;
use control_plane_core::view::{RunFilter, RunPlace, RunView};
use storage_sync_journal::{TableChange, Tables, TablesError};

use super::encoding::{LIST_FORMAT, decode_head, decode_run, encode_head, encode_run};
use super::{History, HistoryError, Retention};

const RUNS: &str = "runs";
const HEADS: &str = "heads";
const INDEX: &str = "index";
const ABOUT: &str = "about";
const FORMAT_KEY: &[u8] = b"format";

/// Memory for pages that are looked at again and again.
const CACHE_BYTES: usize = 16 << 20;
/// Runs that are removed or listed anew with one write.
const CHANGED_AT_ONCE: usize = 256;

#[derive(Debug)]
pub(crate) struct FileHistory {
    tables: Tables,
}

impl From<TablesError> for HistoryError {
    fn from(error: TablesError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl FileHistory {
    /// Opens the history in a data directory, making it if there is none.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, HistoryError> {
        let history = Self { tables: Tables::open(&Self::path(data_dir), CACHE_BYTES)? };
        match history.tables.get(ABOUT, FORMAT_KEY)? {
            Some(format) if format == LIST_FORMAT.to_be_bytes() => {}
            Some(_) | None => history.list_again()?,
        }
        Ok(history)
    }

    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("history.redb")
    }

    /// Makes heads and index again from the runs.
    fn list_again(&self) -> Result<(), HistoryError> {
        for table in [HEADS, INDEX] {
            loop {
                let mut changes = Vec::new();
                self.tables.scan_on(table, &[], &[0xff; 2], &mut |key, _| {
                    changes.push(TableChange::Remove { table, key: key.to_vec() });
                    changes.len() < CHANGED_AT_ONCE
                })?;
                if changes.is_empty() {
                    break;
                }
                self.tables.change(&changes)?;
            }
        }
        let mut from = Vec::new();
        loop {
            let mut stored = Vec::new();
            self.tables.scan_on(RUNS, &from, &[0xff; 17], &mut |key, value| {
                stored.push((key.to_vec(), value));
                stored.len() < CHANGED_AT_ONCE
            })?;
            let Some((last, _)) = stored.last() else { break };
            // The least key above the last one.
            from = [last, &[0][..]].concat();
            let mut changes = Vec::new();
            for (key, value) in &stored {
                put_listed(&run_of(key, value)?.view(), &mut changes);
            }
            self.tables.change(&changes)?;
        }
        let (key, value) = (FORMAT_KEY.to_vec(), LIST_FORMAT.to_be_bytes().to_vec());
        Ok(self.tables.change(&[TableChange::Put { table: ABOUT, key, value }])?)
    }

    fn head(&self, place: &[u8]) -> Result<Option<RunView>, HistoryError> {
        self.tables.get(HEADS, place)?.map(|value| head_of(place, &value)).transpose()
    }
}

impl History for FileHistory {
    fn keep(&self, runs: &[FinishedRun]) -> Result<(), HistoryError> {
        let mut changes = Vec::new();
        for run in runs {
            changes.push(TableChange::Put { table: RUNS, key: run_key(run.id()), value: encode_run(run)? });
            put_listed(&run.view(), &mut changes);
        }
        Ok(self.tables.change(&changes)?)
    }

    fn runs(&self, filter: &RunFilter) -> Result<Vec<RunView>, HistoryError> {
        let prefix = narrowest(filter);
        let from =
            place_key(RunPlace { submitted_at: filter.since.unwrap_or(Timestamp(i64::MIN)), run: RunId::from_bits(0) });
        let until = filter.until.map(|until| RunPlace { submitted_at: until, run: RunId::from_bits(0) });
        let below = until.into_iter().chain(filter.before).min().map_or(vec![0xff; 25], place_key);
        let limit = filter.limit.unwrap_or(usize::MAX);
        let (mut found, mut failed) = (Vec::new(), None);
        let mut admit = |view: Result<Option<RunView>, HistoryError>| {
            match view {
                Ok(view) => found.extend(view.filter(|view| filter.admits(view))),
                Err(error) => failed = Some(error),
            }
            failed.is_none() && found.len() < limit
        };
        if limit > 0 {
            match prefix {
                None => self
                    .tables
                    .scan_back(HEADS, &from, &below, &mut |key, value| admit(head_of(key, &value).map(Some)))?,
                Some(prefix) => {
                    let [from, below] = [from, below].map(|place| [prefix.as_slice(), &place].concat());
                    self.tables.scan_back(INDEX, &from, &below, &mut |key, _| {
                        admit(self.head(key.get(prefix.len()..).unwrap_or_default()))
                    })?;
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }

    fn run(&self, run: RunId) -> Result<Option<FinishedRun>, HistoryError> {
        let key = run_key(run);
        self.tables.get(RUNS, &key)?.map(|value| run_of(&key, &value)).transpose()
    }

    fn expire(&self, retention: &Retention, now: Timestamp) -> Result<u64, HistoryError> {
        let (mut removed, mut from) = (0, Vec::new());
        loop {
            let (mut stored, mut seen) = (Vec::new(), 0);
            self.tables.scan_on(HEADS, &from, &[0xff; 25], &mut |key, value| {
                stored.push((key.to_vec(), value));
                seen += 1;
                seen < CHANGED_AT_ONCE
            })?;
            let Some((last, _)) = stored.last() else { return Ok(removed) };
            from = [last, &[0][..]].concat();
            let mut changes = Vec::new();
            for (key, value) in &stored {
                let view = head_of(key, value)?;
                if retention.ends(&view).is_some_and(|end| end <= now) {
                    changes.push(TableChange::Remove { table: RUNS, key: run_key(view.run) });
                    changes.push(TableChange::Remove { table: HEADS, key: key.clone() });
                    let indexed = index_keys(&view).into_iter();
                    changes.extend(indexed.map(|key| TableChange::Remove { table: INDEX, key }));
                    removed += 1;
                }
            }
            if !changes.is_empty() {
                self.tables.change(&changes)?;
            }
        }
    }
}

/// What a run is listed by.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum By {
    Label = b'l',
    Project = b'p',
    Site = b's',
    State = b't',
    Workflow = b'w',
}

fn prefix(by: By, value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    [&[by as u8][..], &length.to_be_bytes(), value.as_bytes()].concat()
}

fn label(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

fn index_keys(view: &RunView) -> Vec<Vec<u8>> {
    let mut prefixes = vec![
        prefix(By::Workflow, &view.workflow),
        prefix(By::Project, &view.tags.project),
        prefix(By::State, crate::api::views::run_state(view.state)),
    ];
    prefixes.extend(view.sites.iter().map(|site| prefix(By::Site, site.as_str())));
    prefixes.extend(view.tags.labels.iter().map(|(name, value)| prefix(By::Label, &label(name, value))));
    let place = place_key(view.place());
    prefixes.into_iter().map(|prefix| [prefix, place.clone()].concat()).collect()
}

/// Where to look for what a filter asks for: by what the fewest runs are likely to share.
fn narrowest(filter: &RunFilter) -> Option<Vec<u8>> {
    let by_label = filter.labels.first_key_value().map(|(name, value)| prefix(By::Label, &label(name, value)));
    by_label
        .or_else(|| filter.workflow.as_ref().map(|workflow| prefix(By::Workflow, workflow)))
        .or_else(|| filter.project.as_ref().map(|project| prefix(By::Project, project)))
        .or_else(|| filter.state.map(|state| prefix(By::State, crate::api::views::run_state(state))))
        .or_else(|| filter.site.as_ref().map(|site| prefix(By::Site, site.as_str())))
}

fn put_listed(view: &RunView, changes: &mut Vec<TableChange>) {
    let key = place_key(view.place());
    changes.push(TableChange::Put { table: HEADS, key, value: encode_head(view) });
    let indexed = index_keys(view).into_iter();
    changes.extend(indexed.map(|key| TableChange::Put { table: INDEX, key, value: Vec::new() }));
}

fn run_key(run: RunId) -> Vec<u8> {
    run.bits().to_be_bytes().to_vec()
}

/// Sorts as places do.
fn place_key(place: RunPlace) -> Vec<u8> {
    let micros = place.submitted_at.micros().cast_unsigned() ^ (1 << 63);
    [&micros.to_be_bytes()[..], &place.run.bits().to_be_bytes()].concat()
}

fn run_of(key: &[u8], value: &[u8]) -> Result<FinishedRun, HistoryError> {
    let name = match <[u8; 16]>::try_from(key) {
        Ok(bits) => RunId::from_bits(u128::from_be_bytes(bits)).to_string(),
        Err(_) => "a run".to_owned(),
    };
    decode_run(&name, value)
}

fn head_of(place: &[u8], value: &[u8]) -> Result<RunView, HistoryError> {
    decode_head(&place.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), value)
}
