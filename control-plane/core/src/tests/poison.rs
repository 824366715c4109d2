//! G4: a version of an action that takes its agents down is not started any more.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::{ObjectId, RunId};
use atoll_model::session::Outcome;
use atoll_model::value::{ObjectKind, ObjectRef};
use atoll_model::workflow::{Surroundings, Work, Workflow, parse};

use super::world::{World, interrupted, object};
use crate::view::RunState;
use crate::{Rejection, Request};

const SOURCE: &str = "workflow: w\nsteps:\n  a: { action: ./bad, foreach: \"${{ range(6) }}\" }\n";
const MANIFEST: &str = "name: bad\nversion: \"1.0\"\nkind: processor\nruntime: command\ncommand: [./bad]\n";

/// The action in a bundle of this number.
struct Version(u8);

impl Version {
    fn bundle(&self) -> ObjectId {
        object(self.0, 0).id
    }

    fn workflow(&self) -> Arc<Workflow> {
        Arc::new(parse("test.yaml", SOURCE, self).unwrap())
    }

    fn submit(&self, world: &mut World) -> Result<RunId, Rejection> {
        let bundle = ObjectRef { id: self.bundle(), kind: ObjectKind::Tree, bytes: 100 };
        world.carry_out_deletes();
        world.ask(Request::RecordUpload { object: bundle, key: None })?;
        let run = RunId::from_bits(u128::from(world.unique()));
        let request = Request::Submit {
            run,
            workflow: self.workflow(),
            source: Arc::from(SOURCE),
            inputs: Default::default(),
            submitted_by: "test".to_owned(),
            traceparent: None,
            tags: Default::default(),
        };
        world.ask(request).map(|_| run)
    }
}

impl Surroundings for Version {
    fn action(&self, _: &str) -> Result<Work, String> {
        let manifest = atoll_model::action::parse("action.yaml", MANIFEST).map_err(|errors| format!("{errors:?}"))?;
        Ok(manifest.into_work(Some(self.bundle()), 100))
    }
}

/// Everything that the sites run is interrupted; how much that was.
fn crash_all(world: &mut World, sites: &[&str]) -> usize {
    let mut crashed = 0;
    for site in sites {
        for execution in world.dispatched(site) {
            world.end(site, execution, interrupted(), Vec::new());
            crashed += 1;
        }
    }
    crashed
}

#[test]
fn g4_a_version_of_an_action_that_takes_agents_down_at_several_sites_is_quarantined() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let bad = Version(20);
    let run = bad.submit(&mut world).unwrap();
    let mut crashed = 0;
    while matches!(world.state(run), RunState::Submitted | RunState::Running) {
        let more = crash_all(&mut world, &["edge", "hpc"]);
        assert!(more > 0, "it goes on until it ends");
        crashed += more;
    }
    assert!((10..17).contains(&crashed), "{crashed} executions were started");
    let message = world.core.run(run).unwrap().error.unwrap().message;
    assert!(message.contains("action bad 1.0 is quarantined") && message.contains("2 sites"), "{message}");
    world.restart();
    ["edge", "hpc"].iter().for_each(|site| world.connect(site));
    world.advance_with(Duration::from_secs(30), &["edge", "hpc"]);
    let again = bad.submit(&mut world);
    assert!(matches!(&again, Err(Rejection::Conflict(reason)) if reason.contains("quarantined")), "{again:?}");
    Version(21).submit(&mut world).unwrap();
    world.now = world.now + Duration::from_secs(25 * 3_600);
    ["edge", "hpc"].iter().for_each(|site| world.connect(site));
    bad.submit(&mut world).unwrap();
}

#[test]
fn g4_crashes_at_one_site_or_with_successes_in_between_are_not_the_actions_fault() {
    let mut world = World::with_sites(&["edge"]);
    let good = Version(20);
    let run = good.submit(&mut world).unwrap();
    while matches!(world.state(run), RunState::Submitted | RunState::Running) {
        crash_all(&mut world, &["edge"]);
    }
    let message = world.core.run(run).unwrap().error.unwrap().message;
    assert!(message.contains("went down 3 times"), "{message}");
    world.add_site("hpc");
    good.submit(&mut world).unwrap();
    for site in ["edge", "hpc"] {
        for execution in world.dispatched(site) {
            world.succeed(site, execution, Vec::new());
        }
    }
    let run = good.submit(&mut world).unwrap();
    assert!((6..10).contains(&crash_all(&mut world, &["edge", "hpc"])));
    assert_ne!(world.state(run), RunState::Failed, "they are counted anew");
}

const SCRIPT: &str = "workflow: w\nsteps:\n  a: { run: ./kill-everything, foreach: \"${{ range(6) }}\" }\n";

#[test]
fn g4_a_script_that_takes_agents_down_is_quarantined_by_what_it_says() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let run = world.submit(SCRIPT);
    while matches!(world.state(run), RunState::Submitted | RunState::Running) {
        assert!(crash_all(&mut world, &["edge", "hpc"]) > 0, "it goes on until it ends");
    }
    let message = world.core.run(run).unwrap().error.unwrap().message;
    assert!(message.contains("the script of step a is quarantined"), "{message}");
    let renamed = SCRIPT.replace("workflow: w", "workflow: v").replace(" a:", " b:");
    assert!(matches!(world.try_submit(&renamed, &[]), Err(Rejection::Conflict(_))), "whatever it is called");
    world.submit(&SCRIPT.replace("everything", "nothing"));
}

#[test]
fn g4_each_crash_is_shown_with_what_is_known_of_it() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x }\n");
    for crash in 1..=3 {
        let execution = world.dispatched_one("edge");
        world.start("edge", execution);
        world.advance(Duration::from_secs(1));
        world.end("edge", execution, interrupted(), Vec::new());
        let view = world.core.execution(execution.0).unwrap();
        assert_eq!(view.crashes.len(), crash);
        let last = view.crashes.last().unwrap();
        assert_eq!((last.site.as_str(), last.attempt, last.at), ("edge", execution.1, world.now));
        assert_eq!((last.message.as_str(), last.incarnation), ("the machine went down", 1));
    }
    assert_eq!(world.state(run), RunState::Failed);
    world.restart();
    let view = world.core.execution(super::world::execution(run, 0, 0)).unwrap();
    assert_eq!(view.crashes.len(), 3, "it is kept with the execution that was given up");
    assert!(view.error.unwrap().contains("went down 3 times"));
}

#[test]
fn g4_what_is_stopped_on_purpose_never_counts_as_a_crash() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, on_disconnect: stop }\n");
    for _ in 0..30 {
        let execution = world.dispatched_one("edge");
        world.start("edge", execution);
        world.end("edge", execution, Outcome::Cancelled, Vec::new());
        assert_eq!(world.core.execution(execution.0).unwrap().crashes, []);
    }
    let execution = world.dispatched_one("edge");
    world.end("edge", execution, interrupted(), Vec::new());
    let execution = world.dispatched_one("edge");
    world.succeed("edge", execution, Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
}
