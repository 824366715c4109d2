//! What a seed means: who takes part, what goes wrong and how often.

use std::time::Duration;

use atoll_model::limits::FINISHED_RUNS_BYTES;

use crate::rng::{Rng, mix};

/// Of 1,000 seeds those in which work is taken from one of two sites and comes back to it.
const HANDOVERS: u64 = 15;
/// What is handed over.
const HANDED_OVER: &str = "
workflow: handover
steps:
  long: { foreach: [0, 1, 2], run: work, outputs: { out: file }, retry: { attempts: 4, backoff: 1s } }
  last: { run: work, with: { all: \"${{ steps.long.outputs.out }}\" }, outputs: { n: integer } }
";
/// Of 1,000 seeds those in which the journal of the control plane is restored from a backup.
const RESTORES: u64 = 120;
/// Of 1,000 seeds those with many sites: each takes as long as some twenty others.
const FLEETS: u64 = 8;

#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub trace: bool,
    /// Servers that share one journal; one alone has its own.
    pub servers: usize,
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
    /// Whether runs belong to projects, with priorities and limits.
    pub limits: bool,
    /// Somebody takes out what a run has made.
    pub takes: u64,
    /// A process is held up; a server cannot reach the journal.
    pub stalls: u64,
    pub store_cuts: u64,
    /// A machine goes for good; somebody removes it later, and another joins in its place.
    pub deaths: u64,
    /// Many sites are cut off at once.
    pub mass_cuts: u64,
    /// Whether a broken stream is noticed by a keep-alive; else only by silence.
    pub keep_alive: bool,
    /// Every frame that may be repeated arrives twice.
    pub doubled: bool,
    /// Whether agents give objects to each other; of 1,000 such fetches, those that are cut off in the middle.
    pub direct: Option<u64>,
    /// Whether what is made is large, and the first site is behind a thin link: the others serve one another.
    pub thin: bool,
    pub at_most_once: bool,
    pub clock_offset_max: Duration,
    /// Whether an agent finds another time on the wall at each start.
    pub clocks_jump: bool,
    /// How long a run stays with the control plane after its end.
    pub keep_finished: Duration,
    /// Memory for finished runs: with little, the oldest leave it before their time.
    pub keep_finished_bytes: u64,
    /// Whether much lasts for long, and sites are cut off for longer than they are waited for.
    pub long: bool,
    /// Whether all executions last for longer than a site is waited for.
    pub handover: bool,
    /// Whether there is always more to do than there is room for, and cuts last about as long as a lease.
    pub pressed: bool,
    /// Whether links take seconds from the beginning: what grants a lease comes late.
    pub slow_links: bool,
    /// Of 1,000 processes that are asked to end, those that take long to.
    pub slow_kills: u64,
    /// Whether sites have little room, and let go of what they may.
    pub tight: bool,
    /// Whether the end is watched until nothing is held any more.
    pub lingers: bool,
    /// Agents speak the version of the protocol before this one: no step is delegated to them.
    pub old_agents: bool,
    /// What an attempt does follows from how many were begun before it, not from its number.
    pub unnumbered: bool,
    /// Every execution succeeds at its first attempt, if it is left in peace.
    pub faultless: bool,
    pub cuts: Vec<Cut>,
    pub outages: Vec<Outage>,
    /// The bucket answers nobody; it is back before nothing goes wrong any more.
    pub bucket_outages: Vec<Outage>,
    /// Whether some steps take what others have made of the same.
    pub caches: bool,
    /// Whether some steps leave nothing but values.
    pub plain: bool,
    /// Whether some steps run actions that were pushed.
    pub actions: bool,
    /// Whether a workflow is deployed whose source emits.
    pub sources: bool,
    /// Whether rules let go of what some runs have made, a while after these have ended.
    pub expires: bool,
    pub restores: Vec<Restore>,
    /// Machines that go down and come up again, and when.
    pub planned_reboots: Vec<(usize, Duration)>,
    pub revocations: Vec<Revocation>,
    /// Of 1,000, in each ten seconds: a site is revoked, then removed, and joined anew under its name.
    pub revokes: u64,
    /// The last site is a copy of the first, with its identity.
    pub cloned: bool,
}

/// How long executions last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    Mixed,
    /// Seconds.
    Pressed,
    /// Many of them for longer than a site is waited for.
    Long,
    /// All of them for longer still.
    Handover,
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

/// The control plane is killed, or the bucket gone, and comes back after a while.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    pub at: Duration,
    pub lasts: Duration,
}

