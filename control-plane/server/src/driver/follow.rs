//! A server that stands by: one thread fetches what the leader has made durable and takes the lead when it can, the core's
//! applies it and answers questions. From the moment that it leads, the core's thread is the driver's as everywhere.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use atoll_model::time::Timestamp;
use control_plane_core::{Config, ControlPlane, Rejection};
use control_plane_postgres::{Contents, Leader, News, OpenError, Standby, Taken};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::clock::{Clock, wall_clock};
use super::deletion::BucketOrder;
use super::recovery::{decode, recover};
use super::start::{Driver, DriverError, End, Lead, Outside, panicked, spawn};
use super::{Handle, Input, Notices};
use crate::history::Keep;
use crate::telemetry::Meters;

const STANDBY: &str = "standby";
/// How often the database is asked for what is new: reads of a standby are behind by so much.
const POLL: Duration = Duration::from_millis(50);
/// Before a database that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// What a server begins with that may have to follow another.
pub(crate) struct Following {
    pub(crate) config: Config,
    pub(crate) standby: Standby,
    pub(crate) contents: Contents,
    pub(crate) deletions: mpsc::UnboundedSender<BucketOrder>,
    pub(crate) history: mpsc::UnboundedSender<Keep>,
    pub(crate) notices: Notices,
    pub(crate) meters: Arc<Meters>,
}

/// Recovers the core and starts the threads.
///
/// # Errors
/// When the journal holds what cannot be read, or a thread cannot be started.
pub(crate) fn follow(following: Following) -> Result<(Handle, Driver), DriverError> {
    let Following { config, standby, contents, deletions, history, notices, meters } = following;
    let mut clock = Clock::start(Timestamp::ZERO);
    let checkpoint_bytes = bytes_of(&contents);
    let core = recover(config.clone(), contents.format, contents.checkpoint, &contents.batches, clock.read())?;
    let (leader, seen) = watch::channel(Some(standby.leader().clone()));
    let (handle, inputs) = Handle::new(notices.clone(), seen);
    let inbox = handle.inbox.downgrade();
    let outside = Outside { inbox: inbox.clone(), deletions, history, notices, meters };
    let follower = Follower { config, core, clock, leader: leader.clone(), checkpoint_bytes };
    let driver = spawn(move |runtime, end| {
        let fetch = {
            let end = end.clone();
            move || fetch(standby, &inbox, &leader, &end)
        };
        let start = |source| DriverError::Start { thread: STANDBY, source };
        let fetching = thread::Builder::new().name(STANDBY.to_owned()).spawn(fetch).map_err(start)?;
        let result = follower.run(outside, inputs, runtime, end);
        fetching.join().map_err(|panic| panicked(STANDBY, &*panic))?;
        result
    })?;
    Ok((handle, driver))
}

fn bytes_of(contents: &Contents) -> u64 {
    contents.checkpoint.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64)
}

/// Fetches until this server leads, or nobody wants it any more.
fn fetch(mut standby: Standby, inbox: &mpsc::WeakSender<Input>, leader: &watch::Sender<Option<Leader>>, end: &End) {
    let mut was_reached = true;
    loop {
        // Only held while something is handed over, so that the core's thread learns when nobody else is there.
        let Some(hand_over) = inbox.upgrade() else { return };
        if hand_over.is_closed() {
            return;
        }
        let pause = match look(&mut standby, leader) {
            Ok(Found::Lead(taken)) => {
                // If nobody takes it, the lease is given back at once.
                let _ = hand_over.blocking_send(Input::Lead(taken));
                return;
            }
            Ok(Found::News(News::Nothing)) => {
                was_reached = true;
                POLL
            }
            Ok(Found::News(news)) => {
                // A core's thread that has ended is noticed at the next turn.
                let _ = hand_over.blocking_send(Input::News(news));
                Duration::ZERO
            }
            Err(OpenError::Store(error)) if error.is_transient() => {
                if was_reached {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the database cannot be reached: it is tried again until it can");
                }
                was_reached = false;
                RETRY
            }
            Err(error) => {
                // It may have ended for another reason already.
                let _ = end.try_send(Err(error.into()));
                return;
            }
        };
        drop(hand_over);
        thread::sleep(pause);
    }
}

