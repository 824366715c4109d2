//! What is submitted together: made durable first, found again by a later process, submitted once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Instant;

use super::super::calls::Call;
use super::super::desk::new_token;
use super::super::system::{Becomes, NewJob, Request, job_name};
use super::super::{Desk, Handed};
use super::{Job, Queue, Submitted, go_together, nothing};
use crate::clock::wall_clock;
use crate::shim::job::evidence::{Asked, Batch, JobOrder, VERSION};
use crate::shim::protocol::{Common, EndKind, Key};

/// So many times the controller, asked at intervals, must not know what may have been submitted before it is again.
const LOOKS: u32 = 2;

/// How far a submission is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Submission {
    ToDo,
    /// It is being submitted.
    Underway,
    /// Nobody knows: it is looked for, and was not found so many times.
    Unclear {
        looks: u32,
    },
    Done,
}

impl Queue {
    /// Finds what processes before this one have submitted, or meant to. What no batch names was never meant to be.
    pub(in super::super) fn open(desk: Desk, now: Instant) -> io::Result<Self> {
        let (mut jobs, mut batches) = (BTreeMap::new(), BTreeMap::new());
        let mut found = desk.batches()?;
        // An attempt that was submitted again is of the later one.
        found.sort_by_key(|(_, batch)| batch.at);
        for (token, batch) in found {
            for (index, key) in batch.keys.iter().enumerate() {
                if desk.folder.slot(*key).is_dir() {
                    jobs.insert(*key, Job::new(token.clone(), index));
                }
            }
            let state = if batch.job.is_some() { Submission::Done } else { Submission::Unclear { looks: 0 } };
            batches.insert(token, Submitted { batch, state, request: None });
        }
        let in_use: BTreeSet<String> = jobs.values().map(|job: &Job| job.token.clone()).collect();
        for token in batches.keys().filter(|token| !in_use.contains(*token)) {
            desk.remove_batch(token);
        }
        batches.retain(|token, _| in_use.contains(token));
        desk.sweep(&jobs.keys().map(|key| key.folder()).collect(), &in_use)?;
        Ok(Self {
            desk,
            jobs,
            batches,
            waiting: VecDeque::new(),
            gathering: None,
            busy: false,
            list_at: now,
            submit_at: now,
            failures: 0,
            trouble: None,
            notices: Vec::new(),
            waits: Vec::new(),
        })
    }

    pub(super) fn next_submission(&mut self, now: Instant) -> Option<Call> {
        if now < self.submit_at {
            return None;
        }
        let ready = self.batches.iter().find(|(token, submitted)| {
            // What was given up meanwhile is not submitted any more.
            submitted.state == Submission::ToDo && self.jobs.values().any(|job| !job.ended && job.token == **token)
        });
        let token = match ready {
            Some((token, _)) => token.clone(),
            None => self.gather(now)?,
        };
        let submitted = self.batches.get_mut(&token)?;
        let request = match submitted.request.take() {
            Some(request) => request,
            None => match self.desk.common(&submitted.batch) {
                Ok(common) => self.desk.request(&token, &submitted.batch, &common),
                Err(error) => {
                    let keys = submitted.batch.keys.clone();
                    self.cannot(&keys, &error);
                    return None;
                }
            },
        };
        submitted.state = Submission::Underway;
        submitted.request = Some(request.clone());
        Some(Call::Submit { token, request })
    }

    /// Makes a batch of what waits and is of one step, as much as there is room for in the cluster's queue.
    fn gather(&mut self, now: Instant) -> Option<String> {
        let (_, until) = self.gathering?;
        let room = self.room();
        if now < until || room == 0 {
            return None;
        }
        let most = room.min(self.desk.limits.together_max);
        let first = self.waiting.front()?;
        let count = self.waiting.iter().take(most).take_while(|handed| go_together(first, handed)).count();
        let together: Vec<Handed> = self.waiting.drain(..count).collect();
        if self.waiting.is_empty() {
            self.gathering = None;
        }
        let keys: Vec<Key> = together.iter().map(|handed| handed.order.key).collect();
        match self.desk.prepare(&together) {
            Ok((token, batch)) => {
                self.add(token.clone(), batch);
                Some(token)
            }
            Err(error) => {
                self.cannot(&keys, &error);
                None
            }
        }
    }

