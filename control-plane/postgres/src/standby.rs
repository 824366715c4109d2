//! A server that follows the journal, and leads it when nobody else does.

use std::fmt;
use std::time::Instant;

use storage_sync_journal::{BatchSeq, IntegrityFault, JournalId};
use tokio_postgres::Row;

use crate::address::Address;
use crate::error::{OpenError, StoreError};
use crate::fence::Fence;
use crate::journal::{Beginning, PostgresJournal, digest};
use crate::lease::LEASE;
use crate::schema;
use crate::session::{ANSWER_MAX, Session};

/// Batches that are fetched at once; the largest is 64 MiB, the usual one a few KiB.
pub(crate) const PAGE: i64 = 64;

/// What a server tells the others of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Process and machine, for people.
    pub name: String,
    /// Where people reach it.
    pub api_url: String,
    /// `host:port` where agents reach it.
    pub agent_address: String,
    /// SHA-256 of the public key of its CA, in hexadecimal.
    pub authority: String,
}

/// Who leads, or did last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// 0 before the first.
    pub epoch: u64,
    pub name: String,
    pub api_url: String,
    pub agent_address: String,
    /// Whether its lease is valid.
    pub is_alive: bool,
}

/// Everything that the journal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The checkpoint, and the last batch that it stands for.
    pub checkpoint: Option<(BatchSeq, Vec<u8>)>,
    /// The batches after the checkpoint, in order, without gaps.
    pub batches: Vec<(BatchSeq, Vec<u8>)>,
    /// The format in which the checkpoint was written, or the batches without one.
    pub format: u16,
}

impl Contents {
    /// Adds what came later.
    pub fn extend(&mut self, news: News) {
        match news {
            News::Nothing => {}
            News::Batches(batches) => self.batches.extend(batches),
            News::Anew(contents) => *self = contents,
        }
    }
}

/// What has come since the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// The next batches, without gaps.
    Batches(Vec<(BatchSeq, Vec<u8>)>),
    /// A checkpoint has taken the place of batches that were not fetched yet: begin anew.
    Anew(Contents),
}

/// The lead, and what was still to be applied.
#[derive(Debug)]
pub struct Taken {
    pub journal: PostgresJournal,
    pub news: Vec<News>,
}

/// Follows the journal. Used from one thread; a connection that breaks is made again by the next call.
pub struct Standby {
    address: Address,
    member: Member,
    format: u16,
    session: Option<Session>,
    fence: Fence,
    identity: JournalId,
    created: bool,
    leader: Leader,
    /// The last batch that was handed out.
    last: u64,
    checkpoint_seq: u64,
    checkpoint_bytes: u64,
    batch_bytes: u64,
}

impl fmt::Debug for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standby").field("last", &self.last).field("leader", &self.leader).finish_non_exhaustive()
    }
}

pub(crate) const JOURNAL: &str =
    "SELECT identity, format, authority, checkpoint_seq, checkpoint_generation, checkpoint_parts, checkpoint_format
    FROM journal";
const LEADER: &str =
    "SELECT leader.epoch, holder, api_url, agent_address, expires_at >= clock_timestamp(), checkpoint_seq
    FROM leader, lease, journal";
pub(crate) const BATCHES: &str = "SELECT seq, digest, bytes FROM batches WHERE seq > $1 ORDER BY seq LIMIT $2";
pub(crate) const PARTS: &str =
    "SELECT part, digest, bytes FROM checkpoint_parts WHERE generation = $1 AND part < $2 ORDER BY part";
const TAKE: &str = "WITH taken AS (
        UPDATE leader SET epoch = epoch + 1, holder = $2, api_url = $3, agent_address = $4, since = clock_timestamp()
        WHERE epoch = $1 AND (SELECT expires_at FROM lease) < clock_timestamp()
        RETURNING epoch
    ), leased AS (
        UPDATE lease SET epoch = taken.epoch, expires_at = clock_timestamp() + $5::float8 * interval '1 second' FROM taken
    ), told AS (UPDATE journal SET format = $6, authority = $7 FROM taken)
    SELECT epoch FROM taken";

