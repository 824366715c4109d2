//! B6: the journal of the control plane is restored from a backup, so that everybody else knows more than it does.
//!
//! What the backup lacks is gone where no agent knows of it: runs that were submitted since are submitted again by those
//! who want them, and run anew.

use std::collections::{BTreeMap, BTreeSet};

use atoll_model::id::{Attempt, ExecutionId, RunId, SiteId};
use control_plane_core::{Command, ControlPlane, Event, Fact, FinishedRun, Request, RequestId, Snapshot};

use crate::journal::{File, Pending};
use crate::world::{Occurrence, World};

/// A copy of the journal and of the history, with what counted then.
#[derive(Debug)]
pub(crate) struct Backup {
    file: File<Snapshot, Fact>,
    kept_runs: BTreeMap<RunId, FinishedRun>,
    current: BTreeMap<ExecutionId, (Attempt, SiteId)>,
    /// Sites so far, and those of them that were revoked.
    sites: (usize, usize),
}

impl World {
    /// Once every site has joined: one that has joined since knows a control plane that does not know it.
    pub(crate) fn back_up(&mut self) {
        if !self.sites.iter().all(|site| site.enrolled) {
            return;
        }
        self.trace(|| "the journal is copied".to_owned());
        self.store.backup = Some(Backup {
            file: self.store.file.copy(),
            kept_runs: self.kept_runs.clone(),
            current: self.history.current.clone(),
            sites: self.sites_so_far(),
        });
    }

    fn sites_so_far(&self) -> (usize, usize) {
        (self.sites.len(), self.history.revoked.len())
    }

    /// All servers are stopped, and begin again with what they had; somebody says so, or leaves them to find out.
    pub(crate) fn restore(&mut self, is_told: bool) {
        let sites = self.sites_so_far();
        let Some(backup) = self.store.backup.take_if(|backup| backup.sites == sites) else { return };
        for server in 0..self.servers.len() {
            let delay = self.rng.spread(100_000, 30_000_000);
            self.crash_server_for(server, delay);
        }
        self.trace(|| "the journal is restored".to_owned());
        let Backup { file, kept_runs, current, .. } = backup;
        self.store.file.restore(file);
        self.kept_runs = kept_runs;
        let (snapshot, facts) = self.store.file.read();
        let now = self.server_time(0);
        let mut core = ControlPlane::recover(self.server_config(), snapshot, facts, now);
        let is_gone = |run: &RunId| core.run(*run).is_none() && !self.kept_runs.contains_key(run);
        let gone: BTreeSet<RunId> = self.clients.runs.iter().copied().filter(is_gone).collect();
        self.history.set_back(&gone, current);
        if is_told {
            // As `atoll server journal restored` does it, before any server starts.
            let told = core.handle(Event::Request { request: RequestId(0), body: Request::NoteRestored }, now);
            let mut pending: Pending<Fact, Command> = Pending::default();
            pending.push(told.facts, Vec::new(), self.now);
            let synced = pending.sync(&mut self.store.file, &mut self.digest);
            self.became_durable(&synced.facts);
        } else {
            self.history.doubt_what_came_since();
        }
        // Whoever wants a run that is gone submits it again, under the same key.
        for client in self.clients.want_again(&gone) {
            let delay = self.rng.spread(1_000_000, 120_000_000);
            self.after(delay, Occurrence::Client(client));
        }
    }
}
