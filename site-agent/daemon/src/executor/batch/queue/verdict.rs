//! What the controller's listing means for each job.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::super::system::{Over, Row, Standing};
use super::{Job, Queue, Wish, nothing};
use crate::shim::protocol::{End, EndKind, Key, Notice};

/// How long the word of a job that is over may take to be seen here: a shared file system may show it late.
const WORD_GRACE: Duration = Duration::from_secs(10);
/// A job that has begun gives a sign of life several times within this long.
const SILENCE_MIN: Duration = Duration::from_secs(60);
/// A job whose end is not in accounting, or which accounting cannot be asked for, is waited for so many times as long.
const UNSETTLED: u32 = 6;
/// How often a job that its cluster could not start is submitted anew.
const STUCK_MAX: u32 = 3;

/// What is to be done about a job.
enum Verdict {
    Nothing,
    End(EndKind),
    GivenBack,
    /// Cancel it, and submit another.
    Renew,
    Again,
}

impl Over {
    /// Whether the cluster took a job away that had not begun, and had been, or had not been, brought to its node.
    fn is_taken(self, is_launched: bool) -> bool {
        self == Self::Lost || self == Self::Cancelled && is_launched
    }
}

impl Job {
    /// Its job is gone, and has not begun.
    fn given_up(&self) -> Verdict {
        let message = self.hopeless.clone().unwrap_or_default();
        Verdict::End(EndKind::NotStarted { message, no_space: false })
    }

    /// How long nothing was heard of it since the controller does not know it.
    fn silence(&mut self, pulse: Option<SystemTime>, now: Instant) -> Duration {
        let since = *self.missing_since.get_or_insert(now);
        if let Some(seen) = pulse
            && self.pulse.is_none_or(|(known, _)| known != seen)
        {
            self.pulse = Some((seen, now));
        }
        let heard = self.pulse.map_or(since, |(_, at)| at.max(since));
        now.saturating_duration_since(heard)
    }

    /// How long its own word of an end that it was told to make waits for why: longer where that is to be had later.
    fn grace(&self, forgotten_after: Duration) -> Duration {
        let is_unsettled = self.row.as_ref().is_some_and(|row| row.standing == Standing::Forgotten(None));
        if is_unsettled { forgotten_after.max(WORD_GRACE) } else { WORD_GRACE }
    }
}

impl Queue {
    pub(super) fn listed(&mut self, rows: Vec<Row>, now: Instant) {
        let numbers = rows.iter().map(|row| (row.token.clone(), row.job.clone())).collect();
        self.look_for(&numbers);
        let mut by_place: BTreeMap<(String, u32), Row> =
            rows.into_iter().map(|row| ((row.token.clone(), row.index), row)).collect();
        let (mut again, keys) = (Vec::new(), self.unfinished().collect::<Vec<Key>>());
        for key in keys {
            let Some(job) = self.jobs.get(&key) else { continue };
            // As long as nobody knows whether it was submitted there is nothing to judge.
            if self.batches.get(&job.token).is_none_or(|submitted| submitted.batch.job.is_none()) {
                continue;
            }
            let place = (job.token.clone(), job.element());
            match self.judge(key, by_place.remove(&place), now) {
                Verdict::Nothing => {}
                Verdict::Again => again.push(key),
                Verdict::Renew => {
                    if let Some(job) = self.jobs.get_mut(&key) {
                        (job.wish, job.cancel_at) = (Wish::Renew, Some(now));
                        job.stuck += 1;
                    }
                }
                Verdict::GivenBack => self.give_back(key),
                Verdict::End(how) => self.conclude(key, how),
            }
        }
        if !again.is_empty() {
            self.submit_again(again);
        }
    }

    pub(super) fn give_back(&mut self, key: Key) {
        if let Some(job) = self.jobs.get_mut(&key) {
            job.ended = true;
        }
        self.notices.push(Notice::GivenBack { key, killed: true });
    }

    fn judge(&mut self, key: Key, row: Option<Row>, now: Instant) -> Verdict {
        let Some(row) = row else { return self.judge_missing(key, now, 1) };
        let claim = self.desk.claim_of(key);
        let is_forgotten = matches!(row.standing, Standing::Forgotten(_));
        let pulse = if is_forgotten { self.desk.pulse(key) } else { None };
        let Some(job) = self.jobs.get_mut(&key) else { return Verdict::Nothing };
        if job.row.as_ref().is_none_or(|known| known.words != row.words) {
            tracing::info!(execution = %key.execution, job = row.job, index = row.index, state = row.words, "the state of a job");
        }
        job.row = Some(row.clone());
        let over = match row.standing {
            Standing::Waiting | Standing::Running => {
                (job.missing_since, job.over_since) = (None, None);
                return Verdict::Nothing;
            }
            Standing::Stuck if job.wish != Wish::Run => return Verdict::Nothing,
            Standing::Stuck if job.stuck < STUCK_MAX => return Verdict::Renew,
            Standing::Stuck => {
                let message = format!("{} could not start its job: {}", self.desk.system.title(), row.words);
                return Verdict::End(EndKind::NotStarted { message, no_space: false });
            }
            Standing::Hopeless => {
                if job.wish == Wish::Run {
                    // From here on it does not begin, so that what is said of it stays true.
                    self.desk.write_cancel(key);
                    let message = format!("{} cannot start its job: {}", self.desk.system.title(), row.words);
                    (job.wish, job.cancel_at, job.hopeless) = (Wish::GiveUp, Some(now), Some(message));
                }
                return Verdict::Nothing;
            }
            Standing::Forgotten(None) => return self.judge_missing(key, now, UNSETTLED),
            // What a controller has lost may run on.
            Standing::Forgotten(Some(Over::Lost))
                if claim.is_some() && job.told.is_none() && job.silence(pulse, now) < SILENCE_MIN =>
            {
                return Verdict::Nothing;
            }
            Standing::Over(over) | Standing::Forgotten(Some(over)) => over,
        };
        if claim.as_ref().is_some_and(|claim| claim.token != job.token) {
            // A copy that has ended at once, because the attempt is in the hands of another job.
            return self.judge_missing(key, now, 1);
        }
        let since = *job.over_since.get_or_insert(now);
        match (job.wish, &claim) {
            (Wish::Renew, None) => return Verdict::Again,
            (Wish::End, None) => return Verdict::GivenBack,
            (Wish::GiveUp, None) => return job.given_up(),
            // Its node had been told to start it: nobody has cancelled what waited.
            (Wish::Run, None)
                if over.is_taken(self.desk.said(&job.token, job.index).is_some()) && job.stuck < STUCK_MAX =>
            {
                job.stuck += 1;
                return Verdict::Again;
            }
            (Wish::Run | Wish::Renew | Wish::End | Wish::GiveUp, _) => {}
        }
        if job.told.is_none() && now.saturating_duration_since(since) < WORD_GRACE {
            return Verdict::Nothing;
        }
        Verdict::End(self.how(key, over, &row, claim.is_some()))
    }