impl Standby {
    /// Connects, makes the tables or brings them up to date, and reads everything.
    ///
    /// # Errors
    /// When the database cannot be used, its journal is of a newer format or damaged, or it is another installation's.
    pub fn open(address: Address, member: Member, format: u16) -> Result<(Self, Contents), OpenError> {
        let mut session = Session::open(&address, ANSWER_MAX)?;
        schema::migrate(&mut session, &address)?;
        let identity = uuid::Uuid::new_v4().as_u128();
        let made = session.query(
            "INSERT INTO journal (identity, format) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1",
            &[&format!("{identity:032x}"), &i32::from(format)],
        )?;
        session.query(
            "INSERT INTO leader (epoch, holder, api_url, agent_address, since)
             VALUES (0, 'nobody', '', '', '-infinity') ON CONFLICT DO NOTHING",
            &[],
        )?;
        session.query("INSERT INTO lease (epoch, expires_at) VALUES (0, '-infinity') ON CONFLICT DO NOTHING", &[])?;
        let nobody = Leader {
            epoch: 0,
            name: String::new(),
            api_url: String::new(),
            agent_address: String::new(),
            is_alive: false,
        };
        let mut standby = Self {
            address,
            member,
            format,
            session: Some(session),
            fence: Fence::default(),
            identity: JournalId(identity),
            created: !made.is_empty(),
            leader: nobody,
            last: 0,
            checkpoint_seq: 0,
            checkpoint_bytes: 0,
            batch_bytes: 0,
        };
        let contents = standby.load()?;
        standby.look_at_leader()?;
        Ok((standby, contents))
    }

    /// Which journal this is.
    pub fn identity(&self) -> JournalId {
        self.identity
    }

    /// Whether the journal was made by [`Self::open`].
    pub fn is_created(&self) -> bool {
        self.created
    }

    /// What this server writes beside the journal is written under the epoch that it takes the lead with.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Who led when the journal was looked at last.
    pub fn leader(&self) -> &Leader {
        &self.leader
    }

    /// Fetches what the leader has made durable meanwhile, and looks who it is.
    ///
    /// # Errors
    /// When the database cannot be reached, or what it holds is damaged.
    pub fn poll(&mut self) -> Result<News, OpenError> {
        let polled = self.poll_once();
        if polled.is_err() {
            self.session = None;
        }
        polled
    }

    fn poll_once(&mut self) -> Result<News, OpenError> {
        let checkpoint_seq = self.look_at_leader()?;
        let last = self.last;
        let rows = self.session()?.query(BATCHES, &[&(last as i64), &PAGE])?;
        let batches: Vec<(BatchSeq, Vec<u8>)> = rows.iter().map(batch_of).collect::<Result<_, _>>()?;
        match batches.first() {
            Some((first, _)) if first.0 == last + 1 => {
                self.count(&batches)?;
                Ok(News::Batches(batches))
            }
            None if checkpoint_seq <= last => Ok(News::Nothing),
            Some(_) | None => Ok(News::Anew(self.load()?)),
        }
    }

    /// Takes the lead if nobody's lease is valid. After that, this standby is of no use any more.
    ///
    /// # Errors
    /// When the database cannot be reached, or what it holds is damaged.
    pub fn try_lead(&mut self) -> Result<Option<Taken>, OpenError> {
        if self.leader.is_alive {
            return Ok(None);
        }
        let asked = Instant::now();
        let (member, epoch, format) = (self.member.clone(), self.leader.epoch as i64, i32::from(self.format));
        let taken = self.session()?.query(
            TAKE,
            &[
                &epoch,
                &member.name,
                &member.api_url,
                &member.agent_address,
                &LEASE.as_secs_f64(),
                &format,
                &member.authority,
            ],
        )?;
        let Some(row) = taken.first() else { return Ok(None) };
        let epoch = number(row, 0);
        self.fence.lead(epoch);
        // From here on nobody else adds anything.
        let mut news = Vec::new();
        loop {
            match self.poll_once()? {
                News::Nothing => break,
                some @ (News::Batches(_) | News::Anew(_)) => news.push(some),
            }
        }
        let beginning = Beginning {
            identity: self.identity,
            format: self.format,
            epoch,
            last: self.last,
            checkpoint_bytes: self.checkpoint_bytes,
            batch_bytes: self.batch_bytes,
        };
        let session = self.take_session()?;
        let journal = PostgresJournal::begin(self.address.clone(), session, beginning, asked)?;
        Ok(Some(Taken { journal, news }))
    }

    fn session(&mut self) -> Result<&mut Session, StoreError> {
        if self.session.is_none() {
            self.session = Some(Session::open(&self.address, LEASE)?);
        }
        Ok(self.session.as_mut().expect("it was put there"))
    }

