//! How often one address may call what needs no certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A person joins a few sites at a time; a provisioning system behind one address some dozens.
const CALLS_MAX: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered; when there are more, those of older windows are forgotten.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct RateLimit(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl RateLimit {
    /// Whether this address may call now. The machine itself always may: whoever is on it has other ways to load it.
    pub(super) fn admits(&self, address: IpAddr, now: Instant) -> bool {
        if address.is_loopback() {
            return true;
        }
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.len() >= ADDRESSES_MAX {
            calls.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        }
        let (since, count) = calls.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= CALLS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_calls_too_often_waits_and_others_do_not() {
        let limit = RateLimit::default();
        let (now, noisy, other) = (Instant::now(), IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        assert!((0..CALLS_MAX).all(|_| limit.admits(noisy, now)));
        assert!(!limit.admits(noisy, now));
        assert!(limit.admits(other, now) && limit.admits(noisy, now + WINDOW));
    }
}
