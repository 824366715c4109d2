//! The ports that this agent is to listen on, and the proxies on its way out.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket};

use super::report::Check;
use crate::config::WorkerSettings;

/// What became of taking a port for a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    Free,
    /// In use, and the agent of this data directory runs.
    ByAgent,
    Taken,
    NotAllowed,
    NoAddress,
    Failed(String),
}

/// The ports of the configuration: name, address, and whether it is UDP.
pub(super) fn look(
    direct: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    workers: Option<&WorkerSettings>,
    agent_runs: bool,
) -> Vec<Check> {
    let ports = [
        ("direct-port-tcp", direct, false, "direct_listen"),
        ("direct-port-udp", direct, true, "direct_listen"),
        ("metrics-port", metrics, false, "metrics_listen"),
        ("workers-port", workers.map(|workers| workers.listen), false, "[workers] listen"),
    ];
    let look = |(name, address, udp, setting): (&'static str, Option<SocketAddr>, bool, &str)| match address {
        Some(address) => judge_port(name, address, setting, &bind(address, udp, agent_runs)),
        None => Check::skipped(name, format!("`{setting}` is not set: the agent does not listen there")),
    };
    let named = workers.map(|workers| judge_addresses(&workers.addresses(workers.listen), &resolve));
    ports.into_iter().map(look).chain(named).collect()
}

/// What a `host:port` means here, or why it means nothing.
fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    address.to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string())
}

/// Where workers are told to connect to, as far as that can be seen from here.
fn judge_addresses(addresses: &[String], resolve: &dyn Fn(&str) -> Result<Vec<SocketAddr>, String>) -> Check {
    let (name, listed) = ("workers-addresses", addresses.join(", "));
    let advice =
        "say in `[workers] addresses` a name or address of this machine by which the others reach it, with the port";
    let mut reached = false;
    for address in addresses {
        match resolve(address) {
            Err(why) => return Check::problem(name, format!("{address}: {why}"), advice),
            Ok(found) => reached |= found.iter().any(|found| !found.ip().is_loopback()),
        }
    }
    if reached {
        let others =
            "the other machines must be let in there, by TCP; `atoll worker` on one of them tells whether they are";
        return Check::ok(name, format!("workers connect to {listed}")).with_advice(others);
    }
    Check::warning(name, format!("workers connect to {listed}: only this machine itself is reached there"), advice)
}

fn bind(address: SocketAddr, udp: bool, agent_runs: bool) -> Bound {
    let bound = if udp { UdpSocket::bind(address).map(drop) } else { TcpListener::bind(address).map(drop) };
    match bound.map_err(|error| (error.kind(), error)) {
        Ok(()) => Bound::Free,
        Err((ErrorKind::AddrInUse, _)) if agent_runs => Bound::ByAgent,
        Err((ErrorKind::AddrInUse, _)) => Bound::Taken,
        Err((ErrorKind::PermissionDenied, _)) => Bound::NotAllowed,
        Err((ErrorKind::AddrNotAvailable, _)) => Bound::NoAddress,
        Err((_, error)) => Bound::Failed(error.to_string()),
    }
}

fn judge_port(name: &'static str, address: SocketAddr, setting: &str, bound: &Bound) -> Check {
    let protocol = if name.ends_with("udp") { "UDP" } else { "TCP" };
    let port = format!("{address} ({protocol})");
    match bound {
        Bound::Free if setting == "direct_listen" => {
            let others =
                "agents of other sites must be let in there, by TCP, UDP or both; else data goes by way of the bucket";
            Check::ok(name, format!("{port} is free")).with_advice(others)
        }
        Bound::Free => Check::ok(name, format!("{port} is free")),
        Bound::ByAgent => Check::ok(name, format!("{port} is taken, as by the agent that runs here")),
        Bound::Taken => Check::problem(
            name,
            format!("{port} is taken by another program"),
            format!("give `{setting}` another port, or end what listens there (`ss -lntup` names it)"),
        ),
        Bound::NotAllowed => Check::problem(
            name,
            format!("{port} may not be taken by this user"),
            format!("give `{setting}` a port from 1024 on"),
        ),
        Bound::NoAddress => Check::problem(
            name,
            format!("this machine does not have the address {}", address.ip()),
            format!("give `{setting}` an address of this machine (`ip address` lists them), or 0.0.0.0"),
        ),
        Bound::Failed(error) => {
            Check::problem(name, format!("{port}: {error}"), format!("give `{setting}` another address or port"))
        }
    }
}

/// Variables that name proxies, in the order in which one of the two spellings wins.
const PROXY_VARIABLES: [&str; 3] = ["HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY"];

