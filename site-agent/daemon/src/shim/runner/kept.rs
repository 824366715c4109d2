//! Services: within one attempt a process is begun again when it has ended or is not well, after growing pauses.

use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use atoll_model::action::{Probe, Service};
use atoll_model::limits::{RETRY_BACKOFF_MAX, SERVICE_STEADY_AFTER, SERVICE_STOP_PATIENCE};
use atoll_model::session::FailureReason;
use rustix::process::{Signal, pidfd_send_signal};

use super::{Current, NOTE_AFTER, Process, Runner, now_timestamp};
use crate::shim::looks::{Look, Looks};
use crate::shim::protocol::{Common, EndKind, Kept, Notice, Order};

/// Between two looks at what is not well yet.
const HURRY: Duration = Duration::from_millis(200);
/// Between two looks while nothing runs.
const REST: Duration = Duration::from_secs(24 * 3600);
/// After this long a service is well that is not looked at.
const RUNS_AFTER: Duration = Duration::from_secs(1);

/// A service that is kept alive.
#[derive(Debug)]
pub(super) struct Keeping {
    service: Service,
    /// What it is begun again with.
    order: Order,
    /// Nothing where it is enough that it runs.
    looks: Option<Looks>,
    began: Instant,
    well_since: Option<Instant>,
    /// Looks in a row that have found it not well, and what the last one of these has found.
    unwell: u32,
    found: Option<String>,
    /// Whether it has ever been well: then it was told that it has started.
    pub(super) is_told: bool,
    /// How often in a row it has ended.
    ends: u32,
    /// When it is begun again, while nothing runs.
    again_at: Option<Instant>,
    is_asked_to_end: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Nothing,
    Well,
    Unwell(String),
}

impl Keeping {
    pub(super) fn new(
        kept: &Kept,
        common: &Common,
        order: Order,
        folder: &std::path::Path,
        now: Instant,
    ) -> io::Result<Self> {
        let health = &kept.service.health;
        let look = || Look {
            probe: health.probe.clone(),
            port: kept.port,
            timeout: health.timeout,
            environment: common.environment.iter().chain(&order.environment).cloned().collect(),
            folder: folder.to_owned(),
            account: common.account.clone(),
        };
        let is_looked_at = health.probe != Probe::Runs;
        let looks = is_looked_at.then(|| Looks::begin(look(), HURRY)).transpose()?;
        Ok(Self {
            service: kept.service.clone(),
            order,
            looks,
            began: now,
            well_since: None,
            unwell: 0,
            found: None,
            is_told: false,
            ends: 0,
            again_at: None,
            is_asked_to_end: false,
        })
    }

