//! Frames on their way, and streams that break.

use std::time::Duration;

use atoll_model::session::{AgentBody, AgentFrame, ControlBody, ControlFrame};
use atoll_model::time::Timestamp;
use control_plane_core::ConnectionId;
use site_agent_core::Event;

use crate::network::Direction;
use crate::world::{Occurrence, Process, World};

impl World {
    pub(crate) fn enqueue_to_server(&mut self, number: u64, at: Timestamp, frame: AgentFrame) {
        let Some(stream) = self.network.streams.get_mut(&number) else { return };
        self.history.commands_acknowledged(self.sites[stream.site].agent, &frame);
        let at = stream.to_server.back().map_or(at, |(last, _)| at.max(*last));
        // A handshake is never repeated within a stream; what has a number may be.
        let twice = self.scenario.doubled && matches!(frame.body, AgentBody::Reports { .. } | AgentBody::Heartbeat(_));
        if twice {
            stream.to_server.push_back((at, frame.clone()));
        }
        stream.to_server.push_back((at, frame));
        for _ in 0..=u8::from(twice) {
            self.at(at, Occurrence::Arrive(number, Direction::ToServer));
        }
    }

    pub(crate) fn enqueue_to_agent(&mut self, number: u64, at: Timestamp, frame: ControlFrame) {
        let Some(stream) = self.network.streams.get_mut(&number) else { return };
        if let ControlBody::Commands { first, commands } = &frame.body {
            self.history.commands_given(self.sites[stream.site].agent, first.0 - 1 + commands.len() as u64);
        }
        let at = stream.to_agent.back().map_or(at, |(last, _)| at.max(*last));
        let twice = self.scenario.doubled
            && matches!(frame.body, ControlBody::Commands { .. } | ControlBody::Acknowledge | ControlBody::Ready);
        if twice {
            stream.to_agent.push_back((at, frame.clone()));
        }
        stream.to_agent.push_back((at, frame));
        let ends_handshake =
            matches!(stream.to_agent.back(), Some((_, frame)) if matches!(frame.body, ControlBody::Verdicts(_)));
        for _ in 0..=u8::from(twice) {
            self.at(at, Occurrence::Arrive(number, Direction::ToAgent));
        }
        // Where a stream that breaks leaves the most behind.
        if ends_handshake && self.unquiet && self.scenario.breaks > 0 && self.rng.chance(150) {
            self.after(Duration::ZERO, Occurrence::NoticeAgent(number));
        }
    }

    /// The next frame of a stream arrives, unless its way is blocked: then it waits.
    pub(crate) fn arrive(&mut self, number: u64, direction: Direction) {
        let now = self.now;
        let Some(stream) = self.network.streams.get_mut(&number) else { return };
        let site = stream.site;
        if self.network.links[site].is_blocked(direction) {
            return;
        }
        match direction {
            Direction::ToServer => {
                if stream.to_server.front().is_none_or(|(at, _)| *at > now) {
                    return;
                }
                let Some((_, frame)) = stream.to_server.pop_front() else { return };
                let Some((server, process)) = stream.server else { return };
                let agent = self.sites[site].agent;
                let connection = ConnectionId(number);
                let event = control_plane_core::Event::FrameReceived { connection, agent, frame };
                self.server_event(server, process, event);
            }
            Direction::ToAgent => {
                if stream.to_agent.front().is_none_or(|(at, _)| *at > now) {
                    return;
                }
                let Some((_, frame)) = stream.to_agent.pop_front() else { return };
                let Some(process) = stream.agent else { return };
                if let Some(grant) = &frame.lease {
                    let answers = self.world_time(site, grant.answers);
                    let state = &mut self.sites[site];
                    state.session_until = state.session_until.max(answers + grant.session);
                    state.work_until = state.work_until.max(answers + grant.work);
                }
                // The end of a handshake may be read once more in the next.
                if matches!(frame.body, ControlBody::Verdicts(_))
                    && self.unquiet
                    && self.scenario.breaks > 0
                    && self.rng.chance(200)
                {
                    self.sites[site].late_frames.push_back((number, frame.clone()));
                }
                self.site_event(site, process, Event::FrameReceived { frame });
                self.late_frame(site, process);
            }
        }
    }