    fn take_session(&mut self) -> Result<Session, StoreError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.address, ANSWER_MAX)?,
        };
        session.set_patience(ANSWER_MAX);
        Ok(session)
    }

    /// Returns the last batch that the checkpoint stands for.
    fn look_at_leader(&mut self) -> Result<u64, StoreError> {
        let row = self.session()?.query_one(LEADER, &[])?;
        self.leader = Leader {
            epoch: number(&row, 0),
            name: row.get(1),
            api_url: row.get(2),
            agent_address: row.get(3),
            is_alive: row.get(4),
        };
        Ok(number(&row, 5))
    }

    /// Reads everything as it stood at one moment.
    fn load(&mut self) -> Result<Contents, OpenError> {
        self.session()?.execute_all("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
        let loaded = self.load_at_once();
        if loaded.is_err() {
            // A connection that is in the middle of something is of no use.
            self.session = None;
        }
        let contents = loaded?;
        self.session()?.execute_all("COMMIT")?;
        Ok(contents)
    }

    fn load_at_once(&mut self) -> Result<Contents, OpenError> {
        let row = self.session()?.query_one(JOURNAL, &[])?;
        let (identity, format, authority): (String, i32, Option<String>) = (row.get(0), row.get(1), row.get(2));
        let (generation, parts): (i64, i32) = (row.get(4), row.get(5));
        let found = format_of(format);
        if found > self.format {
            return Err(OpenError::Newer { found, supported: self.format });
        }
        let format = if generation == 0 { found } else { format_of(row.get(6)) };
        let unreadable = || OpenError::Damaged(IntegrityFault::Description(format!("the identity {identity:?}")));
        self.identity = JournalId(u128::from_str_radix(&identity, 16).map_err(|_| unreadable())?);
        if let Some(theirs) = authority.filter(|theirs| *theirs != self.member.authority) {
            return Err(OpenError::OtherAuthority { theirs, ours: self.member.authority.clone() });
        }
        self.checkpoint_seq = number(&row, 3);
        self.last = self.checkpoint_seq;
        (self.checkpoint_bytes, self.batch_bytes) = (0, 0);
        let checkpoint = match generation {
            0 => None,
            generation => Some((BatchSeq(self.last), self.load_checkpoint(generation, parts)?)),
        };
        self.checkpoint_bytes = checkpoint.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
        let mut batches = Vec::new();
        loop {
            let last = self.last as i64;
            let rows = self.session()?.query(BATCHES, &[&last, &PAGE])?;
            let page: Vec<(BatchSeq, Vec<u8>)> = rows.iter().map(batch_of).collect::<Result<_, _>>()?;
            if page.is_empty() {
                return Ok(Contents { checkpoint, batches, format });
            }
            self.count(&page)?;
            batches.extend(page);
        }
    }

    fn load_checkpoint(&mut self, generation: i64, parts: i32) -> Result<Vec<u8>, OpenError> {
        let rows = self.session()?.query(PARTS, &[&generation, &parts])?;
        let mut state = Vec::new();
        let mut next = 0;
        for row in &rows {
            let (part, stored, bytes): (i32, &[u8], &[u8]) = (row.get(0), row.get(1), row.get(2));
            if part != next {
                break;
            }
            if *stored != digest(part as u64, bytes) {
                let place = format!("checkpoint {generation}, part {part}");
                return Err(OpenError::Damaged(IntegrityFault::BadFrame { place, reason: "its digest does not fit" }));
            }
            state.extend_from_slice(bytes);
            next += 1;
        }
        if next == parts {
            return Ok(state);
        }
        let missing = format!("checkpoint {generation}, part {next}");
        Err(OpenError::Damaged(IntegrityFault::Gap { missing, found: format!("{} of {parts} parts", rows.len()) }))
    }

    /// Moves on, and makes sure that nothing is missing.
    fn count(&mut self, batches: &[(BatchSeq, Vec<u8>)]) -> Result<(), OpenError> {
        for (seq, bytes) in batches {
            if seq.0 != self.last + 1 {
                let (missing, found) = (BatchSeq(self.last + 1).to_string(), seq.to_string());
                return Err(OpenError::Damaged(IntegrityFault::Gap { missing, found }));
            }
            self.last = seq.0;
            self.batch_bytes += bytes.len() as u64;
        }
        Ok(())
    }
}

pub(crate) fn batch_of(row: &Row) -> Result<(BatchSeq, Vec<u8>), OpenError> {
    let (seq, stored, bytes) = (number(row, 0), row.get::<_, &[u8]>(1), row.get::<_, &[u8]>(2));
    if *stored == digest(seq, bytes) {
        return Ok((BatchSeq(seq), bytes.to_vec()));
    }
    let place = BatchSeq(seq).to_string();
    Err(OpenError::Damaged(IntegrityFault::BadFrame { place, reason: "its digest does not fit" }))
}

pub(crate) fn format_of(column: i32) -> u16 {
    u16::try_from(column).unwrap_or(u16::MAX)
}

/// A number that is never negative, as PostgreSQL keeps it.
pub(crate) fn number(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).unwrap_or(0)
}
