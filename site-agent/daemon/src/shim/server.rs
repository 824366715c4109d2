//! The one loop of a shim: it waits for the running process and for the agent at the same time.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::log::clock_since_boot;
use super::protocol::{Common, FromShim, Hello, Isolation, Order, PROTOCOL_VERSION, Terms, ToShim};
use super::runner::Runner;

/// What the agent has to be told waits for more while there is more to run: a message, and all that follows from it, for
/// each execution would cost as much as a short execution itself. All shims of a machine tell at the same moments, this many
/// microseconds apart, so that one barrier and one report serve them all. The queue behind must last longer.
const NOTICE_PERIOD: u64 = 120_000;
/// Without an agent and without work a shim ends after this long.
const IDLE_WITHOUT_AGENT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    agent: Option<Connection>,
    runner: Runner,
    isolation: Isolation,
    complaints: Vec<String>,
    quit: bool,
    leash: Option<Leash>,
    asked: Option<Asked>,
}

/// What asks a shim on another machine to end: the batch system of a pilot asks all that runs in its job.
#[derive(Debug)]
pub(super) struct Asked {
    signals: SignalFd,
    has_come: bool,
}

impl Asked {
    /// From now on it is heard where it is waited for.
    pub(super) fn listen() -> nix::Result<Self> {
        let mut asked = SigSet::empty();
        asked.add(Signal::SIGTERM);
        asked.thread_block()?;
        let signals = SignalFd::with_flags(&asked, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { signals, has_come: false })
    }

    fn hear(&mut self) -> bool {
        while let Ok(Some(_)) = self.signals.read_signal() {
            self.has_come = true;
        }
        self.has_come
    }
}

/// How long the agent may be unheard. It counts while the machine is suspended too.
#[derive(Debug)]
struct Leash {
    micros: u64,
    heard_at: u64,
}

impl Leash {
    fn left(&self) -> Duration {
        Duration::from_micros((self.heard_at + self.micros).saturating_sub(clock_since_boot()))
    }
}

/// The clock since boot, in microseconds, is the same one for all.
fn until_all_tell(since_boot: u64) -> Duration {
    Duration::from_micros(NOTICE_PERIOD - since_boot % NOTICE_PERIOD)
}

impl Server {
    pub(crate) fn new(
        listener: UnixListener,
        runner: Runner,
        (isolation, complaints): (Isolation, Vec<String>),
        (leash, asked): (Option<Duration>, Option<Asked>),
    ) -> Self {
        let micros = |leash: Duration| u64::try_from(leash.as_micros()).unwrap_or(u64::MAX / 2);
        let leash = leash.map(|leash| Leash { micros: micros(leash), heard_at: clock_since_boot() });
        Self { listener, agent: None, runner, isolation, complaints, quit: false, leash, asked }
    }

    /// Runs until told to quit, or until nobody has wanted anything for long.
    pub(crate) fn serve(mut self) -> Result<(), Errno> {
        let mut flush_at: Option<Instant> = None;
        let mut idle_since = Instant::now();
        loop {
            let now = Instant::now();
            let on_leash = self.leash.as_ref().map(Leash::left);
            let is_forsaken = on_leash.is_some_and(|left| left.is_zero());
            let is_asked = self.asked.as_mut().is_some_and(Asked::hear);
            if is_forsaken || is_asked {
                let why = if is_asked { "its machine had it end" } else { "its agent was not heard for too long" };
                self.runner.give_up(why);
            }
            self.runner.advance(now);
            if self.runner.has_notices() {
                let due = *flush_at.get_or_insert_with(|| now + until_all_tell(clock_since_boot()));
                if self.runner.is_idle() || now >= due {
                    self.tell();
                    flush_at = None;
                }
            } else {
                flush_at = None;
            }
            self.hand_on();
            self.runner.clean_up();
            if self.agent.is_some() || !self.runner.is_idle() {
                idle_since = now;
            }
            let is_given_up = (is_forsaken || is_asked) && self.runner.is_idle();
            if is_given_up {
                self.runner.keep_notices();
            }
            let gives_up = is_given_up || (self.agent.is_none() && now >= idle_since + IDLE_WITHOUT_AGENT);
            if (self.quit && self.runner.owes_nothing()) || gives_up {
                return Ok(());
            }
            self.quit = false;
            let idle_end = self.agent.is_none().then_some(idle_since + IDLE_WITHOUT_AGENT);
            let leash_end = on_leash.filter(|left| !left.is_zero()).map(|left| now + left);
            let wake = [self.runner.next_timeout(), flush_at, idle_end, leash_end].into_iter().flatten().min();
            self.wait(wake)?;
        }
    }

