//! The journal as its leader writes it.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use storage_sync_journal::{BATCH_BYTES_MAX, BatchSeq, JournalError, JournalId, JournalStats};
use tokio::sync::oneshot;

use crate::address::Address;
use crate::error::{OpenError, StoreError};
use crate::lease::{Ended, LEASE, Lease};
use crate::session::{ANSWER_MAX, Session};
use crate::standby::{Contents, Member, Standby, Taken};

/// Batches that wait for a barrier before one is made unasked.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// A checkpoint is written in parts of this size, so that none is too large for a message or a row.
const PART_BYTES: usize = 8 << 20;
/// How long a database that is started again is waited for, if the lease lasts.
const OUTAGE_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

/// What a leader begins with.
pub(crate) struct Beginning {
    pub(crate) identity: JournalId,
    pub(crate) format: u16,
    pub(crate) epoch: u64,
    pub(crate) last: u64,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) batch_bytes: u64,
}

/// A journal that this process leads. Used from one thread.
pub struct PostgresJournal {
    address: Address,
    session: Session,
    lease: Lease,
    lost: Option<oneshot::Receiver<Ended>>,
    identity: JournalId,
    format: u16,
    epoch: u64,
    /// The last batch that was appended.
    last: u64,
    /// The last batch that a barrier has covered.
    durable: u64,
    pending: Vec<(i64, Vec<u8>)>,
    pending_bytes: usize,
    failed: bool,
    stats: JournalStats,
}

impl fmt::Debug for PostgresJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresJournal")
            .field("epoch", &self.epoch)
            .field("last", &self.last)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

/// Adds batches if the leader's row says the epoch, which it holds locked to the end of the transaction. A batch that is
/// there already was written by an earlier attempt, whose answer was lost. Says whether the epoch is right, and the last
/// batch before these.
const APPEND: &str = "WITH fence AS MATERIALIZED (SELECT 1 FROM leader WHERE epoch = $1 FOR SHARE),
    added AS (
        INSERT INTO batches (seq, epoch, digest, bytes)
        SELECT new.seq, $1, new.digest, new.bytes
        FROM fence, unnest($2::bigint[], $3::bytea[], $4::bytea[]) AS new (seq, digest, bytes)
        ON CONFLICT (seq) DO NOTHING
    )
    SELECT EXISTS (SELECT FROM fence),
        greatest((SELECT max(seq) FROM batches), (SELECT checkpoint_seq FROM journal))";
const ADD_PART: &str = "WITH fence AS MATERIALIZED (SELECT 1 FROM leader WHERE epoch = $1 FOR SHARE),
    added AS (
        INSERT INTO checkpoint_parts (generation, part, digest, bytes)
        SELECT checkpoint_generation + 1, $2, $3, $4 FROM fence, journal
        ON CONFLICT (generation, part) DO UPDATE SET digest = excluded.digest, bytes = excluded.bytes
    )
    SELECT EXISTS (SELECT FROM fence)";
/// From this statement on the new checkpoint counts, and everything that it stands for is gone. Repeated by the same leader
/// it changes nothing, because it names the generation before.
const SWITCH: &str = "WITH fence AS MATERIALIZED (SELECT 1 FROM leader WHERE epoch = $1 FOR SHARE),
    switched AS (
        UPDATE journal SET checkpoint_seq = $2, checkpoint_parts = $3, checkpoint_format = $4,
            checkpoint_generation = checkpoint_generation + 1
        FROM fence WHERE checkpoint_generation = $5
    ),
    batches_gone AS (DELETE FROM batches WHERE seq <= $2 AND EXISTS (SELECT FROM fence)),
    parts_gone AS (DELETE FROM checkpoint_parts WHERE generation <= $5 AND EXISTS (SELECT FROM fence))
    SELECT EXISTS (SELECT FROM fence)";

impl PostgresJournal {
    /// Opens the journal as its only user, which is what tools and tests want; servers follow it first.
    ///
    /// # Errors
    /// As [`Standby::open`], and [`OpenError::Held`] if another server leads.
    pub fn open(address: Address, member: Member, format: u16) -> Result<(Self, Contents, Standby), OpenError> {
        let (mut standby, mut contents) = Standby::open(address, member, format)?;
        let Some(Taken { journal, news }) = standby.try_lead()? else {
            return Err(OpenError::Held { holder: standby.leader().name.clone() });
        };
        news.into_iter().for_each(|news| contents.extend(news));
        Ok((journal, contents, standby))
    }

