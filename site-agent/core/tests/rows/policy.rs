//! The policy of the site's own administrator, against a control plane that asks for what it forbids.

use atoll_model::action::{BundleSignature, PublicKey};
use atoll_model::id::{ObjectId, TransferId};
use atoll_model::policy::SitePolicy;
use atoll_model::session::{
    Logs, NotStartedReason, Outcome, PushFailure, Report, SiteCommand, StepTemplate, TemplateOutput, TemplateWork,
};
use atoll_model::value::{ObjectKind, ObjectRef, Type};
use site_agent_core::event::{ExitKind, StoredOutputs};
use site_agent_core::{Command, Config, Event};

use crate::harness::*;

const POLICY: &str = "\
run:
  - allow: { work: import }
  - refuse: { step: step7 }
leave:
  - refuse: { path: '/data/patients/*' }
  - allow: { workflow: test, output: summary }
  - refuse: { step: step3 }
  - refuse: { workflow: secret }
  - allow: { step: step4, to: 'eu-*' }
  - refuse: { step: step4 }
  - refuse: { step: step5, to: 'us-*' }
limits: { disk: 1GiB }
";

fn site() -> Site {
    let policy = SitePolicy::parse("policy.yaml", POLICY).unwrap();
    let mut site = Site::with(Config { policy, ..config() });
    site.connect();
    site
}

fn import(step: u16, path: &str) -> StepTemplate {
    StepTemplate {
        work: TemplateWork::Import { source: path.to_owned().into(), directory: false },
        ..with_output(step)
    }
}

/// Runs the execution to its success, with this output and a log of the next number.
fn makes(site: &mut Site, step: u16, number: u8) {
    site.exit(exec(step, 0), ExitKind::Code(0));
    let logs = Logs { stdout: Some(object(number + 1)), stderr: None };
    let result = Ok(StoredOutputs { outputs: vec![file(number)], logs, bytes_out: 0 });
    site.event(Event::OutputsStored { execution: exec(step, 0), attempt: FIRST, result });
}

/// What becomes of an order to push it: nothing if it is carried out, else the reason that is reported.
fn push(site: &mut Site, number: u8) -> Option<String> {
    let transfer = TransferId::from_bits(u128::from(number));
    let before = site.reports().len();
    site.command(SiteCommand::Push { transfer, object: object(number) });
    let pushed = site.has(|command| matches!(command, Command::Push { object: o, .. } if *o == object(number)));
    let reports = site.reports().split_off(before);
    let refused = reports.into_iter().find_map(|(_, report)| match report {
        Report::PushFailed { transfer: t, reason: PushFailure::Forbidden, message, .. } if t == transfer => {
            Some(message)
        }
        _ => None,
    });
    assert_ne!(pushed, refused.is_some(), "it is either carried out or refused");
    refused
}

#[test]
fn what_the_site_withholds_is_not_pushed_whoever_asks_and_the_rule_is_named() {
    let mut site = site();
    site.prepare(&import(0, "/data/patients/a.csv"));
    site.prepare(&import(1, "/data/weather.csv"));
    site.dispatch(0, 0..1);
    site.dispatch(1, 0..1);
    makes(&mut site, 0, 10);
    makes(&mut site, 1, 20);
    let reason = "the site's own policy does not let it leave (policy.yaml:5)";
    assert_eq!(push(&mut site, 10).as_deref(), Some(reason));
    assert_eq!(push(&mut site, 11).as_deref(), Some(reason), "nor is its log");
    assert_eq!(push(&mut site, 20), None);
    assert_eq!(site.agent.withheld(object(10).id), Some(reason));
}

#[test]
fn what_is_fetched_from_a_url_is_withheld_by_the_pattern_of_urls_and_by_no_pattern_of_paths() {
    let policy = "leave:\n  - refuse: { path: '/data/*' }\n  - refuse: { path: 'https://private.example.org/*' }\n";
    let policy = SitePolicy::parse("policy.yaml", policy).unwrap();
    let mut site = Site::with(Config { policy, ..config() });
    site.connect();
    for (step, url) in [
        (0, "https://example.org/a.csv"),
        (1, "https://private.example.org/a.csv"),
        (2, "https://example.org/../private/a.csv"),
    ] {
        site.prepare(&import(step, url));
        site.dispatch(step, 0..1);
        makes(&mut site, step, 10 * (u8::try_from(step).unwrap() + 1));
    }
    assert_eq!(push(&mut site, 10), None);
    assert!(push(&mut site, 20).is_some_and(|reason| reason.contains("policy.yaml:3")));
    assert!(push(&mut site, 30).is_some(), "what is written in a roundabout way is taken for what is refused");
}