    /// How a job ended of which the cluster says this, and that has left no word but that it was told to end.
    fn how(&self, key: Key, over: Over, row: &Row, is_claimed: bool) -> EndKind {
        let Some(job) = self.jobs.get(&key) else { return EndKind::Killed };
        let count = self.batches.get(&job.token).map_or(1, |submitted| submitted.batch.keys.len());
        let (system, words) = (&self.desk.system, &row.words);
        let words = format!("{} says of job {}: {words}", system.title(), system.number(&row.job, job.index, count));
        match over {
            Over::TimedOut | Over::OutOfMemory | Over::Ended | Over::Cancelled | Over::Lost
                if job.wish == Wish::End =>
            {
                EndKind::Killed
            }
            Over::TimedOut => EndKind::TimedOut,
            Over::OutOfMemory => EndKind::OutOfMemory,
            Over::Ended if !is_claimed => {
                let said = self.desk.said(&job.token, job.index).map(|said| format!("; it said: {said}"));
                let message = format!("{words}; it had not begun{}", said.unwrap_or_default());
                EndKind::NotStarted { message, no_space: false }
            }
            Over::Ended | Over::Cancelled | Over::Lost => EndKind::Interrupted { message: words },
        }
    }

    /// F3, F5: the controller answers, and does not know the job: it has forgotten it, or let it go after a while. A job
    /// that has begun speaks for itself as long as it gives signs of life. It is waited for so many times as long as the
    /// administrator says.
    fn judge_missing(&mut self, key: Key, now: Instant, times: u32) -> Verdict {
        let (patience, poll) = (self.desk.limits.forgotten_after.saturating_mul(times), self.desk.limits.poll);
        let (claim, pulse) = (self.desk.claim_of(key), self.desk.pulse(key));
        let Some(job) = self.jobs.get_mut(&key) else { return Verdict::Nothing };
        let silent = job.silence(pulse, now);
        match (&claim, job.wish) {
            // It can begin no more: it would find that it is not wanted.
            (None, Wish::End) if silent >= poll => Verdict::GivenBack,
            (None, Wish::Renew) => Verdict::Again,
            (None, Wish::GiveUp) => job.given_up(),
            (None, Wish::Run) if silent >= patience => Verdict::Again,
            (Some(claim), _) if silent >= patience.max(SILENCE_MIN) => {
                let (job, node, seconds) = (&claim.job, &claim.node, silent.as_secs());
                let system = self.desk.system.title();
                let message =
                    format!("nothing was heard of job {job} on {node} for {seconds} s, and {system} does not know it");
                Verdict::End(EndKind::Interrupted { message })
            }
            (None | Some(_), _) => Verdict::Nothing,
        }
    }

    /// What was told to end, and why is not to be heard from the controller: then its own word counts.
    pub(super) fn conclude_told(&mut self, now: Instant) {
        let forgotten_after = self.desk.limits.forgotten_after;
        let told_long_ago = |job: &Job| {
            let (end, at) = job.told.as_ref().filter(|_| !job.ended)?;
            (now.saturating_duration_since(*at) > job.grace(forgotten_after)).then(|| end.clone())
        };
        let late: Vec<(Key, End)> =
            self.jobs.iter().filter_map(|(key, job)| told_long_ago(job).map(|end| (*key, end))).collect();
        late.into_iter().for_each(|(key, end)| self.end(key, end));
    }

    /// Its end, with what its own word has of it, or with what it had written until then.
    fn conclude(&mut self, key: Key, how: EndKind) {
        let Some(job) = self.jobs.get(&key) else { return };
        let end = match (&job.told, &how) {
            (Some((end, _)), _) => End { how, ..end.clone() },
            (None, EndKind::NotStarted { .. }) => nothing(how, None),
            (None, _) => {
                let started_at = job.started.as_ref().map(|started| started.at);
                End { left: self.desk.keep_logs(key), ..nothing(how, started_at) }
            }
        };
        self.end(key, end);
    }
}