/// The control plane's journal is restored from a copy of an earlier time.
#[derive(Debug, Clone, Copy)]
pub struct Restore {
    pub copied_at: Duration,
    pub at: Duration,
    /// Whether somebody says so before any server starts again; else it is found out by what agents know.
    pub is_told: bool,
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
    /// Whether there are so many sites that one is always missing.
    pub(crate) fn is_fleet(&self) -> bool {
        self.sites >= 50
    }

    /// How long things last.
    pub fn pace(&self) -> Pace {
        match () {
            () if self.handover => Pace::Handover,
            () if self.long => Pace::Long,
            () if self.pressed => Pace::Pressed,
            () => Pace::Mixed,
        }
    }

    /// Nothing goes wrong.
    pub fn quiet(seed: u64) -> Self {
        Self {
            seed,
            trace: false,
            servers: 1,
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
            limits: false,
            takes: 0,
            stalls: 0,
            store_cuts: 0,
            deaths: 0,
            mass_cuts: 0,
            keep_alive: true,
            doubled: false,
            direct: None,
            thin: false,
            at_most_once: true,
            clock_offset_max: Duration::ZERO,
            clocks_jump: false,
            keep_finished: Duration::from_secs(7 * 24 * 3_600),
            keep_finished_bytes: FINISHED_RUNS_BYTES,
            long: false,
            handover: false,
            pressed: false,
            slow_links: false,
            slow_kills: 0,
            tight: false,
            lingers: true,
            old_agents: false,
            unnumbered: false,
            faultless: false,
            cuts: Vec::new(),
            outages: Vec::new(),
            bucket_outages: Vec::new(),
            caches: false,
            plain: false,
            actions: false,
            sources: false,
            expires: false,
            restores: Vec::new(),
            planned_reboots: Vec::new(),
            revocations: Vec::new(),
            revokes: 0,
            cloned: false,
        }
    }