#[test]
fn what_may_leave_for_some_only_goes_to_those_and_so_does_what_is_made_from_it() {
    let mut site = site();
    site.prepare(&with_output(4));
    site.prepare(&with_output(5));
    site.dispatch(4, 0..1);
    site.dispatch(5, 0..1);
    makes(&mut site, 4, 60);
    makes(&mut site, 5, 70);
    let to = |site: &Site, number, to: &str| site.agent.withheld_from(object(number).id, to).is_none();
    assert!(to(&site, 60, "eu-1") && !to(&site, 60, "us-1") && !to(&site, 60, "bucket"));
    assert!(to(&site, 70, "eu-1") && !to(&site, 70, "us-1") && to(&site, 70, "bucket"));
    assert!(push(&mut site, 60).is_some_and(|reason| reason.contains("policy.yaml:10")));
    assert_eq!(push(&mut site, 70), None);
    assert!(push(&mut site, 71).is_some(), "a log is shown to everybody or to nobody");
    site.prepare(&with_output(6));
    site.command(SiteCommand::Dispatch(reader(6, 0, 60)));
    site.event(Event::Located { object: object(60), present: true });
    makes(&mut site, 6, 80);
    assert!(to(&site, 80, "eu-1") && !to(&site, 80, "us-1") && !to(&site, 80, "bucket"));
}

#[test]
fn what_is_derived_from_withheld_data_is_withheld_too() {
    let mut site = site();
    site.prepare(&import(0, "/data/patients/a.csv"));
    site.dispatch(0, 0..1);
    makes(&mut site, 0, 10);
    let summary = TemplateOutput { name: "summary".to_owned(), ..with_output(1).outputs.remove(0) };
    site.prepare(&StepTemplate { outputs: vec![summary], ..template(1) });
    site.command(SiteCommand::Dispatch(reader(1, 0, 10)));
    site.event(Event::Located { object: object(10), present: true });
    makes(&mut site, 1, 30);
    assert!(push(&mut site, 30).is_some(), "an allowed name does not free what it was made from");
    site.prepare(&with_output(2));
    site.command(SiteCommand::Dispatch(reader(2, 0, 30)));
    site.event(Event::Located { object: object(30), present: true });
    makes(&mut site, 2, 40);
    assert!(push(&mut site, 40).is_some());
    assert!(push(&mut site, 41).is_some(), "nor does the log of what read it leave");
}

