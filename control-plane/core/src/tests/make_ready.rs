//! Actions that are made ready at a site before any execution of theirs is there.

use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
use atoll_model::session::{
    AgentBody, Deployed, DeployedState, Heartbeat, LocalState, Report, SiteCommand, TemplateWork,
};
use atoll_model::value::Value;

use super::registry::{bundle, push, submit};
use super::world::{World, execution, item};
use crate::view::{DeployedView, RunState};
use crate::{Rejection, Request, Response};

const LATER: &str = "
workflow: w
steps:
  first: { site: edge, run: x, outputs: { n: integer } }
  then: { site: cloud, action: clean@1.0, after: [first] }
";

fn world() -> World {
    let mut world = World::with_sites(&["edge", "cloud"]);
    push(&mut world, "1.0", 1, &[]).unwrap();
    world
}

/// Steps of which the actions were ordered to be ready at the site; other commands are dropped.
fn ordered(world: &mut World, site: &str) -> Vec<(RunId, StepIndex)> {
    let order = |command| match command {
        SiteCommand::MakeReady(template) => {
            assert!(template.bindings.is_empty() && matches!(template.work, TemplateWork::Command { .. }));
            Some((template.run, template.step))
        }
        _ => None,
    };
    world.commands(site).into_iter().filter_map(order).collect()
}

fn fetch(world: &mut World, site: &str) -> Result<Response, Rejection> {
    let agent = world.agents[site].id;
    world.ask(Request::AuthoriseFetch { agent, object: bundle(1).id })
}

fn tell(world: &mut World, site: &str, state: DeployedState) {
    let deployed = vec![Deployed { bundle: bundle(1).id, state, since: world.now }];
    let agent = &world.agents[site];
    let (sent_at, capacity) = (world.now, agent.capacity.clone());
    let heartbeat = Heartbeat { sent_at, wall_clock: sent_at, capacity, deployed, ..Heartbeat::default() };
    world.frame(site, AgentBody::Heartbeat(heartbeat));
    world.receive(site);
}

#[test]
fn what_only_one_site_can_take_later_is_made_ready_there_at_once() {
    let mut world = world();
    assert!(matches!(fetch(&mut world, "cloud"), Err(Rejection::Forbidden(_))));
    let run = submit(&mut world, LATER);
    assert_eq!(ordered(&mut world, "cloud"), [(run, StepIndex(1))]);
    let first = world.dispatched_one("edge");
    assert!(matches!(fetch(&mut world, "cloud"), Ok(Response::Authorised { .. })));
    assert!(matches!(fetch(&mut world, "edge"), Err(Rejection::Forbidden(_))), "nothing is ordered there");
    let object = bundle(1);
    let (execution, at) = (execution(run, 1, 0), world.now);
    let fetched = Report::Fetched { object, wire_bytes: 90, direct: None, execution, at };
    world.report("cloud", vec![fetched]);
    world.succeed("edge", first, vec![Value::Integer(1)]);
    let then = world.commands("cloud");
    assert!(!then.iter().any(|command| matches!(command, SiteCommand::MakeReady(_))), "it is ordered once");
    let then = ExecutionId { run, step: StepIndex(1), element: 0 };
    world.succeed("cloud", (then, Attempt::FIRST), Vec::new());
    assert_eq!(world.state(run), RunState::Succeeded);
    let forgotten = |command: &SiteCommand| matches!(command, SiteCommand::Forget { run: of } if *of == run);
    assert!(world.commands("cloud").iter().any(forgotten));
    assert!(matches!(fetch(&mut world, "cloud"), Err(Rejection::Forbidden(_))), "the order has ended with the run");
}

#[test]
fn what_may_be_skipped_or_go_elsewhere_or_be_taken_again_is_not_made_ready() {
    let mut world = world();
    let other = |then: &str| format!("{}\n", LATER.replace("site: cloud, action: clean@1.0", then));
    let uncertain = [
        other("action: clean@1.0"),
        other("site: cloud, action: clean@1.0, when: \"${{ steps.first.outputs.n > 1 }}\""),
        other("site: cloud, action: clean@1.0, cache: 30d"),
        other("site: cloud, run: y"),
        LATER.replace("run: x,", "run: x, when: \"${{ 1 > 2 }}\","),
    ];
    for source in uncertain {
        submit(&mut world, &source);
        assert_eq!(ordered(&mut world, "cloud"), [], "{source}");
    }
}

#[test]
fn what_became_certain_since_is_made_ready_when_what_it_follows_begins() {
    let mut world = World::with_sites(&["edge", "cloud"]);
    push(&mut world, "1.0", 1, &[]).unwrap();
    world.disconnect("cloud");
    let source = "
workflow: w
steps:
  first: { site: edge, run: x, outputs: { n: integer } }
  second: { site: edge, run: x, foreach: \"${{ range(steps.first.outputs.n) }}\" }
  then: { site: cloud, action: clean@1.0, after: [second] }
";
    let run = submit(&mut world, source);
    let first = world.dispatched_one("edge");
    world.connect("cloud");
    assert_eq!(ordered(&mut world, "cloud"), [], "a site that takes no work is told nothing");
    world.succeed("edge", first, vec![Value::Integer(1)]);
    assert_eq!(ordered(&mut world, "cloud"), [(run, StepIndex(2))]);
}

#[test]
fn what_a_site_has_already_is_not_ordered_again_and_people_see_how_far_it_is() {
    let mut world = world();
    tell(&mut world, "cloud", DeployedState::Ready);
    let at_cloud = |world: &World, state| {
        let (site, since) = ("cloud".parse().unwrap(), world.now);
        vec![DeployedView { site, state, since }]
    };
    assert_eq!(world.core.deployed(bundle(1).id), at_cloud(&world, DeployedState::Ready));
    submit(&mut world, LATER);
    assert_eq!(ordered(&mut world, "cloud"), []);
    let failed = DeployedState::Failed("no image".to_owned());
    tell(&mut world, "cloud", failed.clone());
    assert_eq!(world.core.deployed(bundle(1).id), at_cloud(&world, failed));
    let run = submit(&mut world, LATER);
    assert_eq!(ordered(&mut world, "cloud"), [(run, StepIndex(1))], "it is tried again");
    world.disconnect("cloud");
    assert_eq!(world.core.deployed(bundle(1).id), [], "nothing is known of a site that is not connected");
}

#[test]
fn a_run_that_fails_before_leaves_no_order() {
    let mut world = world();
    let run = submit(&mut world, LATER);
    let first = world.dispatched_one("edge");
    assert_eq!(ordered(&mut world, "cloud").len(), 1);
    world.restart();
    world.connect_with("edge", vec![item(first, LocalState::Running)]);
    world.connect("cloud");
    assert!(matches!(fetch(&mut world, "cloud"), Ok(Response::Authorised { .. })), "it is durable");
    world.fail("edge", first);
    assert_eq!(world.state(run), RunState::Failed);
    assert!(world.commands("cloud").iter().any(|command| matches!(command, SiteCommand::Forget { .. })));
    assert!(matches!(fetch(&mut world, "cloud"), Err(Rejection::Forbidden(_))));
}
