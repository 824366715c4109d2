//! Objects on their way in and out.

use std::time::Duration;

use atoll_model::id::TransferId;
use atoll_model::session::{FaultLocation, NotStartedReason, Outcome, PushFailure, Report, SiteCommand};
use site_agent_core::{Command, Event};

use crate::harness::*;

const TRANSFER: TransferId = TransferId::from_bits(4);

fn waiting_for_object() -> Site {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.command(SiteCommand::Dispatch(reader(0, 1, 5)));
    site.event(Event::Located { object: object(5), present: false });
    site
}

fn fetches(site: &Site) -> usize {
    site.commands.iter().filter(|command| matches!(command, Command::Fetch { .. })).count()
}

#[test]
fn one_fetch_serves_all_who_wait() {
    let mut site = waiting_for_object();
    assert_eq!(fetches(&site), 1);
    site.event(Event::Fetched { object: object(5), wire_bytes: 5, direct: None, at: site.now });
    assert_eq!(site.starts().len(), 2);
    assert_eq!(site.reports().len(), 1);
    site.command(SiteCommand::Dispatch(reader(0, 2, 5)));
    assert_eq!(fetches(&site), 1, "it is here now");
}

#[test]
fn what_is_here_is_not_fetched() {
    let mut site = Site::connected();
    site.prepare(&template(0));
    site.command(SiteCommand::Dispatch(reader(0, 0, 5)));
    site.event(Event::Located { object: object(5), present: true });
    assert_eq!((fetches(&site), site.starts().len(), site.reports().len()), (0, 1, 0));
}

#[test]
fn a_fetch_is_tried_again_and_given_up_in_the_end() {
    let mut site = waiting_for_object();
    for _ in 0..9 {
        let (message, corrupt, permanent) = ("no".to_owned(), false, false);
        site.event(Event::FetchFailed { object: object(5), message, corrupt, permanent });
        site.pass(Duration::from_secs(31));
        site.grant();
    }
    assert_eq!(fetches(&site), 9);
    let unavailable =
        |outcome: &Outcome| matches!(outcome, Outcome::NotStarted { reason: NotStartedReason::InputUnavailable, .. });
    assert_eq!(site.finished().iter().filter(|(_, element)| unavailable(&element.outcome)).count(), 2);
}

#[test]
fn d5_what_is_not_here_and_cannot_be_had_is_said_not_to_be_here() {
    let mut site = waiting_for_object();
    let (message, corrupt, permanent) = ("no".to_owned(), false, true);
    site.event(Event::FetchFailed { object: object(5), message, corrupt, permanent });
    let reports: Vec<_> = site.reports().into_iter().map(|(_, report)| report).collect();
    let is_fault = |report: &Report| matches!(report, Report::Fault { location: FaultLocation::SiteStore, object: lost, .. } if *lost == object(5).id);
    assert!(is_fault(&reports[0]), "before what waited for it is given back: {reports:?}");
    assert_eq!(reports.iter().filter(|report| is_fault(report)).count(), 1);
}

#[test]
fn d6_damaged_bytes_from_the_bucket_are_reported_and_fetched_again() {
    let mut site = waiting_for_object();
    let (message, corrupt, permanent) = ("its digest is another".to_owned(), true, false);
    site.event(Event::FetchFailed { object: object(5), message, corrupt, permanent });
    assert!(matches!(site.reports().remove(0).1, Report::Fault { location: FaultLocation::Bucket, .. }));
    site.pass(Duration::from_secs(1));
    assert_eq!(fetches(&site), 2);
}

#[test]
fn d5_a_damaged_copy_in_the_store_is_reported_and_fetched_anew() {
    let mut site = waiting_for_object();
    site.event(Event::Fetched { object: object(5), wire_bytes: 5, direct: None, at: site.now });
    let (id, kind) = (object(5).id, object(5).kind);
    site.event(Event::Damaged { object: id, kind, message: "a bit has flipped".to_owned() });
    assert!(matches!(site.reports().remove(1).1, Report::Fault { location: FaultLocation::SiteStore, .. }));
    site.command(SiteCommand::Dispatch(reader(0, 2, 5)));
    site.event(Event::Located { object: object(5), present: false });
    assert_eq!(fetches(&site), 2);
}

#[test]
fn a_fetch_that_nobody_waits_for_is_cancelled() {
    let mut site = waiting_for_object();
    site.command(SiteCommand::Forget { run: RUN });
    assert!(site.has(|command| matches!(command, Command::CancelFetch { .. })));
    site.event(Event::Fetched { object: object(5), wire_bytes: 5, direct: None, at: site.now });
    assert_eq!(site.reports().len(), 1, "what moved is told of all the same");
}

#[test]
fn a_push_is_told_of_once_across_restarts() {
    let mut site = Site::connected();
    site.command(SiteCommand::Push { transfer: TRANSFER, object: object(5) });
    let pushes = |site: &Site| site.commands.iter().filter(|command| matches!(command, Command::Push { .. })).count();
    assert_eq!(pushes(&site), 1);
    site.restart(Vec::new());
    assert_eq!(pushes(&site), 1);
    site.event(Event::Pushed { transfer: TRANSFER, object: object(5), wire_bytes: 0, at: site.now });
    site.event(Event::Pushed { transfer: TRANSFER, object: object(5), wire_bytes: 0, at: site.now });
    site.connect();
    let reports = site.reports();
    assert_eq!(reports.len(), 1);
    assert!(matches!(reports[0].1, Report::Pushed { wire_bytes: 5, .. }));
}

#[test]
fn a_push_that_is_cancelled_is_answered_by_what_became_of_it() {
    let mut site = Site::connected();
    site.command(SiteCommand::Push { transfer: TRANSFER, object: object(5) });
    site.command(SiteCommand::CancelPush { transfer: TRANSFER });
    assert!(site.has(|command| matches!(command, Command::CancelPush { .. })));
    assert_eq!(site.reports(), []);
    let (reason, message) = (PushFailure::Cancelled, String::new());
    site.event(Event::PushFailed { transfer: TRANSFER, object: object(5), reason, message });
    assert_eq!(site.reports().len(), 1);
}

#[test]
fn d5_what_is_made_again_here_is_not_taken_for_fetched() {
    let mut site = waiting_for_object();
    let (message, corrupt, permanent) = ("not there".to_owned(), false, false);
    site.event(Event::FetchFailed { object: object(5), message, corrupt, permanent });
    site.prepare(&with_output(1));
    site.dispatch(1, 0..1);
    site.exit(exec(1, 0), site_agent_core::event::ExitKind::Code(0));
    site.store(exec(1, 0), vec![file(5)]);
    assert_eq!(site.starts().len(), 3, "who waited for it goes on");
    site.restart(Vec::new());
    site.event(Event::Located { object: object(5), present: true });
    site.connect();
    assert!(site.reports().iter().all(|(_, report)| !matches!(report, Report::Fetched { .. })));
}
