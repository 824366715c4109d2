//! The server and the way to it: what was seen of them, and what that means.

mod measure;
mod probe;

use std::time::Duration;

use atoll_model::limits::{CLOCK_OFFSET_MAX, CLOCK_OFFSET_WARN};

use super::report::{Check, rounded, shown_bytes, shown_ms};
pub(super) use probe::{Server, look};

/// A call that takes longer makes every step that is not delegated begin late.
const ROUND_TRIP_SLOW_MS: f64 = 1_000.0;
/// Below this, commands, reports and logs of a busy site wait for the link.
const SERVER_SLOW: f64 = 100e3;
/// Below this, a gigabyte takes longer than a quarter of an hour.
const BUCKET_SLOW: f64 = 1e6;

/// How far a connection came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reached {
    /// As far as it is to.
    Open,
    NoUrl,
    NoName(String),
    /// Nobody listens.
    Refused,
    /// Nobody says anything.
    Silent(Duration),
    Unreachable(String),
    /// Somebody else answers, or somebody in between.
    WrongAuthority,
    WrongName,
    /// The certificate is not valid at this machine's time.
    WrongTime,
    NoTls(String),
}

/// Who is expected to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    ByToken,
    ByIdentity,
    Nothing,
}

/// One port of one server: whether it can be reached.
pub(super) fn judge_port(address: &str, reached: &Reached) -> Check {
    let name = "agent-port";
    let open_it =
        format!("let this machine connect to {address} (TCP, outbound): ask whoever runs the firewall of the site");
    match reached {
        Reached::NoUrl => Check::problem(
            name,
            format!("{address} is not a server"),
            "give --server as HOST:PORT, or the whole join token",
        ),
        Reached::NoName(error) => Check::problem(
            name,
            format!("{address}: the name is not known here: {error}"),
            "put the name into this site's DNS or /etc/hosts, or give --server with an address that is known here",
        ),
        Reached::Refused => Check::problem(
            name,
            format!("{address}: nobody listens there"),
            "see that `atoll server` runs, and that the port is that of its --agent-listen (7381 unless said otherwise)",
        ),
        Reached::Silent(patience) => {
            Check::problem(name, format!("{address}: no answer within {} s", patience.as_secs()), open_it)
        }
        Reached::Unreachable(error) => Check::problem(name, format!("{address}: {error}"), open_it),
        Reached::Open | Reached::WrongAuthority | Reached::WrongName | Reached::WrongTime | Reached::NoTls(_) => {
            Check::ok(name, format!("{address} (TCP) is reached"))
        }
    }
}

/// Whether it is the right server that answers there.
pub(super) fn judge_tls(address: &str, reached: &Reached, known: Known) -> Check {
    let name = "server-identity";
    match reached {
        Reached::Open => match known {
            Known::ByToken => {
                Check::ok(name, format!("{address} has a certificate of the CA that the token pins (TLS 1.3)"))
            }
            Known::ByIdentity => {
                Check::ok(name, format!("{address} has a certificate of the CA of this agent (TLS 1.3)"))
            }
            Known::Nothing => {
                let found =
                    format!("{address} speaks TLS 1.3; whether it is the right server only a join token can tell");
                Check::skipped(name, found).with_advice("give the join token: --server atoll-join.…, or `-` to read it")
            }
        },
        Reached::WrongAuthority => Check::problem(
            name,
            format!("{address} shows a certificate of another CA than the expected one"),
            "either another server answers there, or something in between opens TLS: have the connection exempted from \
             inspection. If the control plane was set up anew, ask for a new token (`atoll site token create`)",
        ),
        Reached::WrongName => Check::problem(
            name,
            format!("the certificate of {address} does not have that name"),
            "add the name to `names` in the configuration of the server, or use one that it has",
        ),
        Reached::WrongTime => Check::problem(
            name,
            format!("the certificate of {address} is not valid at this machine's time"),
            "put the clock right, here or on the server's machine: see `clock`",
        ),
        Reached::NoTls(error) => Check::problem(
            name,
            format!("{address} does not speak TLS 1.3 as a server does: {error}"),
            "the port must be that of --agent-listen, not of the HTTP API, and nothing in between may change what passes: a \
             proxy or balancer must pass TCP on as it is",
        ),
        Reached::NoUrl | Reached::NoName(_) | Reached::Refused | Reached::Silent(_) | Reached::Unreachable(_) => {
            Check::skipped(name, format!("{address} is not reached"))
        }
    }
}

