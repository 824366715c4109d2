//! Bytes on their way between a site's store and the bucket, under permissions that the control plane gives.

use std::time::Duration;

use atoll_model::id::{AgentId, TransferId};
use atoll_model::session::{DirectShare, PushFailure};
use atoll_model::value::ObjectRef;
use control_plane_core::Request;
use site_agent_core::Event;
use site_agent_core::event::Arrival;

use crate::faults::Victim;
use crate::network::Direction;
use crate::rng::mix;
use crate::server::Asker;
use crate::world::{Answer, Ask, BucketCopy, CopyName, Occurrence, Process, Rpc, Source, World};

/// How long an agent waits for the answer to a call.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);

impl World {
    pub(crate) fn fetch(&mut self, site: usize, object: ObjectRef, intent: u64) {
        if self.verified(site, object.id) {
            let at = self.site_time(site);
            self.tell_site(site, Duration::from_micros(5), Event::Fetched { object, wire_bytes: 0, direct: None, at });
            return;
        }
        let try_number = self.next_try(site);
        let (name, at) = (self.sites[site].name.to_string(), self.elapsed());
        self.history.begun.insert((object.id, name), at);
        let before = self.sites[site].machine.fetching.insert(object.id, try_number);
        assert!(before.is_none(), "{} is fetched twice at once", object.id);
        self.sites[site].machine.relayed_by.remove(&object.id);
        let ask = match self.scenario.direct {
            Some(_) => Ask::Offers { object, intent, try_number },
            None => Ask::Fetch { object, intent, try_number, before: None },
        };
        self.call(site, ask);
    }

    pub(crate) fn cancel_fetch(&mut self, site: usize, object: ObjectRef) {
        // It may have come so far that it is carried to its end.
        if self.rng.chance(500) && self.sites[site].machine.fetching.remove(&object.id).is_some() {
            self.fetch_fails(site, object, "cancelled", false);
        }
    }

    pub(crate) fn push(&mut self, site: usize, transfer: TransferId, object: ObjectRef) {
        let at = self.elapsed();
        self.history.begun.entry((object.id, "bucket".to_owned())).or_insert(at);
        let try_number = self.next_try(site);
        self.sites[site].machine.pushing.insert(transfer, try_number);
        self.call(site, Ask::Push { transfer, object, try_number });
    }

    pub(crate) fn cancel_push(&mut self, site: usize, transfer: TransferId) {
        let pushing = self.sites[site].machine.pushing.get(&transfer).copied();
        let Some(try_number) = pushing.filter(|_| self.rng.chance(500)) else { return };
        let object = self.rpcs.values().find_map(|rpc| match rpc.ask {
            Ask::Push { object, try_number: of, .. } if of == try_number => Some(object),
            Ask::Push { .. }
            | Ask::Fetch { .. }
            | Ask::Advertise
            | Ask::Offers { .. }
            | Ask::OfferFailed { .. }
            | Ask::Emit(_) => None,
        });
        // Without a call it is being uploaded, and will be answered when it is.
        if let Some(object) = object {
            self.sites[site].machine.pushing.remove(&transfer);
            self.push_fails(site, transfer, object, PushFailure::Cancelled);
        }
    }

    pub(crate) fn rpc_arrives(&mut self, number: u64) {
        let Some(rpc) = self.rpcs.get(&number) else { return };
        if self.network.links[rpc.site].is_blocked(Direction::ToServer) {
            return; // The call expires.
        }
        let (site, agent) = (rpc.site, self.sites[rpc.site].agent);
        let body = match rpc.ask {
            Ask::Fetch { object, .. } => Request::AuthoriseFetch { agent, object: object.id },
            Ask::Push { transfer, .. } => Request::AuthorisePush { agent, transfer },
            Ask::Advertise => {
                // One agent is of the version before this.
                let relays = !mix(&[self.scenario.seed, site as u64, 0x5E1A]).is_multiple_of(6);
                Request::Advertise { agent, addresses: vec![format!("10.0.0.{site}:7433")], relays }
            }
            Ask::Offers { object, .. } => Request::Offers { agent, object: object.id },
            Ask::OfferFailed { object, holder, .. } => Request::OfferFailed { agent, object: object.id, holder },
            Ask::Emit(emission) => self.emit_request(site, number, &emission),
        };
        // Over the connection of the stream, if there is one.
        let of_stream = self.sites[site].stream.and_then(|stream| self.network.streams.get(&stream)?.server);
        let server = match of_stream {
            Some((server, _)) => Some(server),
            None => self.some_leader(),
        };
        if let Some(server) = server.filter(|server| self.servers[*server].stalled_until <= self.now) {
            self.ask_server(server, Asker::Agent(number), body);
        }
    }

