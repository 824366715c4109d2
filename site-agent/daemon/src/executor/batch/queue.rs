//! What the agent has in the cluster's queue: what is submitted together and when, what each job's word or the controller
//! says of it, and how it ended.
//!
//! - The intention stands in the shared folder before anything is submitted. Where its answer was lost, or the agent killed,
//!   the job is looked for by its name or comment before it is submitted again.
//! - A job's own word of its end counts; the controller is asked why where there is none. A controller that is away, or does
//!   not know a job, says nothing: it is waited for, and what the job says counts.
//! - Numbers of jobs come again, so nothing is known by them alone.

mod batches;
mod reasons;
mod verdict;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use atoll_model::time::Timestamp;

use self::batches::Submission;
use super::calls::{Answer, Call};
use super::system::{NotSubmitted, Request, Row, Sought};
use super::{Desk, Handed};
use crate::shim::job::evidence::{Batch, EndedNews, StartedNews};
use crate::shim::protocol::{End, EndKind, Key, Left, Notice};
use crate::shim::spent::Spent;

/// What is of one step comes within this long: then it is submitted together.
const GATHERING: Duration = Duration::from_millis(100);
const GATHERING_MAX: Duration = Duration::from_secs(1);
/// Between two tries to reach a cluster that cannot be reached, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The agent's jobs.
#[derive(Debug)]
pub(super) struct Queue {
    desk: Desk,
    jobs: BTreeMap<Key, Job>,
    batches: BTreeMap<String, Submitted>,
    /// Not submitted yet, with the name of their step.
    waiting: VecDeque<Handed>,
    gathering: Option<(Instant, Instant)>,
    /// A call is on its way.
    busy: bool,
    list_at: Instant,
    submit_at: Instant,
    failures: u32,
    /// Why the cluster cannot be reached, if it cannot.
    trouble: Option<String>,
    notices: Vec<Notice>,
    /// How long those waited that have begun since this was taken.
    pub(super) waits: Vec<Duration>,
}

/// What was, or is to be, submitted together.
#[derive(Debug)]
struct Submitted {
    batch: Batch,
    state: Submission,
    /// What is said to the cluster to have it, once that is made.
    request: Option<Request>,
}

/// One attempt.
#[derive(Debug)]
struct Job {
    token: String,
    index: usize,
    wish: Wish,
    cancel_at: Option<Instant>,
    started: Option<StartedNews>,
    /// Its own word, where the cluster knows why.
    told: Option<(End, Instant)>,
    ended: bool,
    /// What the controller said of it last.
    row: Option<Row>,
    /// Since when the controller, though it answers, does not know it.
    missing_since: Option<Instant>,
    /// Since when the controller says that it is over.
    over_since: Option<Instant>,
    /// When it last gave a sign of life, by its own clock and by ours.
    pulse: Option<(SystemTime, Instant)>,
    /// How often it was submitted because it could not be started.
    stuck: u32,
    /// Why it cannot be started, if it is given up.
    hopeless: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    /// The core wants it ended.
    End,
    /// The cluster cannot start this job: it is to go, and another to come.
    Renew,
    /// The cluster cannot start it: it is to go, and no other to come.
    GiveUp,
}

impl Job {
    fn new(token: String, index: usize) -> Self {
        Self {
            token,
            index,
            wish: Wish::Run,
            cancel_at: None,
            started: None,
            told: None,
            ended: false,
            row: None,
            missing_since: None,
            over_since: None,
            pulse: None,
            stuck: 0,
            hopeless: None,
        }
    }

    /// Its place in what was submitted together, as the cluster counts.
    fn element(&self) -> u32 {
        u32::try_from(self.index).unwrap_or(u32::MAX)
    }
}

impl Queue {
    /// An attempt is to run.
    pub(super) fn hand(&mut self, handed: Handed, now: Instant) {
        let key = handed.order.key;
        if self.jobs.contains_key(&key) || self.waiting.iter().any(|waiting| waiting.order.key == key) {
            return;
        }
        let (since, _) = self.gathering.unwrap_or((now, now));
        self.gathering = Some((since, (now + GATHERING).min(since + GATHERING_MAX)));
        self.waiting.push_back(handed);
    }