    fn add(&mut self, token: String, batch: Batch) {
        for (index, key) in batch.keys.iter().enumerate() {
            let stuck = self.jobs.get(key).map_or(0, |job| job.stuck);
            self.jobs.insert(*key, Job { stuck, ..Job::new(token.clone(), index) });
        }
        self.batches.insert(token, Submitted { batch, state: Submission::ToDo, request: None });
    }

    fn cannot(&mut self, keys: &[Key], error: &io::Error) {
        let no_space = error.kind() == io::ErrorKind::StorageFull;
        for key in keys {
            let message = format!("its job cannot be prepared: {error}");
            self.end(*key, nothing(EndKind::NotStarted { message, no_space }, None));
        }
    }

    /// F3: these have no job, or none that will ever run. One that comes up after all finds the attempt claimed.
    pub(super) fn submit_again(&mut self, keys: Vec<Key>) {
        let mut by_token: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        for key in keys {
            if let Some(job) = self.jobs.get(&key) {
                by_token.entry(job.token.clone()).or_default().push(key);
            }
        }
        for (former, keys) in by_token {
            let Some(Submitted { batch, .. }) = self.batches.get(&former) else { continue };
            let (label, asked) = (batch.label().to_owned(), batch.asked.clone());
            tracing::warn!(former, jobs = keys.len(), "jobs that have not begun are submitted again");
            match self.desk.note(&label, keys.clone(), asked) {
                Ok((token, batch)) => self.add(token, batch),
                Err(error) => self.cannot(&keys, &error),
            }
            self.drop_if_unused(&former);
        }
    }

    /// F2: what the controller was asked for and does not know is submitted, unless it has begun meanwhile.
    pub(super) fn look_for(&mut self, listed: &BTreeMap<String, String>) {
        for (token, submitted) in &mut self.batches {
            let Submission::Unclear { looks } = &mut submitted.state else { continue };
            let mut claims = submitted.batch.keys.iter().filter_map(|key| self.desk.claim_of(*key));
            let claimed = || claims.find(|claim| claim.token == *token).map(|claim| claim.job);
            if let Some(number) = listed.get(token).cloned().or_else(claimed) {
                submitted.batch.job = Some(number);
                submitted.state = Submission::Done;
                self.desk.write_batch(token, &submitted.batch);
            } else if *looks + 1 >= LOOKS {
                submitted.state = Submission::ToDo;
            } else {
                *looks += 1;
            }
        }
    }
}

impl Desk {
    /// Makes the slots and orders of these, and then the intention to submit them, durable.
    fn prepare(&self, together: &[Handed]) -> io::Result<(String, Batch)> {
        for handed in together {
            self.write_order(handed)?;
        }
        self.sync()?;
        let first = together.first().ok_or_else(|| io::Error::other("there is nothing to submit"))?;
        let keys = together.iter().map(|handed| handed.order.key).collect();
        self.note(&first.label, keys, first.common.asked.clone())
    }

    fn note(&self, label: &str, keys: Vec<Key>, asked: Asked) -> io::Result<(String, Batch)> {
        let token = new_token();
        let (name, of_job) = (job_name(label, &token), self.system.of_job());
        let batch = Batch { version: VERSION, name, keys, at: wall_clock(), job: None, asked, of_job };
        self.try_write_batch(&token, &batch)?;
        Ok((token, batch))
    }

    fn request(&self, token: &str, batch: &Batch, common: &Common) -> Request {
        let becomes = Becomes::Shim(&self.program);
        self.system.request(&NewJob { becomes, folder: &self.folder, token, batch, common })
    }

    /// What all of a batch have in common.
    fn common(&self, batch: &Batch) -> io::Result<Common> {
        let mut slots = batch.keys.iter().map(|key| self.folder.slot(*key));
        let order = slots.find_map(|slot| JobOrder::read(&slot).transpose()).transpose()?;
        order.map(|order| order.common).ok_or_else(|| io::Error::other("their orders are gone"))
    }
}

impl Batch {
    /// The name of its step.
    fn label(&self) -> &str {
        let name = self.name.strip_prefix("atoll.").unwrap_or(&self.name);
        name.rsplit_once('.').map_or(name, |(label, _)| label)
    }
}
