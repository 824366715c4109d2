//! The pilots that there are, what is known of them, and how many more or fewer there should be.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crate::executor::batch::desk::Desk;
use crate::executor::batch::system::{Row, Sought, Standing};
use crate::shim::job::evidence::Batch;

/// So many times the system, asked at intervals, must not know a pilot before it is gone.
const LOOKS: u32 = 2;
/// How long the worker of a job that runs may take to join.
const JOIN_MAX: Duration = Duration::from_secs(60);
/// How long short work does without pilots when there are none to be had.
const BAR: Duration = Duration::from_secs(300);

/// How the worker of a pilot is called.
pub(super) fn worker_name(token: &str) -> String {
    format!("pilot-{token}")
}

/// All pilots of the agent.
#[derive(Debug)]
pub(super) struct Fleet {
    pilots: BTreeMap<String, Pilot>,
    max: u32,
    wanted: u32,
    /// Since when none is wanted.
    unwanted_since: Instant,
    barred_until: Option<Instant>,
}

#[derive(Debug)]
struct Pilot {
    batch: Batch,
    standing: Standing,
    /// Its worker has been there since this process began.
    has_joined: bool,
    /// It was submitted by a process before this one: that its worker never came is not known.
    is_found: bool,
    is_cancelled: bool,
    /// It was cancelled because nothing will come of it.
    is_useless: bool,
    /// When it was first listed as running.
    running_since: Option<Instant>,
    missing: u32,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Rest,
    Submit(u32),
    TakeBack(Vec<String>),
}

/// What a listing has brought.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Of these the number is known now.
    pub found: Vec<(String, Batch)>,
    pub gone: Vec<Gone>,
    /// Jobs that will be of no use, and why the worker of each has not come, where it should have.
    pub useless: Vec<Gone>,
}

/// A pilot that is no more, or soon.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub token: String,
    /// Why its worker never came, where it should have.
    pub failure: Option<String>,
}

impl Fleet {
    /// Those that processes before this one have submitted, or meant to.
    pub(super) fn open(desk: &Desk, max: u32, now: Instant) -> io::Result<Self> {
        let mut fleet = Self { pilots: BTreeMap::new(), max, wanted: 0, unwanted_since: now, barred_until: None };
        for (token, batch) in desk.batches()? {
            fleet.add(token.clone(), batch);
            fleet.pilots.entry(token).and_modify(|pilot| pilot.is_found = true);
        }
        Ok(fleet)
    }

    pub(super) fn add(&mut self, token: String, batch: Batch) {
        let pilot = Pilot {
            batch,
            standing: Standing::Waiting,
            has_joined: false,
            is_found: false,
            is_cancelled: false,
            is_useless: false,
            running_since: None,
            missing: 0,
        };
        self.pilots.insert(token, pilot);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pilots.is_empty()
    }

    /// Nothing is to be expected soon.
    pub(super) fn is_at_rest(&self) -> bool {
        self.wanted == 0 && self.barred_until.is_none() && self.pilots.values().all(|pilot| pilot.has_joined)
    }

    pub(super) fn want(&mut self, count: u32, now: Instant) {
        if self.wanted > 0 && count == 0 {
            self.unwanted_since = now;
        }
        self.wanted = count;
    }

    pub(super) fn note_joined(&mut self, has_joined: impl Fn(&str) -> bool) {
        for (token, pilot) in self.pilots.iter_mut().filter(|(_, pilot)| !pilot.has_joined) {
            pilot.has_joined = has_joined(&worker_name(token));
        }
    }

    pub(super) fn sought(&self) -> Vec<Sought> {
        let sought = |pilot: &Pilot| Sought::of(&pilot.batch, vec![0]);
        self.pilots.values().map(sought).collect()
    }

