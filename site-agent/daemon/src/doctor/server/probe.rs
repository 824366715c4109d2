//! Reaching the servers of an installation, one after the other.

use std::io;
use std::time::{Duration, SystemTime};

use tokio::net::lookup_host;

use super::{Known, Reached, judge_clock, judge_port, judge_round_trips, judge_tls, measure};
use crate::doctor::report::Check;
use crate::link::{CertificateFault, ConnectError, Expected, Inspection, RoundTrip, certificate_fault, http_client};

/// The first one pays for what the connection still has to do.
const WARMING: usize = 1;
const ROUND_TRIPS: usize = 11;
/// All of them together, after which those count that have come.
const ROUND_TRIPS_PATIENCE: Duration = Duration::from_secs(20);
const NAME_PATIENCE: Duration = Duration::from_secs(10);

/// The servers that are looked at.
#[derive(Debug)]
pub(in super::super) struct Server {
    /// `https://host:port`, with commas between them.
    pub(in super::super) urls: String,
    pub(in super::super) expected: Expected,
}

/// A server that answered.
struct Answering {
    inspection: Inspection,
    round_trips: Vec<RoundTrip>,
}

/// Everything about the servers and the way to them.
pub(in super::super) async fn look(server: &Server) -> Vec<Check> {
    let known = match &server.expected {
        Expected::Pinned(_) => Known::ByToken,
        Expected::Known(_) => Known::ByIdentity,
        Expected::Anyone => Known::Nothing,
    };
    let (mut checks, mut answering) = (Vec::new(), Vec::new());
    for url in server.urls.split(',').map(str::trim) {
        let address = url.trim_start_matches("https://").trim_end_matches('/');
        let (reached, inspection) = reach(url, &server.expected).await;
        checks.push(judge_port(address, &reached));
        checks.push(judge_tls(address, &reached, known));
        if let Some(inspection) = inspection {
            let round_trips = round_trips(&inspection).await;
            answering.push(Answering { inspection, round_trips });
        }
    }
    checks.push(clock(&answering));
    checks.push(match answering.iter().find(|one| !one.round_trips.is_empty()) {
        Some(one) => {
            let took = one.round_trips.iter().map(|round_trip| round_trip.took.as_secs_f64() * 1e3);
            judge_round_trips(&took.collect::<Vec<_>>())
        }
        None => Check::skipped("round-trip", "no server answers"),
    });
    let inspections: Vec<Inspection> = answering.into_iter().map(|one| one.inspection).collect();
    checks.extend(bandwidths(&server.expected, &inspections).await);
    checks
}

async fn reach(url: &str, expected: &Expected) -> (Reached, Option<Inspection>) {
    let Some((host, port)) = url.parse::<http::Uri>().ok().and_then(|uri| {
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some((host, uri.port_u16().unwrap_or(443)))
    }) else {
        return (Reached::NoUrl, None);
    };
    match tokio::time::timeout(NAME_PATIENCE, lookup_host((host.as_str(), port))).await {
        Ok(Ok(mut found)) => {
            if found.next().is_none() {
                return (Reached::NoName("it has no address".to_owned()), None);
            }
        }
        Ok(Err(error)) => return (Reached::NoName(error.to_string()), None),
        Err(_) => return (Reached::NoName("no name server answers".to_owned()), None),
    }
    let error = match Inspection::open(url, expected, None).await {
        Ok(inspection) => return (Reached::Open, Some(inspection)),
        Err(error) => error,
    };
    match certificate_fault(&error) {
        // What the server's clock shows is to be seen all the same.
        Some(CertificateFault::Time(valid)) => {
            (Reached::WrongTime, Inspection::open(url, expected, Some(valid)).await.ok())
        }
        Some(CertificateFault::Name) => (Reached::WrongName, None),
        None => (not_reached(&error), None),
    }
}

fn not_reached(error: &ConnectError) -> Reached {
    match error {
        ConnectError::Url(_) => Reached::NoUrl,
        ConnectError::Tcp { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => Reached::Refused,
        ConnectError::Tcp { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
            Reached::Silent(crate::link::CONNECT_TIMEOUT)
        }
        ConnectError::Tcp { source, .. } => Reached::Unreachable(source.to_string()),
        ConnectError::WrongAuthority { .. } => Reached::WrongAuthority,
        ConnectError::Tls { source, .. } => Reached::NoTls(source.to_string()),
        ConnectError::Http { source, .. } => Reached::NoTls(source.to_string()),
        ConnectError::Configuration(error) => Reached::NoTls(error.to_string()),
    }
}

async fn round_trips(inspection: &Inspection) -> Vec<RoundTrip> {
    let mut found = Vec::new();
    let measuring = async {
        for number in 0..WARMING + ROUND_TRIPS {
            let Ok(round_trip) = inspection.round_trip().await else { return };
            if number >= WARMING {
                found.push(round_trip);
            }
        }
    };
    // On a link so slow, a few are enough to see it.
    let _ = tokio::time::timeout(ROUND_TRIPS_PATIENCE, measuring).await;
    found
}

fn clock(answering: &[Answering]) -> Check {
    let all = answering.iter().flat_map(|one| &one.round_trips);
    let best = all.filter_map(|one| Some((one.took, one.clocks?))).min_by_key(|(took, _)| *took);
    let Some((_, (server, here))) = best else {
        return Check::skipped("clock", "no server answers that it could be compared with");
    };
    // The whole second that the server names has begun half a second ago, on average.
    judge_clock(between_ms(server + Duration::from_millis(500), here))
}

/// How far `here` is ahead.
fn between_ms(server: SystemTime, here: SystemTime) -> i64 {
    let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match here.duration_since(server) {
        Ok(ahead) => ms(ahead),
        Err(behind) => -ms(behind.duration()),
    }
}

async fn bandwidths(expected: &Expected, inspections: &[Inspection]) -> [Check; 2] {
    let both = |why: &str| ["server-bandwidth", "bucket-bandwidth"].map(|name| Check::skipped(name, why));
    let Expected::Known(identity) = expected else {
        return both("measured once the site has joined: the server gives strangers nothing to measure with");
    };
    if identity.is_expired(SystemTime::now()) {
        return both("measured with a certificate, and the agent's has expired: see `identity`");
    }
    if inspections.is_empty() {
        return both("no server answers");
    }
    let client = match http_client(identity) {
        Ok(client) => client,
        Err(error) => return both(&format!("no client for the bucket: {error}")),
    };
    let (leader, server) = measure::server_bandwidth(inspections).await;
    [server, measure::bucket_bandwidth(leader, &client).await]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_ahead_or_behind() {
        let server = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(between_ms(server, server + Duration::from_millis(1_250)), 1_250);
        assert_eq!(between_ms(server, server - Duration::from_secs(90)), -90_000);
    }

    #[test]
    fn what_a_connection_fails_for_is_told_apart() {
        let tcp = |kind: io::ErrorKind| ConnectError::Tcp { url: String::new(), source: kind.into() };
        assert_eq!(not_reached(&tcp(io::ErrorKind::ConnectionRefused)), Reached::Refused);
        assert!(matches!(not_reached(&tcp(io::ErrorKind::TimedOut)), Reached::Silent(_)));
        assert!(matches!(not_reached(&tcp(io::ErrorKind::NetworkUnreachable)), Reached::Unreachable(_)));
        let authority = ConnectError::WrongAuthority { url: String::new() };
        assert_eq!(not_reached(&authority), Reached::WrongAuthority);
    }
}