    pub(super) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.looks.as_ref().map(Looks::bell)
    }

    /// When to look after it if nothing happens before.
    pub(super) fn next(&self) -> Option<Instant> {
        let patience = if self.looks.is_some() { self.service.health.start } else { RUNS_AFTER };
        let first = || self.well_since.is_none().then_some(self.began + patience);
        self.again_at.or_else(first)
    }

    fn pace(&self, pace: Duration) {
        if let Some(looks) = &self.looks {
            looks.pace(pace);
        }
    }

    /// What the looks since the last time say.
    fn finding(&mut self, now: Instant) -> Finding {
        let found = self.looks.as_ref().map(Looks::take);
        let Some(found) = found else {
            let is_well = self.well_since.is_none() && now >= self.began + RUNS_AFTER;
            return if is_well { self.is_well(now) } else { Finding::Nothing };
        };
        let was_well = self.well_since.is_some();
        for look in found {
            match look {
                Ok(()) => {
                    self.unwell = 0;
                    self.is_well(now);
                }
                Err(why) => {
                    self.unwell += 1;
                    self.found = Some(why);
                }
            }
        }
        let health = &self.service.health;
        let why = || self.found.clone().unwrap_or_else(|| "it was not looked at yet".to_owned());
        match self.well_since {
            Some(_) if self.unwell >= health.failures => Finding::Unwell(format!("it is not well: {}", why())),
            Some(_) if !was_well => Finding::Well,
            None if now >= self.began + health.start => {
                Finding::Unwell(format!("it was not well within {:?}: {}", health.start, why()))
            }
            Some(_) | None => Finding::Nothing,
        }
    }

    fn is_well(&mut self, now: Instant) -> Finding {
        if self.well_since.is_none() {
            self.well_since = Some(now);
            self.pace(self.service.health.every);
        }
        Finding::Well
    }

    /// It has ended. How long to wait before it is begun again, or why it is given up.
    fn ended(&mut self, how: &str, now: Instant) -> Result<Duration, String> {
        if self.well_since.is_some_and(|since| now >= since + SERVICE_STEADY_AFTER) {
            self.ends = 0;
        }
        let restart = &self.service.restart;
        let ends = self.ends + 1;
        if ends > restart.max {
            let times = if ends == 1 { "once".to_owned() } else { format!("{ends} times in a row") };
            return Err(format!("the service has ended {times}; the last time {how}"));
        }
        let pause = restart.backoff.saturating_mul(1 << self.ends.min(16)).min(RETRY_BACKOFF_MAX);
        self.ends = ends;
        self.again_at = Some(now + pause);
        self.pace(REST);
        Ok(pause)
    }

    fn begins(&mut self, now: Instant) {
        // What was found of the one before says nothing of this.
        self.looks.iter().for_each(|looks| drop(looks.take()));
        (self.began, self.again_at, self.well_since, self.unwell, self.found) = (now, None, None, 0, None);
        self.pace(HURRY);
    }
}

impl Current {
    /// Asks a service to end: it has a moment to do it in its own way.
    pub(super) fn ask_to_end(&mut self, now: Instant) {
        let Some(keeping) = &mut self.keeping else { return };
        let was_asked = std::mem::replace(&mut keeping.is_asked_to_end, true);
        if let (Process::Own(child) | Process::Contained(child), false) = (&self.process, was_asked) {
            // If it has ended by itself meanwhile, that is what was wanted.
            let _ = pidfd_send_signal(child, Signal::TERM);
            self.deadline = Some((now + SERVICE_STOP_PATIENCE, EndKind::Killed));
        }
    }
}

impl Runner {
    /// Looks after a service. Whether its attempt is over; nothing where it runs as everything does.
    pub(super) fn look_after(&mut self, now: Instant) -> Option<bool> {
        let current = self.current.as_mut()?;
        let keeping = current.keeping.as_mut()?;
        let finding = keeping.finding(now);
        if let Some(at) = keeping.again_at {
            if let Some(how) = current.stopped.clone() {
                return Some(self.over(how));
            }
            return Some(now >= at && self.begin_again(now));
        }
        match finding {
            Finding::Nothing => {}
            Finding::Well => {
                if !std::mem::replace(&mut keeping.is_told, true) {
                    self.notices.push(Notice::Started { key: current.key, at: now_timestamp() });
                }
            }
            Finding::Unwell(why) => {
                if current.stopped.is_none() {
                    self.end_container();
                }
                let how = EndKind::Failed { reason: FailureReason::ActionFailed, message: why };
                self.current.iter_mut().for_each(|current| current.stop(how.clone()));
            }
        }
        None
    }

    /// What becomes of the current execution whose process has ended so: nothing if it is a service, and begun again.
    pub(super) fn judge(&self, current: &mut Current, how: EndKind, now: Instant) -> Option<EndKind> {
        let Some(keeping) = &mut current.keeping else { return Some(how) };
        if keeping.is_asked_to_end {
            return Some(EndKind::Killed);
        }
        let Some(words) = words(&how) else { return Some(how) };
        match keeping.ended(&words, now) {
            Ok(pause) => {
                // It is for those who read the log, which may be full.
                let _ = writeln!(io::stderr(), "atoll: the service is begun again in {pause:?}: {words}");
                (current.process, current.stopped, current.clearing) = (Process::Resting, None, None);
                None
            }
            Err(message) => Some(EndKind::Failed { reason: FailureReason::ActionFailed, message }),
        }
    }