    pub(crate) fn rpc_answered(&mut self, number: u64, result: Result<Answer, String>) {
        let Some(Rpc { site, process, ask }) = self.rpcs.remove(&number) else { return };
        if self.sites[site].process != process {
            return;
        }
        match (ask, result) {
            (Ask::Fetch { object, intent, try_number, before }, Ok(Answer::Copy(name))) => {
                let delay = self.rng.spread(200, 4_000_000);
                let source = Source::Bucket { name, before };
                self.after(delay, Occurrence::Downloaded { site, process, object, intent, try_number, source });
            }
            (Ask::Fetch { object, try_number, .. }, Err(message)) => {
                if self.take_fetch(site, object, try_number) {
                    self.fetch_fails(site, object, &message, false);
                }
            }
            (Ask::Advertise, Err(message)) if message == "no answer" => {
                if self.sites[site].stream.is_some() {
                    self.call(site, Ask::Advertise);
                }
            }
            (Ask::Advertise, _) => {}
            (Ask::Emit(emission), result) => self.emit_answered(site, &emission, result),
            (
                Ask::Fetch { .. } | Ask::Push { .. },
                Ok(Answer::Holders(_) | Answer::AskAgain(_) | Answer::Emitted { .. }),
            ) => {
                unreachable!("a copy is what was asked for")
            }
            (Ask::Offers { object, intent, try_number }, Ok(Answer::Holders(holders))) if !holders.is_empty() => {
                let (holder, next) = (holders[0], holders.get(1).copied());
                self.comes_from(site, (object, intent, try_number), holder, next);
            }
            (Ask::Offers { object, intent, try_number }, Ok(Answer::AskAgain(time))) => {
                self.call_after(time, site, Ask::Offers { object, intent, try_number });
            }
            (Ask::Offers { object, intent, try_number }, _) => {
                self.call(site, Ask::Fetch { object, intent, try_number, before: None });
            }
            (Ask::OfferFailed { object, intent, try_number, next: Some(next), .. }, _) => {
                self.comes_from(site, (object, intent, try_number), next, None);
            }
            (Ask::OfferFailed { object, intent, try_number, holder, before, next: None }, _) => {
                let before = before.then_some(holder);
                self.call(site, Ask::Fetch { object, intent, try_number, before });
            }
            (Ask::Push { transfer, object, try_number }, Ok(Answer::Copy(name))) => {
                let delay = self.rng.spread(200, 4_000_000);
                self.after(delay, Occurrence::Uploaded { site, process, transfer, object, name, try_number });
            }
            // The shell tries again for as long as the control plane cannot be asked.
            (Ask::Push { transfer, object, try_number }, Err(message)) if message == "no answer" => {
                if self.sites[site].machine.pushing.get(&transfer) == Some(&try_number) {
                    self.call(site, Ask::Push { transfer, object, try_number });
                }
            }
            (Ask::Push { transfer, object, try_number }, Err(_)) => {
                if self.take_push(site, transfer, try_number) {
                    self.push_fails(site, transfer, object, PushFailure::Refused);
                }
            }
        }
    }

