//! A look at the journal that changes nothing, also while servers use it.

use storage_sync_journal::{BatchSeq, IntegrityFault, JournalId};

use crate::address::Address;
use crate::error::{OpenError, StoreError};
use crate::journal::digest;
use crate::session::{ANSWER_MAX, Session};
use crate::standby::{BATCHES, JOURNAL, PAGE, PARTS, batch_of, format_of, number};

/// What was found.
#[derive(Debug)]
pub struct Inspection {
    pub identity: JournalId,
    /// Checkpoints that were ever written.
    pub generation: u64,
    /// Format of the checkpoint, or of the batches without one.
    pub format: u16,
    /// The last batch that the checkpoint stands for, and the checkpoint unless that is damaged.
    pub checkpoint: Option<(BatchSeq, Option<Vec<u8>>)>,
    pub batches: Vec<(BatchSeq, Vec<u8>)>,
    pub live_bytes: u64,
    pub disk_bytes: u64,
    /// The first thing that is wrong. What is behind it is not among the batches.
    pub fault: Option<IntegrityFault>,
}

/// Reads everything as it stands at one moment; nothing if there is no journal at the address.
///
/// # Errors
/// When the database cannot be reached, or a newer program wrote the journal.
pub fn inspect(address: &Address, supported: u16) -> Result<Option<Inspection>, OpenError> {
    let mut session = Session::open(address, ANSWER_MAX)?;
    let exists = "SELECT to_regclass($1::text || '.journal') IS NOT NULL";
    if !session.query_one(exists, &[&address.schema()])?.get::<_, bool>(0) {
        return Ok(None);
    }
    session.execute_all("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
    let rows = session.query(JOURNAL, &[])?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (identity, written): (String, i32) = (row.get(0), row.get(1));
    let (generation, parts): (i64, i32) = (row.get(4), row.get(5));
    let written = format_of(written);
    if written > supported {
        return Err(OpenError::Newer { found: written, supported });
    }
    let unreadable = || OpenError::Damaged(IntegrityFault::Description(format!("the identity {identity:?}")));
    let mut found = Inspection {
        identity: JournalId(u128::from_str_radix(&identity, 16).map_err(|_| unreadable())?),
        generation: u64::try_from(generation).unwrap_or(0),
        format: if generation == 0 { written } else { format_of(row.get(6)) },
        checkpoint: None,
        batches: Vec::new(),
        live_bytes: 0,
        disk_bytes: disk_bytes(&mut session)?,
        fault: None,
    };
    let mut last = number(row, 3);
    if generation != 0 {
        let state = match checkpoint(&mut session, generation, parts)? {
            Ok(state) => Some(state),
            Err(fault) => {
                found.fault = Some(fault);
                None
            }
        };
        found.checkpoint = Some((BatchSeq(last), state));
    }
    while found.fault.is_none() {
        let rows = session.query(BATCHES, &[&(last as i64), &PAGE])?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            match batch_of(row) {
                Ok((seq, bytes)) if seq.0 == last + 1 => {
                    last = seq.0;
                    found.batches.push((seq, bytes));
                }
                Ok((seq, _)) => {
                    let (missing, found_at) = (BatchSeq(last + 1).to_string(), seq.to_string());
                    found.fault = Some(IntegrityFault::Gap { missing, found: found_at });
                    break;
                }
                Err(OpenError::Damaged(fault)) => {
                    found.fault = Some(fault);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    let state = found.checkpoint.iter().flat_map(|(_, state)| state).map(Vec::len);
    found.live_bytes = found.batches.iter().map(|(_, batch)| batch.len()).chain(state).sum::<usize>() as u64;
    Ok(Some(found))
}

fn checkpoint(
    session: &mut Session,
    generation: i64,
    parts: i32,
) -> Result<Result<Vec<u8>, IntegrityFault>, StoreError> {
    let rows = session.query(PARTS, &[&generation, &parts])?;
    let mut state = Vec::new();
    for (next, row) in (0_i32..).zip(&rows) {
        let (part, stored, bytes): (i32, &[u8], &[u8]) = (row.get(0), row.get(1), row.get(2));
        let place = format!("checkpoint {generation}, part {next}");
        if part != next {
            return Ok(Err(IntegrityFault::Gap { missing: place, found: format!("part {part}") }));
        }
        if *stored != digest(part as u64, bytes) {
            return Ok(Err(IntegrityFault::BadFrame { place, reason: "its digest does not fit" }));
        }
        state.extend_from_slice(bytes);
    }
    if rows.len() == usize::try_from(parts).unwrap_or(0) {
        return Ok(Ok(state));
    }
    let missing = format!("checkpoint {generation}, part {}", rows.len());
    Ok(Err(IntegrityFault::Gap { missing, found: format!("{} of {parts} parts", rows.len()) }))
}

fn disk_bytes(session: &mut Session) -> Result<u64, StoreError> {
    let sql = "SELECT pg_total_relation_size('batches') + pg_total_relation_size('checkpoint_parts')";
    Ok(number(&session.query_one(sql, &[])?, 0))
}