    pub(crate) fn begin(
        address: Address,
        session: Session,
        beginning: Beginning,
        asked: Instant,
    ) -> Result<Self, StoreError> {
        let Beginning { identity, format, epoch, last, checkpoint_bytes, batch_bytes } = beginning;
        let (lease, lost) = Lease::keep(address.clone(), epoch, asked)?;
        let live_bytes = checkpoint_bytes + batch_bytes;
        let stats = JournalStats { live_bytes, batch_bytes, ballast_held: true, ..JournalStats::default() };
        let mut journal = Self {
            address,
            session,
            lease,
            lost: Some(lost),
            identity,
            format,
            epoch,
            last,
            durable: last,
            pending: Vec::new(),
            pending_bytes: 0,
            failed: false,
            stats,
        };
        journal.measure()?;
        Ok(journal)
    }

    /// Hears why this server leads no more. Whoever owns the journal must end the process then. Can be taken once.
    pub fn take_end(&mut self) -> Option<oneshot::Receiver<Ended>> {
        self.lost.take()
    }

    /// Under which the journal is written; each leader's is higher than the one before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether what needs no append may be done: whoever was superseded is refused by the database when it writes, and
    /// must not answer either. After a pause of the process it waits until the lease is renewed.
    ///
    /// # Errors
    /// [`JournalError::Store`] when the lease is over.
    pub fn may_act(&self) -> Result<(), JournalError> {
        self.usable()?;
        let began = Instant::now();
        while self.lease.is_over() {
            if !self.lease.is_lost() && began.elapsed() < LEASE {
                thread::sleep(PAUSE);
                continue;
            }
            let error = StoreError::Superseded { epoch: self.epoch };
            return Err(JournalError::Store(format!("the leader's lease is over: {error}")));
        }
        Ok(())
    }