/// E2: how far this machine's clock is off.
pub(super) fn judge_clock(offset_ms: i64) -> Check {
    let name = "clock";
    let offset = Duration::from_millis(offset_ms.unsigned_abs());
    let seconds = (offset.as_secs_f64()).round();
    let found = match offset_ms {
        // The server's time comes in whole seconds.
        -1_500..=1_500 => "within about a second of the server's".to_owned(),
        1_501.. => format!("{seconds} s ahead of the server's"),
        _ => format!("{seconds} s behind the server's"),
    };
    let advice =
        "have the clock of this machine set by NTP (`timedatectl set-ntp true`, chrony), or that of the server's";
    let limits =
        format!("warned of from {} s, no new work from {} s", CLOCK_OFFSET_WARN.as_secs(), CLOCK_OFFSET_MAX.as_secs());
    let check = if offset > CLOCK_OFFSET_MAX {
        Check::problem(name, format!("{found} ({limits})"), format!("{advice}: until then the site gets no new work"))
    } else if offset > CLOCK_OFFSET_WARN {
        Check::warning(
            name,
            format!("{found} ({limits})"),
            format!("{advice}: times that the site tells are off by as much"),
        )
    } else {
        Check::ok(name, found)
    };
    check.with("offset_ms", offset_ms)
}

/// Round trips in milliseconds, at least one.
pub(super) fn judge_round_trips(took_ms: &[f64]) -> Check {
    let mut sorted = took_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
        return Check::skipped("round-trip", "nothing was measured");
    };
    let median = sorted[sorted.len() / 2];
    let found = format!("{} (p50 of {}; {} to {})", shown_ms(median), sorted.len(), shown_ms(*least), shown_ms(*most));
    let check = if median > ROUND_TRIP_SLOW_MS {
        let advice = "each step waits that long for its site to hear of it: look for what holds the packets up (a VPN, a full \
                      link), or run the server nearer to its sites";
        Check::warning("round-trip", found, advice)
    } else {
        Check::ok("round-trip", found)
    };
    check.with("p50_ms", rounded(median)).with("max_ms", rounded(*most)).with("calls", sorted.len())
}

/// Bytes of a second, each way. What took too long is known only to be slower than what would have made it in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bandwidth {
    pub(super) up: Rate,
    pub(super) down: Rate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rate {
    Of(f64),
    Below(f64),
}

impl Rate {
    fn bytes_per_second(self) -> f64 {
        match self {
            Self::Of(rate) | Self::Below(rate) => rate,
        }
    }

    fn shown(self) -> String {
        let less = if matches!(self, Self::Below(_)) { "less than " } else { "" };
        format!("{less}{}/s", shown_bytes(self.bytes_per_second() as u64))
    }

    fn is_below(self, limit: f64) -> bool {
        self.bytes_per_second() < limit
    }
}

pub(super) fn judge_server_bandwidth(measured: Bandwidth) -> Check {
    let advice =
        "commands, reports and logs wait for such a link: look for a limit or a full line on the way to the server";
    judge_bandwidth("server-bandwidth", measured, SERVER_SLOW, advice)
}

pub(super) fn judge_bucket_bandwidth(measured: Bandwidth) -> Check {
    let advice = "a gigabyte takes longer than a quarter of an hour this way: look for a proxy or a limit on the way to the \
                  bucket, take one that is nearer, or let sites exchange data directly (`direct_listen`)";
    judge_bandwidth("bucket-bandwidth", measured, BUCKET_SLOW, advice)
}