    /// Nothing breaks, and executions move all the same: sites are drained, machines go down with what runs there, sites are
    /// cut off for so long that their work is given to others, and what fails is tried elsewhere.
    pub fn moving(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x1ed6_e500);
        let sites = rng.between(2, 5) as usize;
        let moves = seed % 4;
        let mut reboots = Vec::new();
        for site in 0..if moves == 2 { sites } else { 0 } {
            let times = rng.between(1, 3);
            reboots.extend((0..times).map(|_| (site, rng.micros(2_000_000, 60_000_000))));
        }
        let cut = |rng: &mut Rng| Cut {
            site: rng.below(sites as u64) as usize,
            at: rng.micros(1_100_000, 30_000_000),
            lasts: rng.micros(1_000_000_000, 1_500_000_000),
            to_server: true,
            to_agent: true,
        };
        let cuts = if moves == 3 { vec![cut(&mut rng)] } else { Vec::new() };
        Self {
            sites,
            runs: rng.between(1, 3) as usize,
            unquiet: Duration::from_secs(if moves == 3 { 2_000 } else { 60 }),
            drains: if moves == 1 { 400 } else { 0 },
            planned_reboots: reboots,
            cuts,
            direct: rng.chance(500).then_some(0),
            thin: mix(&[seed, 0x7417]).is_multiple_of(WORLDS_PER_THIN),
            old_agents: rng.chance(200),
            pressed: rng.chance(300),
            faultless: rng.chance(700),
            ..Self::quiet(seed)
        }
    }

    /// Whether there is a link that is thin.
    pub fn is_thin(&self) -> bool {
        self.thin && self.direct.is_some()
    }

    /// What goes wrong is drawn as well: each kind of fault is there in some seeds and not in others, so that one does not
    /// hide another.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xb6b6_0b6b);
        let drawn = Self::drawn_with_journal(seed);
        if !rng.chance(RESTORES) { drawn } else { drawn.restored(&mut rng) }
    }

    /// The journal is lost, and a backup of it restored. What an agent alone knows is not lost as well: nobody could tell.
    fn restored(self, rng: &mut Rng) -> Self {
        let unquiet = self.unquiet.as_micros() as u64;
        let copied_at = rng.micros(1_000_000, unquiet / 2);
        let at = copied_at + rng.spread(1_000, unquiet / 2);
        let restore = Restore { copied_at, at, is_told: rng.chance(800) };
        // A version that was pushed since is pushed again by whoever misses it, and nobody here does.
        Self {
            restores: vec![restore],
            journals_lost: 0,
            revokes: 0,
            deaths: 0,
            actions: false,
            sources: false,
            ..self
        }
    }

    fn drawn_with_journal(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5ce0_a210);
        if rng.chance(FLEETS) {
            return Self::fleet(seed, &mut rng);
        }
        if rng.chance(HANDOVERS) {
            return Self::handover(seed, &mut rng);
        }
        let (long, pressed) = (rng.chance(250), rng.chance(250));
        let mut some = |chance: u64, most: u64| if rng.chance(chance) { rng.between(1, most) } else { 0 };
        let often = if long { 1_000 } else { 4_000 };
        let (server_crashes, agent_crashes) = (some(500, 1_000), some(500, often));
        let (partitions, breaks) = (some(if pressed { 900 } else { 500 }, 150), some(500, 200));
        let (reboots, journals_lost) = (some(200, 80), some(250, 500));
        let (damages, full_disks) = (some(200, 100), some(150, 60));
        let (cancels, drains, slow_kills) = (some(400, 400), some(300, 100), some(if long { 600 } else { 250 }, 1_000));
        let (stalls, store_cuts, takes) = (some(200, 60), some(400, 60), some(300, 500));
        let clock_offset_max = Duration::from_secs(some(400, 240));
        let (revokes, deaths) = (some(100, 40), if long { some(300, 6) } else { 0 });
        let servers = if rng.chance(300) { rng.between(2, 3) as usize } else { 1 };
        let (sites, runs) = (rng.between(if long { 2 } else { 1 }, 4) as usize, rng.between(1, 5) as usize);
        // Long enough, in some, for a site to be declared lost.
        let unquiet = Duration::from_secs(if long { rng.between(1_500, 4_000) } else { rng.between(20, 400) });
        Self {
            servers,
            sites,
            runs,
            unquiet,
            bucket_outages: bucket_outages(seed, unquiet),
            caches: mix(&[seed, 0xCAC4E5]).is_multiple_of(WORLDS_PER_CACHING),
            plain: mix(&[seed, 0xB1A1]).is_multiple_of(WORLDS_PER_PLAIN),
            actions: mix(&[seed, 0xAC7104]).is_multiple_of(WORLDS_PER_ACTIONS),
            sources: revokes == 0 && deaths == 0 && mix(&[seed, 0x50_0CE]).is_multiple_of(WORLDS_PER_SOURCE),
            expires: mix(&[seed, 0xE4_91_4E]).is_multiple_of(WORLDS_PER_EXPIRING),
            thin: mix(&[seed, 0x7417]).is_multiple_of(WORLDS_PER_THIN),
            long,
            pressed,
            slow_links: pressed && mix(&[seed, 0x51_0C]).is_multiple_of(2),
            server_crashes,
            agent_crashes,
            partitions: if long { partitions / 4 } else { partitions },
            breaks,
            reboots,
            journals_lost,
            damages,
            full_disks,
            cancels,
            drains,
            takes,
            stalls,
            store_cuts,
            slow_kills,
            deaths,
            keep_alive: rng.chance(700),
            doubled: rng.chance(100),
            at_most_once: rng.chance(if long { 700 } else { 400 }),
            clock_offset_max,
            clocks_jump: rng.chance(300),
            keep_finished: match rng.below(10) {
                0..2 => rng.spread(1_000, 10_000_000),
                2..4 => rng.spread(1_000_000, 1_000_000_000),
                _ => Self::quiet(seed).keep_finished,
            },
            tight: seed.is_multiple_of(3),
            keep_finished_bytes: finished_bytes(seed),
            lingers: rng.chance(200),
            limits: rng.chance(300),
            revokes,
            old_agents: seed % 12 == 7,
            ..Self::quiet(seed)
        }
    }

    /// A site is cut off until it is lost, and comes back while another does its work; then that one goes down. What the
    /// first was told to end takes long to, and other attempts come to it meanwhile.
    fn handover(seed: u64, rng: &mut Rng) -> Self {
        let cut = Cut {
            site: 0,
            at: rng.micros(2_000_000, 30_000_000),
            lasts: rng.micros(1_000_000_000, 1_200_000_000),
            to_server: true,
            to_agent: true,
        };
        let reboot = (1, cut.at + cut.lasts + rng.micros(20_000_000, 200_000_000));
        Self {
            sites: 2,
            workflows: vec![HANDED_OVER.to_owned()],
            unquiet: Duration::from_secs(2_000),
            cuts: vec![cut],
            planned_reboots: vec![reboot],
            slow_kills: 900,
            long: true,
            handover: true,
            breaks: if rng.chance(300) { 30 } else { 0 },
            agent_crashes: if rng.chance(300) { 100 } else { 0 },
            ..Self::quiet(seed)
        }
    }

    /// Many small sites that come and go.
    fn fleet(seed: u64, rng: &mut Rng) -> Self {
        let mut some = |chance: u64, most: u64| if rng.chance(chance) { rng.between(1, most) } else { 0 };
        let (server_crashes, agent_crashes) = (some(400, 50), some(500, 300));
        let (partitions, breaks) = (some(700, 40), some(500, 60));
        let (reboots, journals_lost) = (some(300, 20), some(250, 500));
        let (stalls, store_cuts) = (some(200, 6), some(400, 60));
        let (revokes, deaths, mass_cuts) = (some(500, 6), some(500, 6), some(400, 60));
        Self {
            servers: if rng.chance(400) { 2 } else { 1 },
            sites: rng.between(50, 200) as usize,
            runs: rng.between(3, 12) as usize,
            unquiet: Duration::from_secs(rng.between(60, 500)),
            server_crashes,
            agent_crashes,
            partitions,
            breaks,
            reboots,
            journals_lost,
            stalls,
            store_cuts,
            revokes,
            deaths,
            mass_cuts,
            keep_alive: rng.chance(700),
            at_most_once: rng.chance(300),
            clock_offset_max: Duration::from_secs(if rng.chance(400) { 200 } else { 0 }),
            clocks_jump: rng.chance(300),
            keep_finished: rng.spread(1_000_000, 1_000_000_000),
            keep_finished_bytes: finished_bytes(seed),
            lingers: false,
            ..Self::quiet(seed)
        }
    }
}