    /// Waits until something has happened, and takes in what the agent says.
    fn wait(&mut self, until: Option<Instant>) -> Result<(), Errno> {
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        let mut sources = Vec::with_capacity(6);
        sources.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        if let Some(agent) = &self.agent {
            let wanted = if agent.wants_to_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            sources.push(PollFd::from_borrowed_fd(agent.stream.as_fd(), wanted));
        }
        sources.extend(self.runner.sources());
        sources.extend(self.asked.iter().map(|asked| PollFd::from_borrowed_fd(asked.signals.as_fd(), PollFlags::IN)));
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let somebody_came = !sources[0].revents().is_empty();
        let agent_spoke = self.agent.is_some() && !sources[1].revents().is_empty();
        drop(sources);
        if agent_spoke {
            self.listen();
        }
        if somebody_came {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let same_user =
            rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        let Some(mut agent) = same_user.then(|| Connection::new(stream).ok()).flatten() else { return };
        // What this agent has to know stands in the greeting; that it was not told before does not matter any more.
        self.runner.keep_notices();
        let hello = Hello {
            version: PROTOCOL_VERSION,
            pid: std::process::id(),
            isolation: self.isolation,
            complaints: self.complaints.clone(),
            queued: self.runner.queued(),
            running: self.runner.running(),
            ended: self.runner.ended(),
        };
        agent.say(&FromShim::Hello(hello));
        self.runner.emit_again();
        self.agent = agent.write().is_ok().then_some(agent);
    }

    fn tell(&mut self) {
        let Some(agent) = &mut self.agent else {
            // Nobody else keeps it until an agent comes.
            self.runner.keep_notices();
            return;
        };
        let notices = self.runner.take_notices();
        agent.say(&FromShim::Notices(notices));
        if agent.write().is_err() {
            return self.lose_agent();
        }
        // The agent has been woken on this core and is waited for; what there is to clean up here is not.
        rustix::thread::sched_yield();
    }

    /// What a source emits waits for nothing, as the source waits for it. Without an agent it stays where it is.
    fn hand_on(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let Some((key, records)) = self.runner.take_emitted() else { return };
        agent.say(&FromShim::Emitted { key, records });
        if agent.write().is_err() {
            self.lose_agent();
        }
    }

    /// What the agent was told it may not have journaled.
    fn lose_agent(&mut self) {
        self.agent = None;
        self.runner.keep_notices();
    }

    fn listen(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        if let Some(leash) = &mut self.leash {
            leash.heard_at = clock_since_boot();
        }
        let mut messages = Vec::new();
        let alive = agent.read(&mut messages).is_ok() && agent.write().is_ok();
        if !alive {
            self.lose_agent();
        }
        for message in messages {
            let (message, account) =
                if let ToShim::As { account, start } = message { (*start, Some(account)) } else { (message, None) };
            let (message, kept) =
                if let ToShim::Keep { kept, start } = message { (*start, Some(kept)) } else { (message, None) };
            let (message, terms) = if let ToShim::Under { terms, start } = message {
                (*start, terms)
            } else {
                (message, Terms::default())
            };
            match message {
                ToShim::Start { common, orders } => {
                    self.runner.enqueue(Common { terms, kept, account, ..common }, orders)
                }
                ToShim::Call { common, worker, orders, inputs } => {
                    let common = Common { worker: Some(worker), terms, kept, account, ..common };
                    let orders = orders.into_iter().zip(inputs).map(|(order, inputs)| Order { inputs, ..order });
                    self.runner.enqueue(common, orders.collect());
                }
                ToShim::Contain { common, container, orders } => {
                    let common = Common { container: Some(container), terms, kept, account, ..common };
                    self.runner.enqueue(common, orders);
                }
                ToShim::Kill(key) => self.runner.kill(key),
                ToShim::GiveBack { count } => self.runner.give_back(count),
                ToShim::Forget(keys) => self.runner.forget(keys),
                ToShim::Quit => self.quit = true,
                ToShim::Taken { key, taken } => self.runner.taken(key, &taken),
                ToShim::WarmUp { common, worker } => self.runner.warm_up(Common { worker: Some(worker), ..common }),
                // Nobody says that terms are under terms, that a service is one, or that an account is another.
                ToShim::Under { .. } | ToShim::Keep { .. } | ToShim::As { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, NOTICE_PERIOD, until_all_tell};

    #[test]
    fn shims_that_have_something_to_tell_at_different_times_tell_at_the_same_moment() {
        let moment = |since_boot: u64| Duration::from_micros(since_boot) + until_all_tell(since_boot);
        let begin = 7_000 * NOTICE_PERIOD;
        let end = Duration::from_micros(begin + NOTICE_PERIOD);
        for since_boot in [begin, begin + 1, begin + NOTICE_PERIOD / 2, begin + NOTICE_PERIOD - 1] {
            assert_eq!(moment(since_boot), end);
        }
        assert!(moment(begin + NOTICE_PERIOD) > end, "what comes later is told later");
    }
}