    /// Begins a service again. Whether it is given up instead.
    fn begin_again(&mut self, now: Instant) -> bool {
        let Some(mut current) = self.current.take() else { return false };
        let Some(keeping) = &mut current.keeping else { return false };
        keeping.begins(now);
        let (common, order) = (Rc::clone(&current.common), keeping.order.clone());
        let how = match self.launch(&common, &order) {
            Ok(process) => {
                (current.process, current.look_at, current.noted) = (process, now + NOTE_AFTER, false);
                None
            }
            Err(error) => {
                let message = format!("it cannot be started: {error}");
                let how = EndKind::Failed { reason: FailureReason::ActionFailed, message };
                self.judge(&mut current, how, now)
            }
        };
        self.current = Some(current);
        how.is_some_and(|how| self.over(how))
    }

    /// The attempt at a service is over of which nothing runs.
    fn over(&mut self, how: EndKind) -> bool {
        if let Some(current) = self.current.take() {
            let spent = self.take_counted(&current).with_memory(0);
            self.conclude(&current, how, now_timestamp(), spent);
        }
        true
    }
}

/// What is said of how a process has ended after which a service is begun again; nothing where that would do no good.
fn words(how: &EndKind) -> Option<String> {
    match how {
        EndKind::Code(code) => Some(format!("it exited with code {code}")),
        EndKind::Signal(signal) => Some(format!("it was killed by signal {signal}")),
        EndKind::OutOfMemory => Some("it used more memory than it may".to_owned()),
        EndKind::Returned { .. } => Some("its function returned".to_owned()),
        EndKind::Failed { reason: FailureReason::NotExecutable | FailureReason::NoSpace, .. }
        | EndKind::TimedOut
        | EndKind::Killed
        | EndKind::NotStarted { .. }
        | EndKind::Interrupted { .. } => None,
        EndKind::Failed { message, .. } => Some(message.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use atoll_model::action::{Health, Restart};
    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};

    use super::*;
    use crate::shim::protocol::Key;

    fn keeping(max: u32, now: Instant) -> Keeping {
        let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 0 };
        let key = Key { execution, attempt: Attempt(1) };
        let restart = Restart { backoff: Duration::from_millis(100), max };
        let service = Service { port: None, health: Health::default(), restart };
        let order = Order { key, environment: Vec::new(), inputs: String::new() };
        let kept = Kept { service, port: None };
        Keeping::new(&kept, &Common::default(), order, std::path::Path::new("/"), now).unwrap()
    }

    #[test]
    fn pauses_grow_until_it_is_given_up_and_begin_anew_after_it_was_well_for_long() {
        let mut now = Instant::now();
        let mut service = keeping(3, now);
        let pause =
            |service: &mut Keeping, now| service.ended("it exited with code 1", now).map(|pause| pause.as_millis());
        assert_eq!((pause(&mut service, now), pause(&mut service, now)), (Ok(100), Ok(200)));
        service.begins(now);
        assert_eq!(service.finding(now), Finding::Nothing);
        now += RUNS_AFTER;
        assert_eq!((service.finding(now), service.next()), (Finding::Well, None));
        assert_eq!(pause(&mut service, now), Ok(400), "it was well for a moment");
        service.begins(now);
        now += RUNS_AFTER;
        service.finding(now);
        now += SERVICE_STEADY_AFTER;
        assert_eq!(pause(&mut service, now), Ok(100));
        service.begins(now);
        assert_eq!((pause(&mut service, now), pause(&mut service, now)), (Ok(200), Ok(400)));
        let given_up = pause(&mut service, now).unwrap_err();
        assert_eq!(given_up, "the service has ended 4 times in a row; the last time it exited with code 1");
        assert_eq!(
            pause(&mut keeping(0, now), now).unwrap_err(),
            "the service has ended once; the last time it exited with code 1"
        );
    }
}