    pub(crate) fn downloaded(
        &mut self,
        site: usize,
        process: Process,
        (object, intent): (ObjectRef, u64),
        (try_number, source): (u64, Source),
    ) {
        if self.sites[site].process != process {
            return;
        }
        if let Source::Site { holder, .. } = source
            && self.waits_for_relay(site, holder, object, try_number)
        {
            // What comes to the holder goes on as it comes: a moment after the last of it.
            let delay = self.rng.micros(1_000, 500_000);
            return self.after(delay, Occurrence::Downloaded { site, process, object, intent, try_number, source });
        }
        if let Source::Site { holder, next } = source
            && self.is_cut_off(site, holder, object)
        {
            if self.sites[site].machine.fetching.get(&object.id) == Some(&try_number) {
                let before = self.rng.chance(500);
                self.call(site, Ask::OfferFailed { object, intent, try_number, holder, before, next });
            }
            return;
        }
        if !self.take_fetch(site, object, try_number) {
            return;
        }
        if matches!(source, Source::Bucket { .. }) && self.bucket_gone_until().is_some() {
            return self.fetch_fails(site, object, "the bucket does not answer", false);
        }
        let copy = match source {
            Source::Bucket { name, .. } => self.bucket.get(&name).copied(),
            Source::Site { .. } => None,
        };
        let (holder, share) = match (source, copy) {
            (Source::Site { holder, .. }, _) => (Some(holder), object.bytes),
            (Source::Bucket { .. }, None) => return self.fetch_fails(site, object, "it is not in the bucket", false),
            (Source::Bucket { .. }, Some(copy)) if copy.corrupt => {
                return self.fetch_fails(site, object, "its digest is another", true);
            }
            (Source::Bucket { before, .. }, Some(_)) => (before, object.bytes / 2),
        };
        let (at, wire_bytes, name) = (self.site_time(site), object.bytes, self.sites[site].name.to_string());
        let direct = holder.filter(|_| share > 0).map(|holder| DirectShare { holder, wire_bytes: share });
        let of_site = direct.map_or(0, |share| share.wire_bytes);
        let began = self.history.begun.get(&(object.id, name.clone())).copied().unwrap_or_default();
        if let Some(from) = direct.and_then(|share| self.sites.iter().find(|site| site.agent == share.holder)) {
            let from = from.name.to_string();
            self.history.crossed((object.id, of_site), &from, &name, began);
        }
        if direct.is_none() || of_site < wire_bytes {
            self.history.crossed((object.id, wire_bytes - of_site), "bucket", &name, began);
        }
        self.sites[site].machine.arrivals.insert(object.id, Arrival { object, intent, wire_bytes, direct, at });
        if self.crash_point(Victim::Site(site)) {
            return;
        }
        self.sites[site].machine.put(object);
        let delay = self.rng.micros(5, 5_000);
        self.tell_site(site, delay, Event::Fetched { object, wire_bytes, direct, at });
    }

    /// An object comes from another site, which may be behind a thin link.
    fn comes_from(
        &mut self,
        site: usize,
        (object, intent, try_number): (ObjectRef, u64, u64),
        holder: AgentId,
        next: Option<AgentId>,
    ) {
        let delay = if self.scenario.is_thin() {
            let is_thin = site == 0 || self.sites[0].agent == holder;
            let rate: u64 = if is_thin { 16 << 20 } else { 512 << 20 };
            Duration::from_micros(200 + object.bytes * 1_000_000 / rate)
        } else {
            self.rng.spread(200, 4_000_000)
        };
        let (process, source) = (self.sites[site].process, Source::Site { holder, next });
        self.after(delay, Occurrence::Downloaded { site, process, object, intent, try_number, source });
    }

    /// Whether the holder is itself being given the object, of which the site has all but the rest.
    fn waits_for_relay(&mut self, site: usize, holder: AgentId, object: ObjectRef, try_number: u64) -> bool {
        let is_mine = |world: &Self, site: usize| world.sites[site].machine.fetching.contains_key(&object.id);
        let relay = self.sites.iter().position(|other| other.agent == holder && other.core.is_some());
        let Some(relay) = relay.filter(|relay| *relay != site && is_mine(self, *relay)) else {
            self.sites[site].machine.relayed_by.remove(&object.id);
            return false;
        };
        if self.sites[site].machine.fetching.get(&object.id) != Some(&try_number) {
            return false;
        }
        self.history.relayed.insert((object.id, site));
        self.sites[site].machine.relayed_by.insert(object.id, relay);
        let (mut at, mut waits) = (relay, 0);
        while let Some(next) = self.sites[at].machine.relayed_by.get(&object.id).filter(|_| is_mine(self, at)) {
            (at, waits) = (*next, waits + 1);
            assert!(waits <= self.sites.len(), "sites wait for each other to be given {}", object.id);
        }
        true
    }

