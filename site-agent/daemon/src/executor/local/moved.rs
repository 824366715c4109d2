//! What is done without a process: bytes that come over the border of the site, or leave it.

use site_agent_core::Event;
use storage_sync_engine::store::Stored;

use super::Local;
use super::attempts::Phase;
use super::recovery::exit;
use super::staging::StagingFailure;
use crate::clock::wall_clock;
use crate::shim::protocol::{End, EndKind, Key, Left};
use crate::shim::spent::Spent;

impl Local {
    pub(super) fn imported(&mut self, key: Key, result: Result<Stored, StagingFailure>) {
        let Some(known) = self.attempts.get_mut(key) else { return };
        match result {
            Err(_) if matches!(known.phase, Phase::Staging { killed: true, .. }) => self.killed(key),
            Err(failure) => self.cannot_start(key, failure),
            Ok(stored) => {
                known.phase = Phase::Imported { stored: Box::new(stored) };
                self.moved(key, 0);
            }
        }
    }

    pub(super) fn exported(&mut self, key: Key, result: Result<(), StagingFailure>) {
        let Some(known) = self.attempts.get_mut(key) else { return };
        match result {
            Err(_) if matches!(known.phase, Phase::Staging { killed: true, .. }) => self.killed(key),
            Err(failure) => self.cannot_start(key, failure),
            Ok(()) => {
                known.phase = Phase::Ended { left: Left::default(), ran: None };
                let bytes_in = known.bytes_in;
                self.moved(key, bytes_in);
            }
        }
    }

    /// It is told of when it is done: until then an agent that is started anew may begin it again.
    fn moved(&mut self, key: Key, bytes_in: u64) {
        let now = wall_clock();
        let end = End {
            started_at: now,
            finished_at: now,
            how: EndKind::Code(0),
            spent: Spent::default(),
            left: Left::default(),
        };
        let Key { execution, attempt } = key;
        self.events.push(Event::Started { execution, attempt, at: now });
        self.events.push(Event::Exited { execution, attempt, exit: exit(&end, bytes_in), stored: None });
    }

    pub(super) fn cannot_start(&mut self, key: Key, failure: StagingFailure) {
        if let Some(object) = failure.damaged {
            self.events.push(Event::Damaged { object: object.id, kind: object.kind, message: failure.message.clone() });
        }
        self.not_started(key, failure.reason, failure.message);
    }
}