/// What the variables of the environment mean for an agent that is started with them.
pub(super) fn judge_proxy(variable: &dyn Fn(&str) -> Option<String>, server: Option<&str>, reached: bool) -> Check {
    let name = "proxy";
    let get = |name: &str| {
        [name.to_owned(), name.to_lowercase()].iter().find_map(|name| variable(name)).filter(|v| !v.is_empty())
    };
    let proxies: Vec<(&str, String)> =
        PROXY_VARIABLES.iter().filter_map(|name| Some((*name, without_password(&get(name)?)))).collect();
    if proxies.is_empty() {
        return Check::ok(name, "no proxy is set: the agent connects straight to the server and to the bucket");
    }
    let listed: Vec<String> = proxies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let except = get("NO_PROXY").map(|list| format!("; NO_PROXY={list}")).unwrap_or_default();
    let found = format!("{}{except}", listed.join("; "));
    if let Some((name_of, value)) = proxies.iter().find(|(_, value)| !is_proxy(value)) {
        let advice = format!("write {name_of} as http://HOST:PORT");
        return Check::problem(name, format!("{found}: {value} is not the URL of a proxy"), advice);
    }
    if proxies.iter().all(|(name, _)| *name == "HTTP_PROXY") {
        return Check::ok(name, format!("{found}: of no consequence, since all that the agent does is HTTPS"));
    }
    let server = server.unwrap_or("the server");
    let meaning = "the bucket is reached through it, the server is not: its TLS has to arrive unopened";
    if reached {
        Check::ok(name, format!("{found}: {meaning}, and it is reached without"))
    } else {
        let advice = format!(
            "have TCP to {server} let through the firewall: the agent's link is one long connection with certificates on both \
             sides, which no proxy is asked for"
        );
        Check::warning(name, format!("{found}: {meaning}, and it is not reached"), advice)
    }
}

/// A proxy's URL may hold a password, which is shown to nobody.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    let authority = authority.rsplit_once('@').map_or(authority.to_owned(), |(_, host)| format!("…@{host}"));
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    let path = if path.is_empty() { String::new() } else { format!("/{path}") };
    format!("{scheme}{authority}{path}")
}

fn is_proxy(url: &str) -> bool {
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    reqwest::Url::parse(&with_scheme.replace("…@", ""))
        .is_ok_and(|url| url.host_str().is_some_and(|host| !host.is_empty()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::report::CheckState;
    use super::*;

    #[test]
    fn a_port_is_free_taken_or_the_agents_own() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        assert_eq!(bind(address, false, false), Bound::Taken);
        assert_eq!(bind(address, false, true), Bound::ByAgent);
        drop(held);
        assert_eq!(bind("203.0.113.9:0".parse().unwrap(), true, false), Bound::NoAddress);
        assert_eq!(bind("127.0.0.1:0".parse().unwrap(), true, false), Bound::Free);
        let checks = look(Some(address), None, None, false);
        let states: Vec<CheckState> = checks.iter().map(|check| check.state).collect();
        assert_eq!(states, [CheckState::Ok, CheckState::Ok, CheckState::Skipped, CheckState::Skipped]);
        let workers = WorkerSettings { listen: address, addresses: Vec::new(), lost_seconds: 120 };
        let checks = look(None, None, Some(&workers), false);
        let of_workers: Vec<_> = checks[3..].iter().map(|check| (check.name, check.state)).collect();
        let expected = [("workers-port", CheckState::Ok), ("workers-addresses", CheckState::Warning)];
        assert_eq!(of_workers, expected, "nobody else reaches a loopback address");
    }

    #[test]
    fn workers_are_sent_where_other_machines_reach_this_one() {
        let known = |address: &str| match address {
            "login:7434" => Ok(vec!["10.0.0.1:7434".parse().unwrap()]),
            "localhost:7434" => Ok(vec!["127.0.0.1:7434".parse().unwrap()]),
            _ => Err("no such name".to_owned()),
        };
        let of = |addresses: &[&str]| {
            let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
            judge_addresses(&addresses, &known)
        };
        assert_eq!(of(&["login:7434", "localhost:7434"]).state, CheckState::Ok);
        assert_eq!(of(&["localhost:7434"]).state, CheckState::Warning);
        let unknown = of(&["nowhere:7434"]);
        assert_eq!((unknown.state, unknown.found.as_str()), (CheckState::Problem, "nowhere:7434: no such name"));
        assert!(unknown.advice.unwrap().contains("[workers] addresses"));
    }

    #[test]
    fn a_port_that_cannot_be_taken_comes_with_a_way_out() {
        let address = "0.0.0.0:80".parse().unwrap();
        for bound in [Bound::Taken, Bound::NotAllowed, Bound::NoAddress, Bound::Failed("no".to_owned())] {
            let check = judge_port("direct-port-udp", address, "direct_listen", &bound);
            assert_eq!(check.state, CheckState::Problem);
            assert!(check.advice.unwrap().contains("direct_listen"), "{bound:?}");
        }
    }

    fn proxy(variables: &[(&str, &str)], reached: bool) -> Check {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        judge_proxy(&variable, Some("control:7381"), reached)
    }

    #[test]
    fn a_proxy_is_for_the_bucket_and_not_for_the_server() {
        assert_eq!(proxy(&[], false).state, CheckState::Ok);
        let set = [("https_proxy", "http://user:secret@proxy:3128"), ("NO_PROXY", "localhost")];
        let reached = proxy(&set, true);
        assert_eq!(reached.state, CheckState::Ok);
        assert!(reached.found.contains("HTTPS_PROXY=http://…@proxy:3128; NO_PROXY=localhost"), "{}", reached.found);
        assert!(!reached.found.contains("secret"));
        let cut_off = proxy(&set, false);
        assert_eq!(cut_off.state, CheckState::Warning);
        assert!(cut_off.advice.unwrap().contains("control:7381"));
    }

    #[test]
    fn a_proxy_that_is_none_is_said_and_one_for_plain_http_matters_to_nobody() {
        assert_eq!(proxy(&[("HTTPS_PROXY", "http://")], true).state, CheckState::Problem);
        assert_eq!(proxy(&[("HTTPS_PROXY", "proxy:3128")], true).state, CheckState::Ok);
        assert_eq!(proxy(&[("HTTP_PROXY", "http://proxy:3128")], false).state, CheckState::Ok);
    }
}