    /// Takes in a batch. It is not durable before the next [`Self::barrier`].
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] leaves the journal as it was.
    pub fn append(&mut self, batch: &[u8]) -> Result<BatchSeq, JournalError> {
        self.usable()?;
        if batch.len() > BATCH_BYTES_MAX {
            return Err(JournalError::TooLarge(batch.len()));
        }
        if self.pending_bytes > 0 && self.pending_bytes + batch.len() > PENDING_BYTES_MAX {
            self.barrier()?;
        }
        self.last += 1;
        self.pending.push((self.last as i64, batch.to_vec()));
        self.pending_bytes += batch.len();
        self.stats.appended_batches += 1;
        self.stats.appended_bytes += batch.len() as u64;
        Ok(BatchSeq(self.last))
    }

    /// Commits everything appended so far, in one transaction. A connection that breaks is made again while the lease
    /// lasts.
    ///
    /// # Errors
    /// [`JournalError::Store`] when another server leads, or the database does not come back in time.
    pub fn barrier(&mut self) -> Result<(), JournalError> {
        self.usable()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let seqs: Vec<i64> = pending.iter().map(|(seq, _)| *seq).collect();
        let digests: Vec<[u8; 16]> = pending.iter().map(|(seq, bytes)| digest(*seq as u64, bytes)).collect();
        let digests: Vec<&[u8]> = digests.iter().map(<[u8; 16]>::as_slice).collect();
        let bytes: Vec<&[u8]> = pending.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let (epoch, acknowledged) = (self.epoch as i64, self.durable);
        self.persistently(|session| {
            let row = session.query_one(APPEND, &[&epoch, &seqs, &digests, &bytes])?;
            let found = u64::try_from(row.get::<_, Option<i64>>(1).unwrap_or(0)).unwrap_or(0);
            if row.get::<_, bool>(0) && found < acknowledged {
                return Err(StoreError::Lost { found, acknowledged });
            }
            Ok(row.get(0))
        })?;
        let written = self.pending_bytes as u64;
        self.pending_bytes = 0;
        self.durable = self.last;
        self.stats.live_bytes += written;
        self.stats.batch_bytes += written;
        self.stats.disk_bytes += written;
        self.stats.barriers += 1;
        self.stats.syncs += 1;
        Ok(())
    }

    /// Keeps `state` in place of every batch appended so far, which are then removed.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    pub fn checkpoint(&mut self, state: &[u8]) -> Result<(), JournalError> {
        self.barrier()?;
        let epoch = self.epoch as i64;
        let mut parts = 0;
        for (part, bytes) in (0_i32..).zip(state.chunks(PART_BYTES)) {
            let digest = digest(part as u64, bytes);
            let digest: &[u8] = &digest;
            self.persistently(|session| Ok(session.query_one(ADD_PART, &[&epoch, &part, &digest, &bytes])?.get(0)))?;
            parts = part + 1;
        }
        let mut before = 0_i64;
        self.persistently(|session| {
            before = session.query_one("SELECT checkpoint_generation FROM journal", &[])?.get(0);
            Ok(true)
        })?;
        let (seq, format) = (self.durable as i64, i32::from(self.format));
        self.persistently(|session| Ok(session.query_one(SWITCH, &[&epoch, &seq, &parts, &format, &before])?.get(0)))?;
        self.stats.checkpoints += 1;
        self.stats.batch_bytes = 0;
        self.stats.live_bytes = state.len() as u64;
        self.clean_up();
        Ok(())
    }

    /// Frees the room of what was removed, where that is worth it. Returns whether it did.
    ///
    /// # Errors
    /// After an earlier failure.
    pub fn compact_if_needed(&mut self) -> Result<bool, JournalError> {
        self.usable()?;
        if self.stats.disk_bytes <= 4 * self.stats.live_bytes + (2 << 20) {
            return Ok(false);
        }
        self.clean_up();
        Ok(true)
    }

    /// Which journal this is.
    pub fn identity(&self) -> JournalId {
        self.identity
    }

    /// The last batch that a barrier has covered.
    pub fn durable(&self) -> BatchSeq {
        BatchSeq(self.durable)
    }

    /// Figures; the bytes on disk are those of the last look at the database, and what came since.
    pub fn stats(&self) -> JournalStats {
        self.stats
    }

    fn usable(&self) -> Result<(), JournalError> {
        if self.failed { Err(JournalError::Failed) } else { Ok(()) }
    }

    /// Carries out a statement that may be repeated and says whether this server still leads.
    fn persistently(
        &mut self,
        mut attempt: impl FnMut(&mut Session) -> Result<bool, StoreError>,
    ) -> Result<(), JournalError> {
        let began = Instant::now();
        let epoch = self.epoch;
        loop {
            let error = match attempt(&mut self.session) {
                Ok(true) => return Ok(()),
                Ok(false) => StoreError::Superseded { epoch },
                Err(error) => error,
            };
            if !error.is_transient() || self.lease.is_over() || began.elapsed() > OUTAGE_MAX {
                self.failed = true;
                return Err(JournalError::Store(with_causes(&error)));
            }
            tracing::warn!(error = &error as &dyn std::error::Error, "writing to the database is tried again");
            thread::sleep(PAUSE);
            if let Ok(session) = Session::open(&self.address, ANSWER_MAX) {
                self.session = session;
            }
        }
    }

    /// What was removed is room for others only after a vacuum; the database's own comes too late where much is removed.
    fn clean_up(&mut self) {
        let cleaned =
            ["VACUUM batches", "VACUUM checkpoint_parts"].iter().try_for_each(|sql| self.session.maintain(sql));
        if let Err(error) = cleaned.and_then(|()| self.measure()) {
            // The next one does it, or the database by itself.
            tracing::warn!(error = &error as &dyn std::error::Error, "could not free the room of what was removed");
        }
    }

    fn measure(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT pg_total_relation_size('batches') + pg_total_relation_size('checkpoint_parts')";
        let row = self.session.query_one(sql, &[])?;
        self.stats.disk_bytes = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        Ok(())
    }
}

/// The first half of the BLAKE3 hash of a place and what stands there.
pub(crate) fn digest(place: u64, bytes: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&place.to_be_bytes()).update(bytes);
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

fn with_causes(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