    /// What an older stream still held is read only now.
    fn late_frame(&mut self, site: usize, process: Process) {
        if self.sites[site].process == process
            && let Some((of, _)) = self.sites[site].late_frames.front()
            && self.sites[site].stream != Some(*of)
            && self.rng.chance(500)
            && let Some((_, frame)) = self.sites[site].late_frames.pop_front()
        {
            self.tell_site(site, Duration::from_micros(1), Event::FrameReceived { frame });
        }
    }

    /// A stream breaks: each side finds out in its own time, or not at all. Something of what is on its way may arrive.
    pub(crate) fn break_stream(&mut self, number: u64) {
        let Some(stream) = self.network.streams.get_mut(&number) else { return };
        let to_server = self.rng.below(stream.to_server.len() as u64 + 1) as usize;
        stream.to_server.truncate(to_server);
        let to_agent = self.rng.below(stream.to_agent.len() as u64 + 1) as usize;
        stream.to_agent.truncate(to_agent);
        self.trace(|| format!("stream {number} breaks"));
        for occurrence in [Occurrence::NoticeServer(number), Occurrence::NoticeAgent(number)] {
            let delay = if self.rng.chance(600) {
                self.rng.spread(1_000, 2_000_000)
            } else if self.scenario.keep_alive {
                Duration::from_secs(self.rng.between(10, 30))
            } else {
                Duration::from_secs(self.rng.between(60, 400))
            };
            self.after(delay, occurrence);
        }
    }

    pub(crate) fn notice_server(&mut self, number: u64) {
        let Some(stream) = self.network.streams.get_mut(&number) else { return };
        stream.to_server.clear();
        if let Some((server, process)) = stream.server.take() {
            let connection = ConnectionId(number);
            self.server_event(server, process, control_plane_core::Event::ConnectionLost { connection });
        }
        self.network.sweep();
    }

    pub(crate) fn notice_agent(&mut self, number: u64) {
        let Some(stream) = self.network.streams.get_mut(&number) else { return };
        let rest = std::mem::take(&mut stream.to_agent);
        let site = stream.site;
        if let Some(process) = stream.agent.take() {
            self.sites[site].stream = None;
            if self.unquiet && self.sites[site].process == process && self.rng.chance(300) {
                self.sites[site].late_frames.extend(rest.into_iter().map(|(_, frame)| (number, frame)));
            }
            self.site_event(site, process, Event::Disconnected);
            self.reconnect(site);
        }
        self.network.sweep();
    }

    /// A server's process is gone, and with it its side of its streams.
    pub(crate) fn server_streams_break(&mut self, server: usize) {
        let open: Vec<(u64, usize)> = self
            .network
            .streams
            .iter_mut()
            .filter(|(_, stream)| stream.server.is_some_and(|(of, _)| of == server))
            .filter_map(|(number, stream)| {
                stream.server = None;
                stream.to_server.clear();
                stream.agent.map(|_| (*number, stream.site))
            })
            .collect();
        for (number, site) in open {
            let hears = !self.network.links[site].is_blocked(Direction::ToAgent);
            let delay = if hears { self.latency(site) } else { Duration::from_secs(self.rng.between(20, 100)) };
            self.after(delay, Occurrence::NoticeAgent(number));
        }
    }

    /// What waited for a link to clear goes on.
    pub(crate) fn unblock(&mut self, site: usize) {
        let link = &mut self.network.links[site];
        (link.blocked_to_server, link.blocked_to_agent) = (false, false);
        let now = self.now;
        let mut arrivals = Vec::new();
        for (number, stream) in self.network.streams.iter().filter(|(_, stream)| stream.site == site) {
            let to_server = stream.to_server.iter().filter(|(at, _)| *at <= now).count();
            let to_agent = stream.to_agent.iter().filter(|(at, _)| *at <= now).count();
            arrivals.extend((0..to_server).map(|_| (*number, Direction::ToServer)));
            arrivals.extend((0..to_agent).map(|_| (*number, Direction::ToAgent)));
        }
        for (number, direction) in arrivals {
            let delay = self.rng.micros(0, 50_000);
            self.after(delay, Occurrence::Arrive(number, direction));
        }
    }
}
