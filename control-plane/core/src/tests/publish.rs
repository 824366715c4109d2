//! Outputs that are published: by which step, when, and what is against it.

use atoll_model::id::Attempt;
use atoll_model::session::{FailureReason, Outcome, Report, SiteCommand, TemplateWork};
use atoll_model::value::Value;
use atoll_model::workflow::Outside;

use super::policies::apply;
use super::world::{World, execution, file, object};
use crate::Rejection;
use crate::view::{ExecutionState, RunState};

/// A file is made at `edge`, and published there.
fn published(at: &str) -> String {
    format!(
        "workflow: w\nsteps:\n  make: {{ run: x, site: edge, outputs: {{ f: {{ type: file, optional: true }} }} }}\noutputs:\n  f: {{ value: \"${{{{ steps.make.outputs.f }}}}\", publish: {at} }}\n"
    )
}

const AT_HPC: &str = "{ site: hpc, path: /data/f, overwrite: true }";
const AT_EDGE: &str = "{ site: edge, path: /data/f }";
const IN_BUCKET: &str = "{ url: s3://survey/f }";

fn refused(world: &mut World, source: &str) -> String {
    match world.try_submit(source, &[]) {
        Err(Rejection::Invalid(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_published_elsewhere_is_pushed_there_and_the_run_ends_with_its_publication() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(&published(AT_HPC));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert_eq!(world.state(run), RunState::Running);
    let commands = world.commands("hpc");
    let work = commands.iter().find_map(|command| match command {
        SiteCommand::Prepare(template) => Some((template.step_name.as_str(), &template.work)),
        _ => None,
    });
    let target = Outside::Path("/data/f".to_owned());
    assert_eq!(work, Some(("outputs.f", &TemplateWork::Export { target, overwrite: true })));
    let export = (execution(run, 1, 0), Attempt::FIRST);
    let object = object(1, 1_000);
    let (wire_bytes, at) = (1_000, world.now);
    world.report("hpc", vec![Report::Fetched { object, wire_bytes, direct: None, execution: export.0, at }]);
    world.succeed("hpc", export, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    let ledger = world.core.ledger(&Default::default());
    let to: Vec<_> = ledger.iter().map(|entry| (entry.to.as_str(), entry.for_execution)).collect();
    assert_eq!(to, [("bucket", Some(export.0)), ("hpc", Some(export.0))]);
    let why = world.core.why_execution(export.0).unwrap();
    assert_eq!(why.chosen.unwrap().as_str(), "hpc");
}

#[test]
fn a_run_whose_publication_fails_has_failed() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit(&published(AT_EDGE));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let export = world.dispatched_one("edge");
    let (reason, message) = (FailureReason::ExportFailed, "/data/f exists already".to_owned());
    world.end("edge", export, Outcome::Failed { reason, exit_code: None, message }, Vec::new());
    assert_eq!(world.state(run), RunState::Failed);
    let error = world.core.run(run).unwrap().error.unwrap();
    assert_eq!((error.step.as_str(), error.message.contains("exists already")), ("outputs.f", true), "{error:?}");
}

#[test]
fn a_site_publishes_only_what_has_ended_in_the_eyes_of_the_control_plane() {
    let mut world = World::new();
    world.protocol = atoll_model::session::PROTOCOL_VERSION_DELEGATION;
    world.add_site("edge");
    world.submit(&published(AT_EDGE));
    let sent = |command: &SiteCommand| match command {
        SiteCommand::Dispatch(dispatch) => Some(dispatch.step.0),
        SiteCommand::Delegate(delegation) => Some(delegation.template.step.0),
        _ => None,
    };
    assert_eq!(world.commands("edge").iter().filter_map(sent).collect::<Vec<_>>(), [0], "neither handed over ahead");
}

#[test]
fn what_is_nothing_is_not_published() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(&published(AT_HPC));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![Value::Null]);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert_eq!((world.dispatched("hpc"), world.count(run, ExecutionState::Succeeded)), (Vec::new(), 1));

    let skipped = published(AT_HPC).replace("run: x", "run: x, when: \"${{ 1 > 2 }}\"");
    let run = world.submit(&skipped);
    assert_eq!(world.state(run), RunState::Succeeded);
    assert!(world.dispatched("edge").is_empty() && world.dispatched("hpc").is_empty());
}

#[test]
fn confined_data_is_published_at_its_site_and_nowhere_else() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    apply(&mut world, "placement:\n  - match: { step: make }\n    confine: edge\n");
    let reason = refused(&mut world, &published(AT_HPC));
    assert!(reason.contains("hpc: eu.yaml:2"), "{reason}");
    let reason = refused(&mut world, &published(IN_BUCKET));
    assert!(reason.contains("edge: eu.yaml:2") && reason.contains("s3://survey/f"), "{reason}");
    let run = world.submit(&published(AT_EDGE));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let export = world.dispatched_one("edge");
    world.succeed("edge", export, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    assert!(world.pushes("edge").is_empty());
}

#[test]
fn what_another_run_has_confined_is_not_published_outside_of_all_sites() {
    let mut world = World::with_sites(&["edge"]);
    world.submit(
        "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\nplacement:\n  - confine: edge\n",
    );
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let run = world.submit(&published(IN_BUCKET));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    assert!(world.dispatched("edge").is_empty());
    assert_eq!(world.state(run), RunState::Failed);
    let error = world.core.run(run).unwrap().error.unwrap().message;
    assert!(error.contains("test.yaml:5") && error.contains("s3://survey/f"), "{error}");
}

#[test]
fn an_agent_of_an_earlier_version_is_not_asked_to_publish() {
    let mut world = World::with_sites(&["edge"]);
    world.join("hpc", &[]);
    world.agents.get_mut("hpc").unwrap().runtimes = vec!["command".to_owned()];
    world.connect("hpc");
    let reason = refused(&mut world, &published(AT_HPC));
    assert!(reason.contains("hpc: it has no runtime export"), "{reason}");
    world.submit(&published(IN_BUCKET));
    let make = world.dispatched_one("edge");
    world.succeed("edge", make, vec![file(1, 1_000)]);
    let export = world.dispatched_one("edge");
    world.succeed("edge", export, Vec::new());
}
