//! What goes wrong, and how it ends.

use std::time::Duration;

use crate::clients::Want;
use crate::scenario::{Cut, Kill, Outage, Restore, Revocation, Who};
use crate::world::{Occurrence, World};

/// How often chance is asked for a fault of each kind.
const BEAT: Duration = Duration::from_secs(10);

/// Who acts at a point at which he may be killed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Victim {
    Server(usize),
    Site(usize),
}

#[derive(Debug)]
pub(crate) enum Fault {
    /// Time to think of more.
    Beat,
    Cut(Cut),
    Outage(Duration),
    Heal {
        site: usize,
    },
    Revoke {
        site: usize,
    },
    Reboot {
        site: usize,
    },
    /// The journal of the control plane is copied; what was copied takes its place.
    BackUp,
    Restore {
        is_told: bool,
    },
    DiskFull {
        site: usize,
        full: bool,
    },
    /// From now on nothing goes wrong any more.
    Quiet,
}

impl World {
    pub(crate) fn plan_faults(&mut self) {
        self.after(Duration::from_secs(2), Occurrence::Fault(Fault::Beat));
        for cut in self.scenario.cuts.clone() {
            self.after(cut.at, Occurrence::Fault(Fault::Cut(cut)));
        }
        for Revocation { site, at } in self.scenario.revocations.clone() {
            self.after(at, Occurrence::Fault(Fault::Revoke { site }));
        }
        for Outage { at, lasts } in self.scenario.outages.clone() {
            self.after(at, Occurrence::Fault(Fault::Outage(lasts)));
        }
        for (site, at) in self.scenario.planned_reboots.clone() {
            self.after(at, Occurrence::Fault(Fault::Reboot { site }));
        }
        for Restore { copied_at, at, is_told } in self.scenario.restores.clone() {
            self.after(copied_at, Occurrence::Fault(Fault::BackUp));
            self.after(at, Occurrence::Fault(Fault::Restore { is_told }));
        }
        let unquiet = self.scenario.unquiet;
        self.after(unquiet, Occurrence::Fault(Fault::Quiet));
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Beat => {
                if self.unquiet {
                    for site in 0..self.sites.len() {
                        self.trouble(site);
                        if self.scenario.tight && self.sites[site].core.is_some() {
                            self.measure(site);
                        }
                    }
                    for server in 0..self.servers.len() {
                        self.trouble_of_server(server);
                    }
                    if self.rng.chance(self.scenario.mass_cuts) {
                        self.mass_cut();
                    }
                    self.after(BEAT, Occurrence::Fault(Fault::Beat));
                }
            }
            Fault::Heal { site } => self.unblock(site),
            Fault::Revoke { site } => self.revoke(site),
            Fault::Reboot { site } => self.reboot(site),
            Fault::BackUp => self.back_up(),
            Fault::Restore { is_told } => self.restore(is_told),
            Fault::Cut(Cut { site, lasts, to_server, to_agent, .. }) => self.cut(site, lasts, (to_server, to_agent)),
            Fault::Outage(lasts) => {
                for server in 0..self.servers.len() {
                    self.crash_server_for(server, lasts);
                }
            }
            Fault::DiskFull { site, full } => {
                self.sites[site].machine.is_full = full;
                self.measure(site);
            }
            Fault::Quiet => {
                self.trace(|| "quiet".to_owned());
                self.unquiet = false;
                self.clients.stop_draining();
                for site in 0..self.sites.len() {
                    self.network.links[site].slow = false;
                    self.unblock(site);
                    self.sites[site].machine.is_full = false;
                    self.sites[site].wall_ahead = Duration::ZERO;
                    self.measure(site);
                    if self.sites[site].is_dead {
                        // Nobody will hear of it again: it is given up, and another machine takes its place.
                        self.revoke(site);
                    }
                    if self.scenario.drains > 0 {
                        self.wish(Duration::ZERO, Want::Drain { site, drained: false });
                    }
                }
            }
        }
    }

    /// A moment at which whoever acts may be killed; whether he was.
    pub(crate) fn crash_point(&mut self, actor: Victim) -> bool {
        self.points += 1;
        let struck = if let Some(Kill { who: victim, point }) = self.scenario.kill {
            if self.points != point {
                return false;
            }
            victim
        } else {
            let (chance, who) = match actor {
                Victim::Server(_) => (self.scenario.server_crashes, Who::Server),
                Victim::Site(_) => (self.scenario.agent_crashes, Who::Agent),
            };
            if !self.unquiet || self.rng.below(100_000) >= chance {
                return false;
            }
            if self.rng.chance(100) { Who::Both } else { who }
        };
        if struck != Who::Agent {
            let server = match actor {
                Victim::Server(server) => Some(server),
                Victim::Site(_) => self.leading_index(),
            };
            if let Some(server) = server {
                self.crash_server(server);
            }
        }
        if struck != Who::Server {
            // Of agents the one that acts; where a server acts and agents are meant, all of them.
            let victims = match actor {
                Victim::Server(_) => 0..self.sites.len(),
                Victim::Site(site) => site..site + 1,
            };
            victims.for_each(|site| self.crash_site(site));
        }
        match actor {
            Victim::Server(server) => self.servers[server].core.is_none(),
            Victim::Site(site) => self.sites[site].core.is_none(),
        }
    }

    fn cut(&mut self, site: usize, lasts: Duration, (to_server, to_agent): (bool, bool)) {
        self.trace(|| format!("s{site} is cut off for {lasts:?}"));
        let link = &mut self.network.links[site];
        link.blocked_to_server |= to_server;
        link.blocked_to_agent |= to_agent;
        self.after(lasts, Occurrence::Fault(Fault::Heal { site }));
        if self.scenario.keep_alive {
            let delay = Duration::from_secs(self.rng.between(20, 40));
            if let Some(stream) = self.sites[site].stream.filter(|_| lasts > delay) {
                self.after(delay, Occurrence::NoticeAgent(stream));
                let delay = delay + self.rng.micros(1_000, 10_000_000);
                self.after(delay, Occurrence::NoticeServer(stream));
            }
        }
    }

    fn trouble(&mut self, site: usize) {
        if self.rng.chance(self.scenario.partitions) {
            let blocked = *self.rng.pick(&[(true, false), (false, true), (true, true)]);
            let long = self.scenario.long && self.rng.chance(500);
            let lasts = if long {
                self.rng.micros(1_000_000_000, 2_500_000_000)
            } else if self.scenario.pressed && self.rng.chance(700) {
                // About as long as a session lease.
                self.rng.micros(40_000_000, 75_000_000)
            } else {
                self.rng.spread(500_000, 1_500_000_000)
            };
            self.cut(site, lasts, blocked);
        }
        if self.rng.chance(self.scenario.breaks)
            && let Some(stream) = self.sites[site].stream
        {
            self.break_stream(stream);
        }
        if self.scenario.breaks > 0 && self.rng.chance(50) {
            self.network.links[site].slow ^= true;
        }
        if self.rng.chance(self.scenario.reboots) {
            self.trace(|| format!("s{site} reboots"));
            self.reboot(site);
        }
        if self.rng.chance(self.scenario.damages) {
            let store = &mut self.sites[site].machine.store;
            let place = self.rng.below(store.len() as u64) as usize;
            if let Some(stored) = store.values_mut().nth(place) {
                stored.damaged = true;
                self.history.damages += 1;
            }
        }
        if self.rng.chance(self.scenario.full_disks) {
            self.fault(Fault::DiskFull { site, full: true });
            let lasts = self.rng.spread(1_000_000, 60_000_000);
            self.after(lasts, Occurrence::Fault(Fault::DiskFull { site, full: false }));
        }
        if self.scenario.revokes > 0 && self.rng.chance(self.scenario.revokes) {
            self.revoke(site);
        }
        if self.rng.chance(self.scenario.stalls) {
            let lasts = self.rng.spread(10_000, 120_000_000);
            self.trace(|| format!("s{site} is held up for {lasts:?}"));
            let until = self.now + lasts;
            let stalled = &mut self.sites[site].stalled_until;
            *stalled = until.max(*stalled);
        }
        if self.scenario.deaths > 0 && self.rng.chance(self.scenario.deaths) && self.sites[site].enrolled {
            self.trace(|| format!("s{site} is gone for good"));
            self.reboot(site);
            self.sites[site].is_dead = true;
            let later = self.rng.spread(1_000_000, 2_000_000_000);
            match self.rng.below(3) {
                0 => self.revoke(site),
                1 => self.wish(later, Want::DeclareLost { site }),
                _ => {}
            }
        }
        if self.scenario.clocks_jump && self.rng.chance(20) {
            self.set_wall_clock(site);
        }
        if self.scenario.long && self.rng.chance(3) {
            // Somebody who knows better, or thinks so.
            self.wish(Duration::ZERO, Want::DeclareLost { site });
        }
        if self.rng.chance(self.scenario.drains) {
            let drained = self.rng.chance(500);
            self.wish(Duration::ZERO, Want::Drain { site, drained });
        }
    }

    fn trouble_of_server(&mut self, server: usize) {
        if self.rng.chance(self.scenario.stalls) {
            let lasts = self.rng.spread(100_000, 90_000_000);
            self.stall_server(server, lasts);
        }
        if self.servers.len() > 1 && self.rng.chance(self.scenario.store_cuts) {
            let lasts = self.rng.spread(100_000, 60_000_000);
            self.cut_off_server(server, lasts);
        }
    }

    /// A part of the world cannot be reached for a while (B7).
    fn mass_cut(&mut self) {
        let share = self.rng.between(100, 1_000);
        let lasts = self.rng.spread(20_000_000, 1_200_000_000);
        for site in 0..self.sites.len() {
            if self.rng.chance(share) {
                self.cut(site, lasts, (true, true));
            }
        }
    }
}