fn judge_bandwidth(name: &'static str, measured: Bandwidth, slow: f64, advice: &str) -> Check {
    let Bandwidth { up, down } = measured;
    let found = format!("{} up, {} down", up.shown(), down.shown());
    let is_slow = up.is_below(slow) || down.is_below(slow);
    let check = if is_slow { Check::warning(name, found, advice) } else { Check::ok(name, found) };
    let figure = |rate: Rate| rate.bytes_per_second() as u64;
    check.with("up_bytes_per_second", figure(up)).with("down_bytes_per_second", figure(down))
}

#[cfg(test)]
mod tests {
    use super::super::report::CheckState;
    use super::*;

    #[test]
    fn the_limits_of_the_clock_are_those_of_the_product() {
        let state = |offset_seconds: i64| judge_clock(offset_seconds * 1_000).state;
        assert_eq!((state(0), state(60), state(-60)), (CheckState::Ok, CheckState::Ok, CheckState::Ok));
        assert_eq!((state(61), state(-300)), (CheckState::Warning, CheckState::Warning));
        assert_eq!((state(301), state(-301)), (CheckState::Problem, CheckState::Problem));
        let ahead = judge_clock(400_000);
        assert!(ahead.found.starts_with("400 s ahead of the server's"), "{}", ahead.found);
        assert_eq!(ahead.figures["offset_ms"], 400_000);
        assert!(judge_clock(-400_000).found.starts_with("400 s behind"));
        assert_eq!(judge_clock(900).found, "within about a second of the server's");
    }

    #[test]
    fn a_port_that_is_not_reached_is_no_word_on_who_would_answer() {
        for reached in [
            Reached::NoName("unknown".to_owned()),
            Reached::Refused,
            Reached::Silent(Duration::from_secs(15)),
            Reached::Unreachable("no route to host".to_owned()),
        ] {
            let (port, tls) = (judge_port("a:1", &reached), judge_tls("a:1", &reached, Known::ByToken));
            assert_eq!((port.state, tls.state), (CheckState::Problem, CheckState::Skipped), "{reached:?}");
        }
    }

    #[test]
    fn whoever_answers_in_place_of_the_server_is_a_problem_of_its_own() {
        for reached in
            [Reached::WrongAuthority, Reached::WrongName, Reached::WrongTime, Reached::NoTls("no handshake".to_owned())]
        {
            let (port, tls) = (judge_port("a:1", &reached), judge_tls("a:1", &reached, Known::ByIdentity));
            assert_eq!((port.state, tls.state), (CheckState::Ok, CheckState::Problem), "{reached:?}");
        }
        assert_eq!(judge_tls("a:1", &Reached::Open, Known::ByToken).state, CheckState::Ok);
        assert_eq!(judge_tls("a:1", &Reached::Open, Known::Nothing).state, CheckState::Skipped);
    }

    #[test]
    fn the_median_of_round_trips_counts() {
        let check = judge_round_trips(&[5.0, 4.0, 2_000.0]);
        assert_eq!((check.state, check.figures["p50_ms"].as_f64()), (CheckState::Ok, Some(5.0)));
        assert_eq!(check.found, "5.00 ms (p50 of 3; 4.00 ms to 2000 ms)");
        assert_eq!(judge_round_trips(&[1_200.0]).state, CheckState::Warning);
        assert_eq!(judge_round_trips(&[]).state, CheckState::Skipped);
    }

    #[test]
    fn the_slower_way_counts() {
        let judge = |up, down| judge_bucket_bandwidth(Bandwidth { up, down });
        assert_eq!(judge(Rate::Of(20e6), Rate::Of(90e6)).state, CheckState::Ok);
        let slow = judge(Rate::Of(20e6), Rate::Below(250e3));
        assert_eq!(slow.state, CheckState::Warning);
        assert_eq!(slow.found, "20.0 MB/s up, less than 250.0 kB/s down");
        assert_eq!(judge_server_bandwidth(Bandwidth { up: Rate::Of(1e6), down: Rate::Of(2e5) }).state, CheckState::Ok);
    }
}