enum Found {
    News(News),
    Lead(Box<Taken>),
}

fn look(standby: &mut Standby, leader: &watch::Sender<Option<Leader>>) -> Result<Found, OpenError> {
    let news = standby.poll()?;
    leader.send_if_modified(|known| {
        let is_new = known.as_ref() != Some(standby.leader());
        *known = Some(standby.leader().clone());
        is_new
    });
    if news == News::Nothing
        && let Some(taken) = standby.try_lead()?
    {
        return Ok(Found::Lead(Box::new(taken)));
    }
    Ok(Found::News(news))
}

struct Follower {
    config: Config,
    core: ControlPlane,
    clock: Clock,
    leader: watch::Sender<Option<Leader>>,
    checkpoint_bytes: u64,
}

impl Follower {
    fn run(
        mut self,
        outside: Outside,
        mut inputs: mpsc::Receiver<Input>,
        runtime: &Runtime,
        end: &End,
    ) -> Result<(), DriverError> {
        let taken = loop {
            let Some(input) = runtime.block_on(inputs.recv()) else { return Ok(()) };
            match input {
                // Everything that is known here is durable.
                Input::Query(query) => query.ask(&self.core)(),
                Input::Request { reply, .. } => {
                    // Whoever asked may be gone.
                    let _ = reply.send(Err(self.refusal()));
                }
                // An agent whose stream is dropped looks for the leader.
                Input::Connected { .. } | Input::Event(_) => {}
                Input::News(news) => self.apply(news, &outside.notices)?,
                Input::Lead(taken) => break taken,
                Input::Shutdown => {
                    outside.notices.end();
                    return Ok(());
                }
            }
        };
        self.lead(*taken, outside, inputs, runtime, end)
    }

    fn lead(
        mut self,
        taken: Taken,
        outside: Outside,
        inputs: mpsc::Receiver<Input>,
        runtime: &Runtime,
        end: &End,
    ) -> Result<(), DriverError> {
        let Taken { mut journal, news } = taken;
        for news in news {
            self.apply(news, &outside.notices)?;
        }
        let config = Config { started_at: wall_clock(), ..self.config };
        let core = self.core.take_over(config, self.clock.read());
        let deposed = journal.take_end();
        tracing::info!(epoch = journal.epoch(), "this server leads now");
        self.leader.send_replace(None);
        outside.notices.refresh();
        let checkpoint_bytes = self.checkpoint_bytes;
        let lead = Lead { core, clock: self.clock, log: Box::new(journal), deposed, checkpoint_bytes };
        lead.run(outside, inputs, runtime, end)
    }

    fn apply(&mut self, news: News, notices: &Notices) -> Result<(), DriverError> {
        match news {
            News::Nothing => {}
            News::Batches(batches) => {
                let mut facts = Vec::new();
                for (batch, bytes) in batches {
                    let undecodable = |source| DriverError::Decode { what: batch.to_string(), source };
                    decode(&bytes, &mut facts).map_err(undecodable)?;
                }
                // Watchers ask the core when they are told, and the core's thread answers after this.
                notices.tell(&facts);
                self.core.follow(facts);
            }
            News::Anew(contents) => {
                self.checkpoint_bytes = bytes_of(&contents);
                let now = self.clock.read();
                let Contents { checkpoint, batches, format } = contents;
                self.core = recover(self.config.clone(), format, checkpoint, &batches, now)?;
                notices.refresh();
            }
        }
        Ok(())
    }

    fn refusal(&self) -> Rejection {
        let leader =
            self.leader.borrow().as_ref().filter(|leader| leader.is_alive).map(|leader| leader.api_url.clone());
        Rejection::Unavailable(match leader {
            Some(url) => format!("this server stands by; {url} leads"),
            None => "this server stands by, and none leads at the moment".to_owned(),
        })
    }
}
