//! The leader's lease: renewed by a thread of its own, so that it lasts while a large batch is written, and no longer than
//! the database can be reached.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::address::Address;
use crate::error::StoreError;
use crate::session::Session;

/// How long a leader is believed unheard. Another takes over within moments of its end.
pub const LEASE: Duration = Duration::from_secs(3);
/// Six attempts before it is over.
const RENEWAL: Duration = Duration::from_millis(500);
/// How much earlier it is over for its holder than for the others, so that both never lead.
const MARGIN: Duration = Duration::from_millis(500);
/// Before the database is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a leader leads no more.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("another server has taken the lead from epoch {epoch}")]
    Superseded { epoch: u64 },
    #[error("the leader's lease could not be renewed in time")]
    Unrenewed(#[source] StoreError),
}

const RENEW: &str = "UPDATE lease SET expires_at = clock_timestamp() + $2::float8 * interval '1 second'
    WHERE epoch = $1 RETURNING epoch";
const RELEASE: &str = "UPDATE lease SET expires_at = '-infinity' WHERE epoch = $1 RETURNING epoch";

/// Held as long as this server is to lead; released when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Its end ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
    valid_until: Arc<Mutex<Instant>>,
}

impl Lease {
    /// Keeps the lease that was asked for at `asked`. The receiver hears of its end, unless it is dropped.
    pub(crate) fn keep(
        address: Address,
        epoch: u64,
        asked: Instant,
    ) -> Result<(Self, oneshot::Receiver<Ended>), StoreError> {
        let (stop, stopped) = channel();
        let (end, ended) = oneshot::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let valid_until = Arc::new(Mutex::new(asked + LEASE - MARGIN));
        let keeper = Keeper { address, epoch, valid_until: Arc::clone(&valid_until), session: None };
        let over = Arc::clone(&is_over);
        let work = move || {
            if let Err(reason) = keeper.run(&stopped) {
                over.store(true, Ordering::Release);
                // Whoever would hear it is going down already.
                let _ = end.send(reason);
            }
        };
        let thread = thread::Builder::new().name("lease".to_owned()).spawn(work).map_err(StoreError::Runtime)?;
        Ok((Self { stop: Some(stop), thread: Some(thread), is_over, valid_until }, ended))
    }

    /// Whether it will not be renewed any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// By the time it was last renewed at, whether or not its thread has noticed: after a pause of the process the others
    /// may have gone on.
    pub(crate) fn is_over(&self) -> bool {
        self.is_lost() || Instant::now() >= read(&self.valid_until)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of the leader's lease has failed");
        }
    }
}

struct Keeper {
    address: Address,
    epoch: u64,
    valid_until: Arc<Mutex<Instant>>,
    session: Option<Session>,
}

fn read(until: &Mutex<Instant>) -> Instant {
    *until.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    fn run(mut self, stopped: &Receiver<()>) -> Result<(), Ended> {
        let mut pause = RENEWAL;
        loop {
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                    self.release();
                    return Ok(());
                }
            }
            let asked = Instant::now();
            match self.ask(RENEW, &[&(self.epoch as i64), &LEASE.as_secs_f64()]) {
                Ok(true) => {
                    *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner) = asked + LEASE - MARGIN;
                    pause = RENEWAL;
                }
                Ok(false) => return Err(Ended::Superseded { epoch: self.epoch }),
                Err(error) => {
                    if Instant::now() + PAUSE >= read(&self.valid_until) {
                        return Err(Ended::Unrenewed(error));
                    }
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not renew the leader's lease");
                    self.session = None;
                    pause = PAUSE;
                }
            }
        }
    }

    /// Whether the row still says our epoch. Waits no longer than the lease lasts.
    fn ask(&mut self, sql: &'static str, parameters: crate::session::Parameters<'_>) -> Result<bool, StoreError> {
        let left = read(&self.valid_until).saturating_duration_since(Instant::now()).max(PAUSE);
        let session = match &mut self.session {
            Some(session) => session,
            empty => {
                let session = Session::open(&self.address, left)?;
                // A renewal that a crash of the database undoes only ends the lease early; waiting for a slow disk would, too.
                session.execute_all("SET synchronous_commit = off")?;
                empty.insert(session)
            }
        };
        session.set_patience(left);
        Ok(!session.query(sql, parameters)?.is_empty())
    }

    /// Lets the next leader begin at once.
    fn release(&mut self) {
        if let Err(error) = self.ask(RELEASE, &[&(self.epoch as i64)]) {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not give the leader's lease back");
        }
    }
}