    /// Takes in what the system says of the agent's jobs.
    pub(super) fn listed(&mut self, rows: &[Row], now: Instant) -> News {
        let mut news = News::default();
        for (token, pilot) in &mut self.pilots {
            let row = rows.iter().find(|row| row.token == *token);
            match pilot.judge(row, now) {
                Judged::Stays => {}
                Judged::Useless(failure) => news.useless.push(Gone { token: token.clone(), failure }),
                Judged::Gone(failure) => news.gone.push(Gone { token: token.clone(), failure }),
            }
            if let (Some(row), None) = (row, &pilot.batch.job) {
                pilot.batch.job = Some(row.job.clone());
                news.found.push((token.clone(), pilot.batch.clone()));
            }
        }
        for gone in &news.gone {
            self.pilots.remove(&gone.token);
        }
        news
    }

    /// What is to be done, by what is wanted and what is there. What nobody wants any more is taken back after `patience`.
    pub(super) fn plan(&self, now: Instant, patience: Duration) -> Plan {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        if self.wanted == 0 {
            let may_go =
                |pilot: &Pilot| pilot.standing == Standing::Waiting && !pilot.has_joined && !pilot.is_cancelled;
            let waiting = self.pilots.iter().filter(|(_, pilot)| may_go(pilot) && pilot.batch.job.is_some());
            let waiting: Vec<String> = waiting.map(|(token, _)| token.clone()).collect();
            let is_due = now.saturating_duration_since(self.unwanted_since) >= patience;
            return if is_due && !waiting.is_empty() { Plan::TakeBack(waiting) } else { Plan::Rest };
        }
        if self.barred_until.is_some() {
            return Plan::Rest;
        }
        let on_the_way = self.pilots.values().filter(|pilot| !pilot.has_joined && !pilot.is_cancelled).count();
        let lacking = self.wanted.saturating_sub(count(on_the_way));
        match lacking.min(self.max.saturating_sub(count(self.pilots.len()))) {
            0 => Plan::Rest,
            lacking => Plan::Submit(lacking),
        }
    }

    /// That one is to be cancelled.
    pub(super) fn cancelling(&mut self, token: &str) -> Option<Batch> {
        let pilot = self.pilots.get_mut(token)?;
        pilot.is_cancelled = true;
        Some(pilot.batch.clone())
    }

    /// There are none to be had; whether that is new.
    pub(super) fn bar(&mut self, now: Instant) -> bool {
        self.barred_until.replace(now + BAR).is_none()
    }

    /// Whether it may be tried again from now on.
    pub(super) fn lift_bar(&mut self, now: Instant) -> bool {
        self.barred_until.take_if(|until| now >= *until).is_some()
    }
}

enum Judged {
    Stays,
    Useless(Option<String>),
    Gone(Option<String>),
}

impl Pilot {
    fn judge(&mut self, row: Option<&Row>, now: Instant) -> Judged {
        let Some(row) = row.filter(|row| row.standing != Standing::Forgotten(None)) else {
            self.missing += 1;
            return if self.missing < LOOKS {
                Judged::Stays
            } else {
                Judged::Gone(self.failure("is not known any more"))
            };
        };
        self.missing = 0;
        self.standing = row.standing;
        match row.standing {
            Standing::Waiting => Judged::Stays,
            Standing::Running => {
                let since = *self.running_since.get_or_insert(now);
                let is_late = !self.has_joined && now.saturating_duration_since(since) >= JOIN_MAX;
                self.useless_if(is_late)
            }
            Standing::Stuck | Standing::Hopeless => self.useless_if(true),
            Standing::Over(_) | Standing::Forgotten(_) => {
                Judged::Gone(self.failure(&format!("is over ({})", row.words)))
            }
        }
    }

    fn useless_if(&mut self, is_useless: bool) -> Judged {
        if self.is_cancelled || !is_useless {
            return Judged::Stays;
        }
        self.is_useless = true;
        Judged::Useless(self.failure("cannot begin, or runs"))
    }

    /// One whose worker never came, though nobody had taken it back.
    fn failure(&self, how: &str) -> Option<String> {
        let was_to_come = !self.is_found && (!self.is_cancelled || self.is_useless);
        let number = self.batch.job.as_ref().filter(|_| was_to_come && !self.has_joined)?;
        Some(format!(
            "its job {number} {how}, and its worker has not reached the agent: nodes must reach `[workers] addresses`, and see \
             the data directory and the program"
        ))
    }
}
