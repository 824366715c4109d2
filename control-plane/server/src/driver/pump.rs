//! The core's thread: drains what has arrived, handles it, hands it on as one batch.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use atoll_model::time::Timestamp;
use control_plane_core::{ControlPlane, Event};
use tokio::sync::mpsc;

use super::Input;
use super::batch::{Batch, Effect};
use super::clock::Clock;
use crate::telemetry::Meters;

/// Inputs that are handled before their facts are handed on: enough that one wake-up serves a burst, few enough that the
/// first of them does not wait long for the last.
const DRAIN_MAX: usize = 1_024;
/// Encoded facts after which a batch is handed on, whatever is still waiting: far below what the journal takes at once.
const BATCH_BYTES: usize = 4 << 20;
/// Longest sleep, so that a clock that is set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

pub(super) struct Pump {
    core: ControlPlane,
    clock: Clock,
    inputs: mpsc::Receiver<Input>,
    batches: SyncSender<Batch>,
    meters: Arc<Meters>,
    batch: Batch,
    /// Sites that were held back when it was last looked.
    held_back: usize,
}

/// Whether there is anything more to do.
enum Next {
    GoOn,
    Stop,
}

impl Pump {
    pub(super) fn new(
        core: ControlPlane,
        clock: Clock,
        inputs: mpsc::Receiver<Input>,
        batches: SyncSender<Batch>,
        meters: Arc<Meters>,
    ) -> Self {
        Self { core, clock, inputs, batches, meters, batch: Batch::default(), held_back: 0 }
    }

    /// Runs until every handle is gone, a shutdown was asked for, or the journal's thread has ended.
    pub(super) fn run(mut self, runtime: &tokio::runtime::Runtime) {
        let mut drained = Vec::with_capacity(DRAIN_MAX);
        loop {
            let now = self.clock.read();
            let patience = self.core.next_timeout().map_or(SLEEP_MAX, |due| due.saturating_since(now).min(SLEEP_MAX));
            let arrived = runtime.block_on(async {
                tokio::time::timeout(patience, self.inputs.recv_many(&mut drained, DRAIN_MAX)).await
            });
            if arrived == Ok(0) {
                return;
            }
            let now = self.clock.read();
            self.meters.driver_batch.observe(drained.len() as f64);
            for input in drained.drain(..) {
                if matches!(self.take(input, now), Next::Stop) {
                    return;
                }
            }
            if self.core.next_timeout().is_some_and(|due| due <= now) {
                self.handle(Event::TimeoutElapsed, now);
            }
            self.tell_of_silence();
            if self.meters.take_snapshot_wish() {
                self.batch.snapshot = Some(Box::new(self.core.snapshot()));
            }
            if matches!(self.hand_on(), Next::Stop) {
                return;
            }
        }
    }

    /// Says when sites are held back from being declared lost, once for each time that it comes to it.
    fn tell_of_silence(&mut self) {
        let sites = self.core.held_back();
        if self.held_back == 0 && sites > 0 {
            tracing::error!(
                sites,
                "many sites fell silent together: none of them is declared lost until a person says so"
            );
        } else if self.held_back > 0 && sites == 0 {
            tracing::info!("no site is held back from being declared lost any more");
        }
        self.held_back = sites;
    }

    fn take(&mut self, input: Input, now: Timestamp) -> Next {
        match input {
            Input::Event(event) => {
                let lost = match &event {
                    Event::ConnectionLost { connection } => Some(*connection),
                    Event::Request { .. }
                    | Event::FrameReceived { .. }
                    | Event::BucketObjectDeleted { .. }
                    | Event::BucketObjectSeen { .. }
                    | Event::RunKept { .. }
                    | Event::TimeoutElapsed => None,
                };
                self.handle(event, now);
                self.batch.effects.extend(lost.map(|connection| Effect::Disconnect { connection }));
            }
            Input::Request { request, body, reply } => {
                self.batch.effects.push(Effect::Expect { request, reply });
                self.handle(Event::Request { request, body }, now);
            }
            Input::Query(query) => {
                let answer = query.ask(&self.core);
                self.batch.effects.push(Effect::Answer(answer));
            }
            // Only what follows is sent these; a leader has taken the last of them in already.
            Input::News(_) | Input::Lead(_) => {}
            Input::Connected { connection, frames } => {
                self.batch.effects.push(Effect::Connect { connection, frames });
            }
            Input::Shutdown => {
                self.batch.effects.push(Effect::Farewell);
                // Nothing can be done about a journal that has ended already.
                let _ = self.hand_on();
                return Next::Stop;
            }
        }
        if self.batch.bytes.len() >= BATCH_BYTES { self.hand_on() } else { Next::GoOn }
    }

    fn handle(&mut self, event: Event, now: Timestamp) {
        let step = self.core.handle(event, now);
        for fact in &step.facts {
            postcard::to_io(fact, &mut self.batch.bytes).expect("a fact can be encoded into memory");
        }
        self.batch.facts.extend(step.facts);
        self.batch.effects.extend(step.commands.into_iter().map(Effect::Command));
    }

    /// Waits while the journal is behind, so that what arrives meanwhile waits with its senders.
    fn hand_on(&mut self) -> Next {
        if self.batch.is_empty() {
            return Next::GoOn;
        }
        match self.batches.send(std::mem::take(&mut self.batch)) {
            Ok(()) => Next::GoOn,
            Err(_) => Next::Stop,
        }
    }
}
