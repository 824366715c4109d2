//! Runs that have ended, in tables for everybody who speaks SQL.

use std::sync::{Mutex, PoisonError};

use crate::address::Address;
use crate::error::StoreError;
use crate::fence::Fence;
use crate::session::{ANSWER_MAX, Session};

/// Where ended runs are kept. Its methods block; a connection that breaks is made again by the next call.
#[derive(Debug)]
pub struct History {
    address: Address,
    fence: Fence,
    writing: Mutex<Option<Session>>,
    /// Another, so that nobody who looks waits for a large run to be written.
    reading: Mutex<Option<Session>>,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    pub run: String,
    /// A JSON object with the columns of the table but for the encoded ones; times in microseconds since 1970.
    pub row: String,
    pub head: Vec<u8>,
    pub document: Vec<u8>,
    /// JSON arrays with the rows of its executions, in pieces of a size that can be sent.
    pub executions: Vec<String>,
}

/// Which runs are wanted; every part that is given must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    pub state: Option<String>,
    pub workflow: Option<String>,
    pub project: Option<String>,
    pub site: Option<String>,
    /// A JSON object.
    pub labels: Option<String>,
    /// Microseconds since 1970.
    pub since: Option<i64>,
    pub until: Option<i64>,
    pub finished_before: Option<i64>,
    /// Only what comes after this one in the list: when it was submitted, and its id.
    pub after: Option<(i64, String)>,
    pub limit: Option<i64>,
}

/// What a list shows of a run, and which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub run: String,
    pub head: Vec<u8>,
}

const KEEP: &str = "INSERT INTO runs (run, workflow, project, state, submitted_by, submitted_at, started_at, finished_at,
        labels, sites, outputs, error_step, error, executions, head, document)
    SELECT $1, workflow, project, state, submitted_by, timestamptz 'epoch' + submitted_at * interval '1 microsecond',
        timestamptz 'epoch' + started_at * interval '1 microsecond',
        timestamptz 'epoch' + finished_at * interval '1 microsecond',
        labels, sites, outputs, error_step, error, executions, $3, $4
    FROM jsonb_to_record($2::text::jsonb) AS new (workflow text, project text, state text, submitted_by text,
        submitted_at bigint, started_at bigint, finished_at bigint, labels jsonb, sites text[], outputs jsonb,
        error_step text, error text, executions jsonb)
    ON CONFLICT (run) DO UPDATE SET workflow = excluded.workflow, project = excluded.project, state = excluded.state,
        submitted_by = excluded.submitted_by, submitted_at = excluded.submitted_at, started_at = excluded.started_at,
        finished_at = excluded.finished_at, labels = excluded.labels, sites = excluded.sites, outputs = excluded.outputs,
        error_step = excluded.error_step, error = excluded.error, executions = excluded.executions,
        head = excluded.head, document = excluded.document";
const FORGET_EXECUTIONS: &str = "DELETE FROM executions WHERE run = $1";
const KEEP_EXECUTIONS: &str =
    "INSERT INTO executions (run, step, element, attempt, state, site, submitted_at, placed_at,
        started_at, finished_at, exit_code, error, cpu_seconds, memory_bytes, disk_read_bytes, disk_written_bytes)
    SELECT $1, step, element, attempt, state, site, timestamptz 'epoch' + submitted_at * interval '1 microsecond',
        timestamptz 'epoch' + placed_at * interval '1 microsecond',
        timestamptz 'epoch' + started_at * interval '1 microsecond',
        timestamptz 'epoch' + finished_at * interval '1 microsecond', exit_code, error, cpu_seconds, memory_bytes,
        disk_read_bytes, disk_written_bytes
    FROM jsonb_to_recordset($2::text::jsonb) AS new (step text, element bigint, attempt integer, state text, site text,
        submitted_at bigint, placed_at bigint, started_at bigint, finished_at bigint, exit_code integer, error text,
        cpu_seconds double precision, memory_bytes bigint, disk_read_bytes bigint, disk_written_bytes bigint)";
const LIST: &str = "SELECT run, head FROM runs
    WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR workflow = $2)
        AND ($3::text IS NULL OR project = $3) AND ($4::text IS NULL OR sites @> ARRAY[$4])
        AND ($5::text IS NULL OR labels @> $5::text::jsonb)
        AND ($6::bigint IS NULL OR submitted_at >= timestamptz 'epoch' + $6 * interval '1 microsecond')
        AND ($7::bigint IS NULL OR submitted_at < timestamptz 'epoch' + $7 * interval '1 microsecond')
        AND ($8::bigint IS NULL OR finished_at < timestamptz 'epoch' + $8 * interval '1 microsecond')
        AND ($9::bigint IS NULL OR (submitted_at, run) < (timestamptz 'epoch' + $9 * interval '1 microsecond', $10::text))
    ORDER BY submitted_at DESC, run DESC LIMIT $11";

impl History {
    /// Connects at the first call. Only whoever leads may write: `fence` is that of its [`Standby`](crate::Standby).
    pub fn new(address: Address, fence: Fence) -> Self {
        Self { address, fence, writing: Mutex::default(), reading: Mutex::default() }
    }

    /// Keeps runs and their executions, all in one transaction; what is there of them already is replaced.
    ///
    /// # Errors
    /// When the database cannot be reached; [`StoreError::Superseded`] when it refuses, because another server leads.
    pub fn keep(&self, runs: &[Ended]) -> Result<(), StoreError> {
        self.write(|session| {
            for run in runs {
                session.query(KEEP, &[&run.run, &run.row, &run.head, &run.document])?;
                session.query(FORGET_EXECUTIONS, &[&run.run])?;
                for rows in &run.executions {
                    session.query(KEEP_EXECUTIONS, &[&run.run, rows])?;
                }
            }
            Ok(())
        })
    }

    /// The runs that a query is for, newest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub fn list(&self, query: &Query) -> Result<Vec<Listed>, StoreError> {
        let (at, after) = query.after.clone().unzip();
        let rows = self.with(&self.reading, |session| {
            session.query(
                LIST,
                &[
                    &query.state,
                    &query.workflow,
                    &query.project,
                    &query.site,
                    &query.labels,
                    &query.since,
                    &query.until,
                    &query.finished_before,
                    &at,
                    &after,
                    &query.limit,
                ],
            )
        })?;
        Ok(rows.iter().map(|row| Listed { run: row.get(0), head: row.get(1) }).collect())
    }

    /// All of a run, encoded.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub fn document(&self, run: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let rows =
            self.with(&self.reading, |session| session.query("SELECT document FROM runs WHERE run = $1", &[&run]))?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    /// Removes runs with their executions.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn remove(&self, runs: &[String]) -> Result<(), StoreError> {
        self.write(|session| session.query("DELETE FROM runs WHERE run = ANY ($1)", &[&runs]).map(drop))
    }

    fn write(&self, write: impl FnOnce(&mut Session) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.with(&self.writing, |session| self.fence.within(session, write))
    }

    fn with<R>(
        &self,
        session: &Mutex<Option<Session>>,
        ask: impl FnOnce(&mut Session) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let mut held = session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut session = match held.take() {
            Some(session) => session,
            None => Session::open(&self.address, ANSWER_MAX)?,
        };
        let answer = ask(&mut session)?;
        // After a failure it may be in the middle of something, and is not used again.
        *held = Some(session);
        Ok(answer)
    }
}