#[test]
fn the_first_rule_that_matches_decides() {
    let mut site = site();
    let output =
        |name: &str| TemplateOutput { name: name.to_owned(), r#type: Type::File, optional: false, listed: false };
    site.prepare(&StepTemplate { outputs: vec![output("summary"), output("rows")], ..template(3) });
    site.dispatch(3, 0..1);
    site.exit(exec(3, 0), ExitKind::Code(0));
    site.store(exec(3, 0), vec![file(50), file(51)]);
    assert_eq!(push(&mut site, 50), None);
    assert!(push(&mut site, 51).is_some());
}

#[test]
fn a_path_that_is_written_in_a_roundabout_way_is_taken_for_what_is_refused() {
    for (step, path) in
        (0..).zip(["/data/./patients/a", "/data/x/../patients/a", "//data/patients/a", "data/patients/a"])
    {
        let mut site = site();
        site.prepare(&import(step, path));
        site.dispatch(step, 0..1);
        makes(&mut site, step, 10);
        assert!(push(&mut site, 10).is_some(), "{path}");
    }
}

#[test]
fn what_is_withheld_stays_so_after_a_restart_and_pushes_that_were_ordered_are_refused() {
    let mut site = site();
    // Ordered before the bytes are known to be what they are.
    let transfer = TransferId::from_bits(9);
    site.command(SiteCommand::Push { transfer, object: object(10) });
    site.prepare(&import(0, "/data/patients/a.csv"));
    site.dispatch(0, 0..1);
    makes(&mut site, 0, 10);
    site.restart(Vec::new());
    assert!(!site.has(|command| matches!(command, Command::Push { .. })), "the push is not begun again");
    assert!(site.agent.withheld(object(10).id).is_some());
    site.connect();
    assert!(push(&mut site, 11).is_some());
}

#[test]
fn what_may_not_run_is_given_back_with_the_rule() {
    let mut site = site();
    site.prepare(&template(7));
    site.dispatch(7, 0..1);
    assert_eq!(site.starts(), []);
    let (_, element) = site.finished().remove(0);
    let message = "the site's own policy does not let it run (policy.yaml:3)".to_owned();
    assert_eq!(element.outcome, Outcome::NotStarted { reason: NotStartedReason::Refused, message });
    site.prepare(&import(7, "/data/weather.csv"));
    site.dispatch(7, 1..2);
    assert_eq!(site.starts().len(), 1, "an earlier rule allows it");
}

#[test]
fn only_what_a_key_of_the_site_has_signed_runs_where_it_says_so() {
    let key = |byte: u8| PublicKey::from_bytes([byte; 32]);
    let (key_a, key_b) = (key(1), key(2));
    let policy = format!(
        "keys: {{ release: \"{key_a}\", test: \"{key_b}\" }}\nrun:\n  - allow: {{ work: action, signed_by: release }}\n  \
         - allow: {{ work: [import, script] }}\n  - refuse: {{}}\n"
    );
    let policy = SitePolicy::parse("policy.yaml", &policy).unwrap();
    let mut site = Site::with(Config { policy, ..config() });
    site.connect();
    let signed = |step: u16, keys: &[u8], environment: &[(&str, &str)]| {
        let signatures = keys.iter().map(|byte| BundleSignature::from_bytes(key(*byte), &[0; 64]).unwrap()).collect();
        let (command, bundle) = (vec!["./main".to_owned()], ObjectRef { kind: ObjectKind::Tree, ..object(90) });
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let work = TemplateWork::SignedCommand { command, bundle, signatures };
        StepTemplate { work, environment, ..template(step) }
    };
    let plain = TemplateWork::Command { command: vec!["./main".to_owned()], bundle: None };
    site.prepare(&signed(0, &[2], &[]));
    site.prepare(&StepTemplate { work: plain, ..template(1) });
    site.prepare(&signed(2, &[1], &[("LD_PRELOAD", "x")]));
    site.prepare(&template(3));
    site.prepare(&signed(4, &[2, 1], &[("ATOLL_SERVICE_INDEX", "default/rivers/index")]));
    (0..5).for_each(|step| site.dispatch(step, 0..1));
    let refused: Vec<String> = site
        .finished()
        .into_iter()
        .map(|(_, element)| match element.outcome {
            Outcome::NotStarted { reason: NotStartedReason::Refused, message } => message,
            other => panic!("{other:?}"),
        })
        .collect();
    let policy = "the site's own policy does not let it run (policy.yaml:5)";
    assert_eq!(
        refused,
        [
            format!("{policy}: it is not signed by release (policy.yaml:3)"),
            format!("{policy}: it is not signed by release (policy.yaml:3)"),
            format!("{policy}: nobody has signed what its step sets under `env` (policy.yaml:3)"),
        ]
    );
    assert_eq!(site.starts().len(), 1, "the script");
    let bundle = object(90).id;
    assert!(site.has(|command| matches!(command, Command::Locate { object } if object.id == bundle)), "it is wanted");
}

#[test]
fn a_site_that_uses_all_the_disk_it_was_given_takes_no_new_work() {
    let mut site = site();
    let heartbeat = |store_bytes| atoll_model::session::Heartbeat {
        capacity: config().capacity,
        store_bytes,
        ..atoll_model::session::Heartbeat::default()
    };
    site.event(Event::Measured { heartbeat: heartbeat(1 << 30) });
    site.prepare(&template(0));
    site.dispatch(0, 0..1);
    assert_eq!(site.starts(), []);
    let (_, element) = site.finished().remove(0);
    let Outcome::NotStarted { reason: NotStartedReason::Closed, message } = element.outcome else { panic!() };
    assert!(message.contains("(policy.yaml:12)"), "{message}");
    site.event(Event::Measured { heartbeat: heartbeat(1 << 29) });
    site.dispatch(0, 1..2);
    assert_eq!(site.starts().len(), 1, "it goes on by itself");
}

#[test]
fn the_log_of_what_may_not_leave_is_not_read_from_elsewhere_while_it_runs() {
    let mut site = site();
    site.prepare(&StepTemplate { workflow: "secret".to_owned(), ..template(0) });
    site.dispatch(0, 0..1);
    assert!(site.agent.withheld_logs(exec(0, 0), FIRST).is_some());
    site.prepare(&template(1));
    site.dispatch(1, 0..1);
    assert!(site.agent.withheld_logs(exec(1, 0), FIRST).is_none());
    assert_eq!(site.agent.all_withheld().map(|(object, _)| object).collect::<Vec<ObjectId>>(), []);
}
