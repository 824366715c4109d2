//! What a seed means: who takes part, what goes wrong and how often.

use std::time::Duration;

use crate::rng::Rng;

#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub trace: bool,
    pub sites: usize,
    pub runs: usize,
    /// Workflows in place of drawn ones.
    pub workflows: Vec<String>,
    /// How long faults may happen.
    pub unquiet: Duration,
    /// Chances of a crash at each point where there may be one, of 100,000.
    pub server_crashes: u64,
    pub agent_crashes: u64,
    /// Somebody crashes at exactly this point.
    pub kill: Option<Kill>,
    /// Of 1,000: faults of the network, of disks, of people, in each ten seconds.
    pub partitions: u64,
    pub breaks: u64,
    pub reboots: u64,
    pub journals_lost: u64,
    pub damages: u64,
    pub full_disks: u64,
    pub cancels: u64,
    pub drains: u64,
    /// Whether a broken stream is noticed by a keep-alive; else only by silence.
    pub keep_alive: bool,
    /// Every frame that may be repeated arrives twice.
    pub doubled: bool,
    pub at_most_once: bool,
    pub clock_offset_max: Duration,
    /// Every execution succeeds at its first attempt, if it is left in peace.
    pub faultless: bool,
    pub cuts: Vec<Cut>,
    pub outages: Vec<Outage>,
    pub revocations: Vec<Revocation>,
    /// Of 1,000, in each ten seconds: a site is revoked, then removed, and joined anew under its name.
    pub revokes: u64,
    /// The last site is a copy of the first, with its identity.
    pub cloned: bool,
}

/// The link of a site is blocked for a while, in one direction or both.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub site: usize,
    pub at: Duration,
    pub lasts: Duration,
    pub to_server: bool,
    pub to_agent: bool,
}

/// A site is revoked.
#[derive(Debug, Clone, Copy)]
pub struct Revocation {
    pub site: usize,
    pub at: Duration,
}

/// The control plane is killed, and comes back after a while.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    pub at: Duration,
    pub lasts: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    pub who: Who,
    pub point: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Agent,
    Server,
    Both,
}

impl Scenario {
    /// Nothing goes wrong.
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            trace: false,
            sites: 2,
            runs: 1,
            workflows: Vec::new(),
            unquiet: Duration::from_secs(60),
            server_crashes: 0,
            agent_crashes: 0,
            kill: None,
            partitions: 0,
            breaks: 0,
            reboots: 0,
            journals_lost: 0,
            damages: 0,
            full_disks: 0,
            cancels: 0,
            drains: 0,
            keep_alive: true,
            doubled: false,
            at_most_once: true,
            clock_offset_max: Duration::ZERO,
            faultless: false,
            cuts: Vec::new(),
            outages: Vec::new(),
            revocations: Vec::new(),
            revokes: 0,
            cloned: false,
        }
    }

    /// What goes wrong is drawn as well: each kind of fault is there in some seeds and not in others, so that one does not
    /// hide another.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5ce0_a210);
        let mut some = |chance: u64, most: u64| if rng.chance(chance) { rng.between(1, most) } else { 0 };
        let (server_crashes, agent_crashes) = (some(500, 1_000), some(500, 1_000));
        let (partitions, breaks) = (some(500, 150), some(500, 200));
        let (reboots, journals_lost) = (some(200, 80), some(250, 500));
        let (damages, full_disks) = (some(200, 100), some(150, 60));
        let (cancels, drains) = (some(250, 300), some(200, 60));
        let clock_offset_max = Duration::from_secs(some(400, 240));
        let scenario = Self {
            sites: rng.between(1, 4) as usize,
            runs: rng.between(1, 5) as usize,
            // Long enough, in some, for a site to be declared lost.
            unquiet: Duration::from_secs(if rng.chance(250) {
                rng.between(1_500, 4_000)
            } else {
                rng.between(20, 400)
            }),
            server_crashes,
            agent_crashes,
            partitions,
            breaks,
            reboots,
            journals_lost,
            damages,
            full_disks,
            cancels,
            drains,
            keep_alive: rng.chance(700),
            doubled: rng.chance(100),
            at_most_once: rng.chance(400),
            clock_offset_max,
            ..Self::quiet(seed)
        };
        Self { revokes: if rng.chance(100) { rng.between(1, 40) } else { 0 }, ..scenario }
    }
}
