//! The certificate that this server shows, made anew before it ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rcgen::SanType;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::authority::{SERVER_LIFETIME, subject_name};
use super::{Authority, AuthorityError};

/// A certificate of this control plane's own CA. Its key is made with it and never leaves the memory, so that a server
/// that starts has a new one; one that stays up replaces it at half of its life, with the next connection.
#[derive(Debug)]
pub struct ServerCertificate {
    authority: Arc<Authority>,
    names: Vec<SanType>,
    current: RwLock<(SystemTime, Arc<CertifiedKey>)>,
}

impl ServerCertificate {
    /// # Errors
    /// When it cannot be made.
    pub fn issue(authority: Arc<Authority>, names: &BTreeSet<String>) -> Result<Arc<Self>, AuthorityError> {
        let names = names.iter().filter_map(|name| subject_name(name)).collect::<Vec<_>>();
        let now = SystemTime::now();
        let key = authority.certify_server(&names, now)?;
        Ok(Arc::new(Self { authority, names, current: RwLock::new((now, key)) }))
    }

    fn key_at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            let is_young = now.duration_since(current.0).is_ok_and(|age| age < SERVER_LIFETIME / 2);
            if is_young {
                return Arc::clone(&current.1);
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        match self.authority.certify_server(&self.names, now) {
            Ok(key) => *current = (now, key),
            Err(error) => tracing::error!(error = ?error, "the server's certificate could not be replaced"),
        }
        Arc::clone(&current.1)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key_at(SystemTime::now()))
    }
}

/// Every name by which this server may be reached: addresses that it listens on, this machine's own, configured ones.
pub fn server_names<'a>(
    listening: impl IntoIterator<Item = IpAddr>,
    configured: impl IntoIterator<Item = &'a str>,
) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    for address in listening {
        if address.is_unspecified() {
            names.extend(sysinfo::System::host_name());
            let networks = sysinfo::Networks::new_with_refreshed_list();
            let interfaces = networks.iter().flat_map(|networks| networks.values());
            let addresses = interfaces.flat_map(sysinfo::NetworkData::ip_networks);
            names.extend(addresses.map(|network| network.addr.to_string()));
        } else {
            names.insert(address.to_string());
        }
    }
    names.extend(configured.into_iter().map(host_of));
    names
}

/// The host of `host`, `host:port` or `https://host:port/…`.
fn host_of(name: &str) -> String {
    let authority = name.split_once("://").map_or(name, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or(authority);
    if authority.parse::<IpAddr>().is_ok() {
        return authority.to_owned();
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

    use std::time::Duration;

    use super::*;

    #[test]
    fn names_are_taken_from_addresses_and_urls_of_every_shape() {
        let configured =
            ["atoll.example.org", "https://people.example.org/x", "agents.example.org:7381", "[::2]:1", "::3"];
        let names = server_names(["192.0.2.7".parse().unwrap()], configured);
        for name in
            ["atoll.example.org", "people.example.org", "agents.example.org", "::2", "::3", "192.0.2.7", "localhost"]
        {
            assert!(names.contains(name), "{name} is not in {names:?}");
        }
    }

    #[test]
    fn a_certificate_is_replaced_at_half_of_its_life() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(directory.path()).unwrap());
        let certificate = ServerCertificate::issue(authority, &server_names([], [])).unwrap();
        let now = SystemTime::now();
        let first = certificate.key_at(now);
        assert!(Arc::ptr_eq(&first, &certificate.key_at(now + SERVER_LIFETIME / 2 - Duration::from_secs(60))));
        let later = now + SERVER_LIFETIME / 2 + Duration::from_secs(60);
        let second = certificate.key_at(later);
        assert_ne!(first.cert[0], second.cert[0]);
        assert!(Arc::ptr_eq(&second, &certificate.key_at(later)));
    }
}