/// Of so many worlds the bucket is gone for a while in one.
const WORLDS_PER_BUCKET_OUTAGE: u64 = 6;

/// Drawn apart, so that it shifts nothing of the rest.
fn bucket_outages(seed: u64, unquiet: Duration) -> Vec<Outage> {
    let mut rng = Rng::new(mix(&[seed, 0xB0_C4E7]));
    if rng.below(WORLDS_PER_BUCKET_OUTAGE) > 0 {
        return Vec::new();
    }
    let half = unquiet.as_micros() as u64 / 2;
    let outage = |rng: &mut Rng| Outage { at: rng.micros(1_000_000, half), lasts: rng.spread(100_000, half) };
    (0..rng.between(1, 3)).map(|_| outage(&mut rng)).collect()
}

/// In one of so many worlds some steps leave nothing but values.
const WORLDS_PER_PLAIN: u64 = 4;
/// The same, of those in which some steps run actions that were pushed.
const WORLDS_PER_ACTIONS: u64 = 3;

/// The same, of those in which a workflow is deployed.
const WORLDS_PER_SOURCE: u64 = 3;

/// In one of so many worlds rules let go of what runs have made.
const WORLDS_PER_EXPIRING: u64 = 4;

/// One in so many has a thin link, if its agents give objects to each other.
const WORLDS_PER_THIN: u64 = 4;

/// In one of so many worlds steps take what others have made.
const WORLDS_PER_CACHING: u64 = 3;

/// Of so many worlds one has little memory for finished runs.
const WORLDS_PER_FORGETFUL: u64 = 5;

/// Drawn apart, so that it shifts nothing of the rest.
fn finished_bytes(seed: u64) -> u64 {
    if mix(&[seed, 0xF1_0151]).is_multiple_of(WORLDS_PER_FORGETFUL) { 20_000 } else { FINISHED_RUNS_BYTES }
}