    /// An attempt is to end. What comes of it is told when it has.
    pub(super) fn kill(&mut self, key: Key, now: Instant) {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.order.key == key) {
            self.waiting.remove(place);
            if self.waiting.is_empty() {
                self.gathering = None;
            }
            self.notices.push(Notice::GivenBack { key, killed: true });
            return;
        }
        let Some(job) = self.jobs.get_mut(&key) else {
            return self.notices.push(Notice::GivenBack { key, killed: true });
        };
        if job.ended {
            return;
        }
        // From here on its job ends by itself, whenever it comes to run.
        self.desk.write_cancel(key);
        (job.wish, job.cancel_at) = (Wish::End, Some(now));
        if self.batches.get(&job.token).is_some_and(|submitted| submitted.state == Submission::ToDo) {
            self.give_back(key);
        }
    }

    /// The end of an attempt is durable elsewhere.
    pub(super) fn forget(&mut self, key: Key) {
        self.desk.remove_news(key);
        let Some(job) = self.jobs.remove(&key) else { return };
        self.desk.remove_said(&job.token, job.index);
        self.drop_if_unused(&job.token);
    }

    fn drop_if_unused(&mut self, token: &str) {
        if !self.jobs.values().any(|job| job.token == token) {
            self.batches.remove(token);
            self.desk.remove_batch(token);
        }
    }

    /// A job has begun.
    pub(super) fn started(&mut self, key: Key, news: StartedNews) {
        let Some(job) = self.jobs.get_mut(&key).filter(|job| job.started.is_none()) else { return };
        let submitted_at = self.batches.get(&job.token).map_or(news.at, |submitted| submitted.batch.at);
        self.waits.push(news.at.saturating_since(submitted_at));
        self.notices.push(Notice::Started { key, at: news.at });
        job.started = Some(news);
    }

    pub(super) fn is_started(&self, key: Key) -> bool {
        self.jobs.get(&key).is_none_or(|job| job.started.is_some())
    }

    pub(super) fn is_ended(&self, key: Key) -> bool {
        self.jobs.get(&key).is_none_or(|job| job.ended || job.told.is_some())
    }

    /// A job has left word of its end.
    pub(super) fn ended(&mut self, key: Key, news: EndedNews, now: Instant) {
        let EndedNews { end, told } = news;
        let Some(job) = self.jobs.get_mut(&key).filter(|job| !job.ended) else { return };
        if told && job.wish == Wish::End {
            self.end(key, End { how: EndKind::Killed, ..end });
        } else if told {
            // Why is known to the controller, which is asked soon.
            job.told = Some((end, now));
            self.list_at = now;
        } else if let (Some(message), EndKind::Killed) = (&job.hopeless, &end.how) {
            // It came to run after all, and was ended because it had been given up.
            let how = EndKind::Interrupted { message: message.clone() };
            self.end(key, End { how, ..end });
        } else {
            self.end(key, end);
        }
    }

    fn end(&mut self, key: Key, end: End) {
        if let Some(job) = self.jobs.get_mut(&key) {
            job.ended = true;
        }
        self.notices.push(Notice::Ended { key, end });
    }

    /// What has happened since it was last asked.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Jobs of which no end is known.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = Key> + '_ {
        self.jobs.iter().filter(|(_, job)| !job.ended).map(|(key, _)| *key)
    }

    /// How many more may be in the cluster's queue.
    fn room(&self) -> usize {
        self.desk.limits.jobs_max.saturating_sub(self.unfinished().count())
    }

    /// How many wait for the cluster, and how many have begun.
    pub(super) fn levels(&self) -> (usize, usize) {
        let begun = self.jobs.values().filter(|job| !job.ended && job.started.is_some()).count();
        (self.waiting.len() + self.unfinished().count() - begun, begun)
    }

    /// How long the one has waited that waits longest of those that the cluster has.
    pub(super) fn longest_wait(&self, now: Timestamp) -> Option<Duration> {
        let waiting = self.jobs.values().filter(|job| !job.ended && job.started.is_none() && job.wish == Wish::Run);
        let submitted = waiting.filter_map(|job| self.batches.get(&job.token));
        let submitted = submitted.filter(|submitted| submitted.batch.job.is_some());
        submitted.map(|submitted| now.saturating_since(submitted.batch.at)).max()
    }

    /// When to ask for the next call, if nothing happens before.
    pub(super) fn next_look(&self) -> Option<Instant> {
        if self.busy {
            return None;
        }
        let gathered = self.gathering.filter(|_| self.room() > 0).map(|(_, until)| until.max(self.submit_at));
        let listed = self.unfinished().next().map(|_| self.list_at);
        [gathered, listed].into_iter().flatten().min()
    }

    /// What is to be asked of the cluster next.
    pub(super) fn next_call(&mut self, now: Instant) -> Option<Call> {
        if self.busy {
            return None;
        }
        let call = self.next_cancel(now).or_else(|| self.next_submission(now)).or_else(|| self.next_listing(now));
        self.busy = call.is_some();
        call
    }

    fn next_cancel(&mut self, now: Instant) -> Option<Call> {
        if now < self.submit_at {
            return None;
        }
        let is_due = |job: &Job| !job.ended && job.cancel_at.is_some_and(|at| at <= now);
        // What was submitted together and is known to the cluster goes together.
        let (token, submitted) = self.jobs.values().filter(|job| is_due(job)).find_map(|job| {
            let submitted = self.batches.get_key_value(&job.token)?;
            submitted.1.batch.job.is_some().then_some(submitted)
        })?;
        let (number, count) = (submitted.batch.job.as_ref()?, submitted.batch.keys.len());
        let due = self.jobs.values_mut().filter(|job| job.token == *token && is_due(job));
        let jobs = due.map(|job| {
            job.cancel_at = Some(now + self.desk.limits.poll);
            self.desk.system.number(number, job.index, count)
        });
        let (jobs, name) = (jobs.collect(), submitted.batch.name.clone());
        // The controller is to say soon whether they are gone.
        self.list_at = self.list_at.min(now);
        Some(Call::Cancel { jobs, name })
    }

    fn next_listing(&mut self, now: Instant) -> Option<Call> {
        if now < self.list_at || self.unfinished().next().is_none() {
            return None;
        }
        self.list_at = now + self.desk.limits.poll;
        Some(Call::List(self.sought()))
    }

    /// What the cluster has, or may have.
    fn sought(&self) -> Vec<Sought> {
        let mut unfinished: BTreeMap<&String, Vec<u32>> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| !job.ended) {
            unfinished.entry(&job.token).or_default().push(job.element());
        }
        let submitted = unfinished.into_iter().filter_map(|(token, elements)| {
            let submitted = self.batches.get(token).filter(|submitted| submitted.state != Submission::ToDo)?;
            Some(Sought::of(&submitted.batch, elements))
        });
        submitted.collect()
    }

    /// What came of the last call.
    pub(super) fn answered(&mut self, answer: Answer, now: Instant) {
        self.busy = false;
        match answer {
            Answer::Submitted { token, result } => self.submitted(&token, result, now),
            Answer::Cancelled(Ok(())) => {}
            // It is tried again: a job that is gone is not listed as one that runs.
            Answer::Cancelled(Err(why)) => self.unreachable(&why, now),
            Answer::Listed(Ok(rows)) => {
                self.reached(now);
                self.listed(rows, now);
                self.conclude_told(now);
            }
            Answer::Listed(Err(why)) => {
                self.unreachable(&why, now);
                self.list_at = self.list_at.max(self.submit_at);
                self.conclude_told(now);
            }
        }
    }

    fn submitted(&mut self, token: &str, result: Result<String, NotSubmitted>, now: Instant) {
        let Some(submitted) = self.batches.get_mut(token) else { return };
        match result {
            Ok(number) => {
                submitted.batch.job = Some(number);
                submitted.state = Submission::Done;
                self.desk.write_batch(token, &submitted.batch);
                self.reached(now);
            }
            Err(NotSubmitted::Later(why)) => {
                submitted.state = Submission::ToDo;
                self.unreachable(&why, now);
            }
            Err(NotSubmitted::Unclear(why)) => {
                submitted.state = Submission::Unclear { looks: 0 };
                self.unreachable(&why, now);
            }
            Err(NotSubmitted::Refused(why)) => {
                let system = &self.desk.system;
                let message = format!("{} does not take the job in {}: {why}", system.title(), system.place());
                for key in submitted.batch.keys.clone() {
                    let how = EndKind::NotStarted { message: message.clone(), no_space: false };
                    self.end(key, nothing(how, None));
                }
            }
        }
    }

    fn reached(&mut self, now: Instant) {
        self.trouble = None;
        if std::mem::take(&mut self.failures) > 0 {
            self.submit_at = now;
            tracing::info!("{} answers again", self.desk.system.title());
        }
    }

    /// F1: what runs goes on, and its word is heard; what waits, waits.
    fn unreachable(&mut self, why: &str, now: Instant) {
        if self.failures == 0 {
            let title = self.desk.system.title();
            tracing::warn!(why, "{title} cannot be reached: what runs goes on, what is to start waits");
        }
        self.trouble = Some(why.to_owned());
        self.failures += 1;
        let pause = PAUSE.saturating_mul(1 << self.failures.min(7)).min(PAUSE_MAX);
        self.submit_at = now + pause.min(self.desk.limits.poll.saturating_mul(self.failures));
    }
}

/// An end of which only the agent knows.
fn nothing(how: EndKind, started_at: Option<Timestamp>) -> End {
    let now = crate::clock::wall_clock();
    End { started_at: started_at.unwrap_or(now), finished_at: now, how, spent: Spent::default(), left: Left::default() }
}

/// Whether two were handed for the same step.
fn go_together(one: &Handed, other: &Handed) -> bool {
    Arc::ptr_eq(&one.common, &other.common) && one.label == other.label
}

#[cfg(test)]
mod tests;
