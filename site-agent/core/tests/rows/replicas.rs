//! Copies that a rule of the control plane's wants at the site.

use atoll_model::session::{Report, SiteCommand};
use site_agent_core::{Command, Event};

use crate::harness::*;

fn told(site: &mut Site, number: u8) {
    site.command(SiteCommand::Replicate { object: object(number), execution: exec(0, 0) });
}

fn ends(site: &Site) -> Vec<Option<String>> {
    let end = |(_, report)| match report {
        Report::ReplicaEnded { failure, .. } => Some(failure),
        _ => None,
    };
    site.reports().into_iter().filter_map(end).collect()
}

fn fetches(site: &Site) -> usize {
    site.commands.iter().filter(|command| matches!(command, Command::Fetch { .. })).count()
}

fn fetched(site: &mut Site, number: u8) {
    let at = site.now;
    site.event(Event::Fetched { object: object(number), wire_bytes: 10, direct: None, at });
}

#[test]
fn a_copy_is_fetched_and_told_of_once() {
    let mut site = Site::connected();
    told(&mut site, 1);
    site.event(Event::Located { object: object(1), present: false });
    assert_eq!(fetches(&site), 1);
    fetched(&mut site, 1);
    assert_eq!(ends(&site), [None]);
    let arrivals = |report: &Report| matches!(report, Report::Fetched { execution, .. } if *execution == exec(0, 0));
    assert_eq!(site.reports().iter().filter(|(_, report)| arrivals(report)).count(), 1);
}

#[test]
fn what_is_there_is_told_of_and_not_fetched() {
    let mut site = Site::connected();
    told(&mut site, 1);
    site.event(Event::Located { object: object(1), present: true });
    assert_eq!((fetches(&site), ends(&site)), (0, vec![None]));
    // Again, of what is known to be there.
    told(&mut site, 1);
    assert_eq!((fetches(&site), ends(&site)), (0, vec![None, None]));
}

#[test]
fn a_copy_is_fetched_by_the_next_process() {
    let mut site = Site::connected();
    told(&mut site, 1);
    site.event(Event::Located { object: object(1), present: false });
    site.restart(Vec::new());
    site.connect();
    site.commands.clear();
    site.event(Event::Located { object: object(1), present: false });
    assert_eq!(fetches(&site), 1);
    fetched(&mut site, 1);
    assert_eq!(ends(&site), [None]);
}

#[test]
fn what_cannot_be_fetched_is_told_with_its_reason() {
    let mut site = Site::connected();
    told(&mut site, 1);
    site.event(Event::Located { object: object(1), present: false });
    let (message, corrupt, permanent) = ("no space".to_owned(), false, true);
    site.event(Event::FetchFailed { object: object(1), message, corrupt, permanent });
    let ends = ends(&site);
    assert!(matches!(&ends[..], [Some(reason)] if reason.contains("no space")), "{ends:?}");
}

#[test]
fn a_site_with_a_full_disk_refuses_a_copy() {
    let mut site = Site::connected();
    site.measure(1);
    told(&mut site, 1);
    let ends = ends(&site);
    assert!(matches!(&ends[..], [Some(reason)] if reason.contains("full")), "{ends:?}");
    assert!(!site.has(|command| matches!(command, Command::Fetch { .. } | Command::Locate { .. })));
}

#[test]
fn the_end_of_an_execution_that_reads_it_too_stops_no_copy() {
    let mut site = Site::connected();
    site.prepare(&template(1));
    site.command(SiteCommand::Dispatch(reader(1, 0, 1)));
    site.event(Event::Located { object: object(1), present: false });
    told(&mut site, 1);
    let elements = atoll_model::elements::ElementSet::from_range(0..1);
    let run = exec(1, 0).run;
    site.command(SiteCommand::Cancel { run, step: exec(1, 0).step, elements, reason: "cancelled".to_owned() });
    assert!(!site.has(|command| matches!(command, Command::CancelFetch { .. })));
    fetched(&mut site, 1);
    assert_eq!(ends(&site), [None]);
}
