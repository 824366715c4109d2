//! From an order to a process.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use atoll_model::time::Timestamp;
use rustix::io::Errno;
use site_agent_spawn::Circumstances;

use super::kept::Keeping;
use super::{Current, NOTE_AFTER, Process, Runner, now_timestamp};
use crate::shim::account::Account;
use crate::shim::enclosure::enclosure;
use crate::shim::protocol::{Common, End, EndKind, Left, Notice, Order, Terms};
use crate::shim::scratch::Scratch;
use crate::shim::spent::Spent;

impl Runner {
    pub(super) fn start(&mut self, common: Rc<Common>, order: Order, now: Instant) {
        let started_at = now_timestamp();
        let key = order.key;
        match self.try_start(&common, &order, started_at, now) {
            Ok((process, keeping)) => {
                let scratch = common.terms.scratch_bytes.map(|bytes| Scratch::new(bytes, now));
                if keeping.is_none() {
                    self.notices.push(Notice::Started { key, at: started_at });
                }
                self.current = Some(Current {
                    key,
                    deadline: common.time.map(|time| (now + time, EndKind::TimedOut)),
                    common,
                    process,
                    started_at,
                    look_at: now + NOTE_AFTER,
                    noted: false,
                    stopped: None,
                    clearing: None,
                    scratch,
                    keeping,
                });
            }
            Err(error) => {
                let program = common.command.first().map(|program| String::from_utf8_lossy(program).into_owned());
                let why = match Errno::from_io_error(&error) {
                    Some(Errno::NOEXEC) => {
                        "it is neither a program for this machine nor a script that begins with `#!` and what runs it"
                            .to_owned()
                    }
                    _ => error.to_string(),
                };
                let message = format!("{} cannot be started: {why}", program.unwrap_or_default());
                let end = End {
                    started_at,
                    finished_at: started_at,
                    how: EndKind::NotStarted { message, no_space: error.kind() == io::ErrorKind::StorageFull },
                    spent: Spent::default(),
                    left: Left::default(),
                };
                self.note_end(key, end);
            }
        }
    }

    fn try_start(
        &mut self,
        common: &Rc<Common>,
        order: &Order,
        started_at: Timestamp,
        now: Instant,
    ) -> io::Result<(Process, Option<Box<Keeping>>)> {
        if std::mem::replace(&mut self.dirty, true) {
            self.slot.clean()?;
        }
        self.log.claimed(order.key, started_at);
        if common.synced_claim {
            self.log.sync()?
        } else {
            self.log.write()?
        }
        self.slot.part_with_watched_logs()?;
        self.slot.belong_to(common.account.as_ref())?;
        let keeping = common.kept.as_ref().map(|kept| Keeping::new(kept, common, order.clone(), self.slot.work(), now));
        let keeping = keeping.transpose()?.map(Box::new);
        Ok((self.launch(common, order)?, keeping))
    }

    /// Starts what an execution runs in, for the first time or again.
    pub(super) fn launch(&mut self, common: &Rc<Common>, order: &Order) -> io::Result<Process> {
        if common.worker.is_some() {
            return self.call(common, order);
        }
        if let Some(container) = &common.container {
            return self.contain(common, container, order);
        }
        self.limits.apply(common)?;
        // Everything else is inherited as it is: the work directory, no input, the slot's two logs.
        let program = self.prepared.program(common, &self.slot);
        let identity = common.account.as_ref().map(Account::identity);
        let spawned = program.and_then(|program| match (&common.terms, &identity) {
            (Terms { enclosed: None, scratch_bytes: None }, None) => self.spawner.spawn(program, &order.environment),
            (Terms { enclosed, scratch_bytes }, identity) => {
                let enclosure =
                    enclosed.as_ref().map(|enclosed| enclosure(enclosed, self.slot.own_folders(), Some(order.key)));
                let enclosure = enclosure.transpose()?;
                let circumstances = Circumstances {
                    enclosure: enclosure.as_ref(),
                    identity: identity.as_ref(),
                    file_bytes_max: *scratch_bytes,
                    ..Circumstances::default()
                };
                self.spawner.spawn_under(program, &order.environment, circumstances)
            }
        });
        self.limits.started();
        Ok(Process::Own(spawned?))
    }
}