    /// Whether the link between two sites breaks while an object comes over it, or its end does not give it.
    fn is_cut_off(&mut self, site: usize, holder: AgentId, object: ObjectRef) -> bool {
        let from = self.sites.iter().position(|site| site.agent == holder && site.core.is_some());
        let gives = from.is_some_and(|from| from != site && self.verified(from, object.id));
        let cuts = self.scenario.direct.filter(|_| self.unquiet).unwrap_or(0);
        !gives || self.rng.chance(cuts)
    }

    pub(crate) fn uploaded(
        &mut self,
        site: usize,
        process: Process,
        (transfer, object): (TransferId, ObjectRef),
        (name, try_number): (CopyName, u64),
    ) {
        if self.sites[site].process != process || !self.take_push(site, transfer, try_number) {
            return;
        }
        if !self.verified(site, object.id) {
            self.push_fails(site, transfer, object, PushFailure::Unavailable);
            return;
        }
        if self.bucket_gone_until().is_some() {
            return self.push_fails(site, transfer, object, PushFailure::Refused);
        }
        // A copy of the right length is taken for whole: whoever reads it finds out.
        let there = self.bucket.contains_key(&name);
        if !there {
            let corrupt = self.unquiet && self.scenario.damages > 0 && self.rng.chance(30);
            self.history.damages += u32::from(corrupt);
            self.bucket.insert(name, BucketCopy { corrupt });
            let from = self.sites[site].name.to_string();
            let began = self.history.begun.remove(&(object.id, "bucket".to_owned()));
            self.history.crossed((object.id, object.bytes), &from, "bucket", began.unwrap_or_default());
        }
        let wire_bytes = if there { 0 } else { object.bytes };
        let at = self.site_time(site);
        let delay = self.rng.micros(5, 5_000);
        self.tell_site(site, delay, Event::Pushed { transfer, object, wire_bytes, at });
    }

    /// Nobody may send to the bucket what is being deleted there.
    pub(crate) fn assert_not_being_deleted(&self, server: usize, rpc: u64) {
        if let Some(Rpc { ask: Ask::Push { object, .. }, .. }) = self.rpcs.get(&rpc) {
            let deleting = self.servers[server].deleting.contains(&object.id);
            assert!(!deleting, "{} may be sent to the bucket while it is deleted there", object.id);
        }
    }

    pub(crate) fn call(&mut self, site: usize, ask: Ask) {
        self.call_after(Duration::ZERO, site, ask);
    }

    pub(crate) fn call_after(&mut self, time: Duration, site: usize, ask: Ask) {
        self.next_call += 1;
        let number = self.next_call;
        let process = self.sites[site].process;
        self.rpcs.insert(number, Rpc { site, process, ask });
        let delay = time + self.latency(site);
        self.after(delay, Occurrence::RpcArrives(number));
        self.after(time + CALL_TIME_MAX, Occurrence::RpcExpires(number));
    }

    fn next_try(&mut self, _site: usize) -> u64 {
        self.next_call += 1;
        self.next_call
    }

    fn take_fetch(&mut self, site: usize, object: ObjectRef, try_number: u64) -> bool {
        let fetching = &mut self.sites[site].machine.fetching;
        let current = fetching.get(&object.id) == Some(&try_number);
        if current {
            fetching.remove(&object.id);
        }
        current
    }

    fn take_push(&mut self, site: usize, transfer: TransferId, try_number: u64) -> bool {
        let pushing = &mut self.sites[site].machine.pushing;
        let current = pushing.get(&transfer) == Some(&try_number);
        if current {
            pushing.remove(&transfer);
        }
        current
    }

    fn fetch_fails(&mut self, site: usize, object: ObjectRef, message: &str, corrupt: bool) {
        let delay = self.rng.micros(5, 1_000);
        let (message, permanent) = (message.to_owned(), false);
        self.tell_site(site, delay, Event::FetchFailed { object, message, corrupt, permanent });
    }

    fn push_fails(&mut self, site: usize, transfer: TransferId, object: ObjectRef, reason: PushFailure) {
        let delay = self.rng.micros(5, 1_000);
        let message = "it could not be pushed".to_owned();
        self.tell_site(site, delay, Event::PushFailed { transfer, object, reason, message });
    }
}
