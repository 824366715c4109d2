//! The servers of an installation: one leads, the others say which.

use std::time::Duration;

use tonic::Status;

/// Metadata in which a server that stands by names the leader's `host:port`; empty while none leads.
const LEADER: &str = "atoll-leader";
/// While a server answers that none leads at the moment: one will within seconds.
const SOON: Duration = Duration::from_millis(400);

/// Before the next server of several is tried: spread, so that agents which lost the same one do not come as one.
const NEXT: Duration = Duration::from_millis(150);

/// Which server to try.
#[derive(Debug)]
pub(super) struct Servers {
    known: Vec<String>,
    next: usize,
    /// Named by one of the others.
    named: Option<String>,
    /// The last that did not work.
    down: Option<String>,
    /// Tries in this round.
    tried: usize,
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    Nothing,
    Short(Duration),
    /// As the back-off says.
    BackOff,
}

impl Servers {
    /// From URLs with commas between them, as a join token has them.
    pub(super) fn of(urls: &str) -> Self {
        let known = urls.split(',').map(|url| url.trim().to_owned()).collect();
        Self { known, next: 0, named: None, down: None, tried: 0 }
    }

    pub(super) fn current(&self) -> &str {
        self.named.as_deref().unwrap_or_else(|| &self.known[self.next])
    }

    /// A session has begun.
    pub(super) fn reached(&mut self) {
        (self.down, self.tried) = (None, 0);
    }

    /// Chooses the next one to try, after the current one has not worked, or no longer.
    pub(super) fn failed(&mut self, status: Option<&Status>) -> Pause {
        let tried = self.current().to_owned();
        match status.and_then(|status| status.metadata().get(LEADER)) {
            Some(leader) => {
                self.tried = 0;
                let leader = leader.to_str().ok().filter(|leader| !leader.is_empty());
                let leader = leader.map(|leader| format!("https://{leader}"));
                match leader.filter(|leader| *leader != tried && Some(leader) != self.down.as_ref()) {
                    Some(leader) => {
                        self.named = Some(leader);
                        Pause::Nothing
                    }
                    // It has gone a moment ago, and the others wait for its lease to run out.
                    None => {
                        (self.named, self.down) = (None, None);
                        Pause::Short(SOON)
                    }
                }
            }
            None => {
                self.named = None;
                self.down = Some(tried);
                self.next = (self.next + 1) % self.known.len();
                self.tried += 1;
                if self.tried < self.known.len() {
                    return Pause::Short(NEXT);
                }
                self.tried = 0;
                Pause::BackOff
            }
        }
    }
}

/// URLs of `host:port`s with commas between them.
pub(crate) fn urls(addresses: &str) -> String {
    let urls: Vec<String> = addresses.split(',').map(|address| format!("https://{}", address.trim())).collect();
    urls.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing_by(leader: &str) -> Status {
        let mut status = Status::unavailable("this server stands by");
        status.metadata_mut().insert(LEADER, leader.parse().expect("an address"));
        status
    }

    #[test]
    fn a_server_that_stands_by_is_left_for_the_leader_that_it_names() {
        let mut servers = Servers::of(&urls("a:1, b:2"));
        assert_eq!(servers.current(), "https://a:1");
        assert_eq!(servers.failed(Some(&standing_by("c:3"))), Pause::Nothing);
        assert_eq!(servers.current(), "https://c:3");
        servers.reached();
        assert_eq!(servers.failed(None), Pause::Short(NEXT), "the leader is gone: the others are asked at once");
        assert_eq!(servers.current(), "https://b:2");
        assert_eq!(servers.failed(Some(&standing_by("c:3"))), Pause::Short(SOON), "it does not know yet");
        assert_eq!(servers.current(), "https://b:2");
        assert_eq!(servers.failed(Some(&standing_by(""))), Pause::Short(SOON));
    }

    #[test]
    fn a_round_of_servers_that_are_all_gone_ends_with_a_pause() {
        let mut one = Servers::of("https://a:1");
        assert_eq!((one.failed(None), one.failed(None)), (Pause::BackOff, Pause::BackOff));
        let mut servers = Servers::of("https://a:1,https://b:2");
        assert_eq!((servers.failed(None), servers.failed(None)), (Pause::Short(NEXT), Pause::BackOff));
        assert_eq!(servers.current(), "https://a:1");
    }
}
