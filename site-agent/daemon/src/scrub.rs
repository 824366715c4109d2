//! Reads the whole store again and again, slowly, so that damage is found before somebody needs what is damaged.

use std::time::Duration;

use atoll_model::value::ObjectRef;
use site_agent_core::Event;
use storage_sync_engine::store::{ScrubPlace, Scrubbed, SiteStore};
use tokio_util::sync::CancellationToken;

use crate::clock::wall_clock;
use crate::driver::Inbox;

/// Bytes that are read in one go: a disk is not held up for longer than that.
const PART_BYTES: u64 = 4 << 20;
/// How often it is looked whether it is time again.
const LOOK: Duration = Duration::from_secs(60);
const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// When and how fast a store is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubSettings {
    /// A pass takes about so many days; never, if 0.
    pub days: u32,
    /// Bytes of a second at most.
    pub rate: u64,
    /// From this hour to that one of the day (UTC); at any hour, if nothing.
    pub hours: Option<(u8, u8)>,
}

impl Default for ScrubSettings {
    fn default() -> Self {
        Self { days: 30, rate: 32 << 20, hours: None }
    }
}

impl ScrubSettings {
    /// Reads `22-6`.
    pub(crate) fn parse_hours(text: &str) -> Result<(u8, u8), String> {
        let wrong = || format!("{text:?} is not two hours of the day such as 22-6");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let hour = |text: &str| text.trim().parse::<u8>().ok().filter(|hour| *hour < 24).ok_or_else(wrong);
        Ok((hour(from)?, hour(to)?))
    }

    fn is_time(&self, hour: u8) -> bool {
        match self.hours {
            None => true,
            Some((from, to)) if from <= to => (from..to).contains(&hour),
            Some((from, to)) => hour >= from || hour < to,
        }
    }

    /// Hours of a day in which it may read.
    fn hours_each_day(&self) -> u64 {
        match self.hours {
            None => 24,
            Some((from, to)) => u64::from((to + 24 - from) % 24).max(1),
        }
    }

    /// The pause after so many bytes, for a pass over a store of this size.
    fn pause(&self, read: u64, store_bytes: u64) -> Duration {
        let seconds = u64::from(self.days.max(1)) * self.hours_each_day() * 3_600;
        let rate = (store_bytes / seconds).clamp(64 << 10, self.rate.max(64 << 10));
        Duration::from_secs_f64(read as f64 / rate as f64)
    }
}

/// What the core is told of a damaged object.
pub(crate) fn damaged((object, message): (ObjectRef, String)) -> Event {
    Event::Damaged { object: object.id, kind: object.kind, message }
}

/// Goes through the store until `shutdown`.
pub(crate) async fn keep_scrubbing(
    settings: ScrubSettings,
    store: SiteStore,
    inbox: Inbox,
    shutdown: CancellationToken,
) {
    if settings.days == 0 {
        return;
    }
    let mut place = store.remembered_scrub().unwrap_or_default();
    loop {
        let mut pause = LOOK;
        if settings.is_time(hour()) {
            let (reader, from) = (store.clone(), place.clone());
            let part = tokio::task::spawn_blocking(move || step(&reader, &from)).await;
            match part {
                Ok(Some(part)) => {
                    inbox.tell(part.damaged.into_iter().map(damaged).collect());
                    pause = settings.pause(part.bytes, store.stats().bytes);
                    if part.next.is_none() {
                        pause = pause.max(LOOK);
                    }
                    place = part.next.unwrap_or_default();
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "reading the store again has panicked");
                    return;
                }
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn step(store: &SiteStore, from: &ScrubPlace) -> Option<Scrubbed> {
    let part = match store.scrub_some(from, PART_BYTES) {
        Ok(part) => part,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the store cannot be read again; it is tried later"
            );
            return None;
        }
    };
    if let Err(error) = store.remember_scrub(part.next.as_ref()) {
        tracing::warn!(%error, "how far the store was read again cannot be written down");
    }
    Some(part)
}

fn hour() -> u8 {
    let of_day = wall_clock().micros().rem_euclid(DAY_MICROS);
    u8::try_from(of_day / (3_600 * 1_000_000)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn a_pass_takes_the_days_it_is_given_and_is_never_faster_than_allowed() {
        let settings = ScrubSettings { days: 10, rate: 1 << 20, hours: None };
        // 10 days of 86,400 seconds for as many mebibytes: one each second.
        assert_eq!(settings.pause(1 << 20, 864_000 << 20), Duration::from_secs(1));
        assert_eq!(settings.pause(1 << 20, u64::MAX), Duration::from_secs(1));
        assert_eq!(settings.pause(64 << 10, 0), Duration::from_secs(1));
    }

    #[test]
    fn hours_may_go_over_midnight() {
        let settings = ScrubSettings { hours: Some(ScrubSettings::parse_hours("22-6").unwrap()), ..Default::default() };
        assert!(settings.is_time(23) && settings.is_time(0) && settings.is_time(5));
        assert!(!settings.is_time(6) && !settings.is_time(21));
        assert_eq!(settings.hours_each_day(), 8);
        assert!(ScrubSettings::parse_hours("22").is_err() && ScrubSettings::parse_hours("1-24").is_err());
    }

    #[tokio::test]
    async fn d5_damage_that_nobody_has_come_across_is_found_and_told() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let store = SiteStore::open(&folder.path().join("store")).unwrap();
        std::fs::write(folder.path().join("file"), "content").unwrap();
        let object = store.ingest(&folder.path().join("file")).unwrap().object;
        let hex = object.id.hex();
        let path = folder.path().join(format!("store/objects/{}/{}", &hex[..2], &hex[2..]));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(&path, "CONTENT").unwrap();
        let (inbox, inputs) = Inbox::new();
        let stopping = CancellationToken::new();
        let scrubbing = keep_scrubbing(ScrubSettings::default(), store.clone(), inbox, stopping.clone());
        let heard = tokio::task::spawn_blocking(move || {
            let crate::driver::Input::Events(events) = inputs.recv().unwrap() else { panic!("it tells events") };
            stopping.cancel();
            events
        });
        let ((), heard) = tokio::join!(scrubbing, heard);
        let heard = heard.unwrap();
        assert!(matches!(&heard[..], [Event::Damaged { object: found, .. }] if *found == object.id), "{heard:?}");
        assert!(!store.contains(object));
    }
}
