//! Runs that leave the memory, and how runs are found.

use atoll_model::id::RunId;
use atoll_model::value::Value;

use super::world::{World, file, object};
use crate::view::{RunFilter, RunTags, RunView};
use crate::{Event, Rejection, Request, Response};

const ONE: &str =
    "workflow: w\nsteps:\n  a: { run: x, outputs: { n: integer } }\noutputs:\n  n: ${{ steps.a.outputs.n }}\n";

/// A run that is due to be forgotten, with what was shown of it before.
fn ended_long_ago(world: &mut World) -> (RunId, RunView) {
    let run = world.submit(ONE);
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, vec![Value::Integer(1)]);
    let view = world.core.run(run).unwrap();
    world.advance(world.config.keep_finished);
    (run, view)
}

#[test]
fn an_ended_run_is_forgotten_after_its_time_when_the_history_holds_it() {
    let mut world = World::with_sites(&["edge"]);
    world.keeps_history = false;
    let (run, view) = ended_long_ago(&mut world);
    assert!(world.core.run(run).is_some());
    world.handle(Event::RunKept { run });
    assert!(world.core.run(run).is_none());

    let kept = world.history.pop().unwrap();
    assert_eq!(kept.view(), view);
    assert_eq!(view.sites.iter().map(ToString::to_string).collect::<Vec<_>>(), ["edge"]);
    let opened = kept.open();
    opened.check();
    let executions = opened.executions(run, &Default::default()).unwrap();
    assert_eq!(executions[0].outputs.values().collect::<Vec<_>>(), [&Value::Integer(1)]);
    assert_eq!(executions[0].site.as_ref().map(ToString::to_string).as_deref(), Some("edge"));
    let why = opened.why_execution(executions[0].execution).unwrap();
    assert_eq!(why.chosen.map(|site| site.to_string()).as_deref(), Some("edge"));
}

#[test]
fn a_run_that_the_history_was_asked_to_keep_is_asked_for_again_after_a_restart() {
    let mut world = World::with_sites(&["edge"]);
    world.keeps_history = false;
    let (run, _) = ended_long_ago(&mut world);
    assert_eq!(world.history.len(), 1);
    world.restart();
    world.handle(Event::RunKept { run });
    assert!(world.core.run(run).is_some(), "the answer was to the process before");
    assert_eq!(world.history.len(), 2);
    world.handle(Event::RunKept { run });
    assert!(world.core.run(run).is_none());
}

#[test]
fn what_happens_to_a_run_while_it_is_being_kept_is_kept_too() {
    let mut world = World::with_sites(&["edge"]);
    world.keeps_history = false;
    let (run, _) = ended_long_ago(&mut world);
    world.ask(Request::RecordDownload { run, object: object(9, 5), bytes: 5 }).unwrap();
    world.handle(Event::RunKept { run });
    assert!(world.core.run(run).is_some(), "somebody has taken an output meanwhile");
    assert_eq!(world.history.len(), 2);
    world.handle(Event::RunKept { run });
    assert!(world.core.run(run).is_none());
    assert_eq!(world.history[1].open().ledger(&Default::default()).len(), 1);
}

#[test]
fn runs_are_found_by_what_they_were_given_and_by_time() {
    let mut world = World::with_sites(&["edge", "hpc"]);
    let first = world.submit(ONE);
    world.advance(std::time::Duration::from_secs(10));
    let between = world.now;
    let tags = RunTags {
        project: "rivers".to_owned(),
        labels: [("season".to_owned(), "wet".to_owned())].into(),
        priority: None,
    };
    let second = world.submit_tagged(ONE, tags.clone());
    let found = |world: &World, filter: RunFilter| -> Vec<RunId> {
        world.core.runs(&filter).iter().map(|run| run.run).collect()
    };
    let all = RunFilter::default;
    assert_eq!(found(&world, all()), [second, first]);
    assert_eq!(found(&world, RunFilter { project: Some("rivers".to_owned()), ..all() }), [second]);
    assert_eq!(found(&world, RunFilter { project: Some(RunTags::PROJECT.to_owned()), ..all() }), [first]);
    assert_eq!(found(&world, RunFilter { labels: tags.labels.clone(), ..all() }), [second]);
    assert_eq!(found(&world, RunFilter { since: Some(between), ..all() }), [second]);
    assert_eq!(found(&world, RunFilter { until: Some(between), ..all() }), [first]);
    let before = world.core.run(second).map(|run| run.place());
    assert_eq!(found(&world, RunFilter { before, ..all() }), [first]);
    assert_eq!(world.core.run(second).unwrap().tags, tags);
}

#[test]
fn an_output_of_a_run_that_was_forgotten_is_fetched_from_where_it_was_made() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, outputs: { f: file } }\n");
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, vec![file(1, 1_000)]);
    world.advance_with(world.config.keep_finished, &["edge"]);
    assert!(world.core.run(run).is_none());
    let kept = world.history.pop().map(Box::new);
    let stage = |object, kept| {
        let hold = std::time::Duration::from_secs(60);
        Request::StageForClient { run, object, hold, kept }
    };
    let unknown = world.ask(stage(object(1, 1_000), None));
    assert!(matches!(unknown, Err(Rejection::NotFound(_))), "{unknown:?}");
    let other = world.ask(stage(object(2, 1_000), kept.clone()));
    assert!(matches!(other, Err(Rejection::NotFound(_))), "{other:?}");
    let request = world.request(stage(object(1, 1_000), kept));
    assert_eq!(world.carry_out_pushes("edge"), 1);
    assert!(matches!(world.replies.remove(&request), Some(Ok(Response::Staged { .. }))));
    world.ask(Request::RecordDownload { run, object: object(1, 1_000), bytes: 1_000 }).unwrap();
    // It goes from the bucket when its time is over, and nothing is left of it.
    world.advance_with(std::time::Duration::from_secs(120), &["edge"]);
    assert!(world.carry_out_deletes().contains(&object(1, 1_000).id));
    assert!(world.core.object(object(1, 1_000).id).is_none());
}

#[test]
fn an_output_of_a_run_that_was_forgotten_is_refused_with_what_to_do_when_the_site_that_has_it_is_gone() {
    let mut world = World::with_sites(&["edge"]);
    let run = world.submit("workflow: w\nsteps:\n  a: { run: x, outputs: { f: file } }\n");
    let a = world.dispatched_one("edge");
    world.succeed("edge", a, vec![file(1, 1_000)]);
    world.advance_with(world.config.keep_finished, &["edge"]);
    let kept = world.history.pop().map(Box::new);
    assert!(world.core.run(run).is_none() && kept.is_some());
    let refused = |world: &mut World| {
        let hold = std::time::Duration::from_secs(60);
        let answer = world.ask(Request::StageForClient { run, object: object(1, 1_000), hold, kept: kept.clone() });
        let Err(Rejection::Unavailable(reason)) = answer else { panic!("{answer:?}") };
        assert!(world.core.object(object(1, 1_000).id).is_none(), "nothing is left of the request");
        reason.replace(&object(1, 1_000).id.to_string(), "It")
    };
    let advice = "start the agent there and ask again, or submit the workflow again to have it made anew";
    world.disconnect("edge");
    assert_eq!(refused(&mut world), format!("It is at site edge (not connected) only; {advice}"));
    let site = || "edge".parse().unwrap();
    world.advance(std::time::Duration::from_secs(1_200));
    assert_eq!(refused(&mut world), format!("It is at site edge (lost) only; {advice}"));
    let advice = "submit the workflow again to have it made anew";
    world.ask(Request::RevokeSite { site: site(), reason: "stolen".to_owned() }).unwrap();
    assert_eq!(refused(&mut world), format!("It was at site edge (revoked) only; {advice}"));
    world.ask(Request::RemoveSite { site: site() }).unwrap();
    assert_eq!(refused(&mut world), format!("It was at a site (removed) only; {advice}"));
}

#[test]
fn of_more_finished_runs_than_fit_the_oldest_leave_the_memory_and_are_in_the_history() {
    let mut world = World::new();
    world.config.keep_finished_bytes = 8_000;
    world.restart();
    world.add_site("edge");
    let mut runs = Vec::new();
    for _ in 0..5 {
        let run = world.submit(ONE);
        let a = world.dispatched_one("edge");
        world.succeed("edge", a, vec![Value::Integer(1)]);
        runs.push(run);
    }
    let in_memory: Vec<_> = runs.iter().filter(|run| world.core.run(**run).is_some()).collect();
    assert_eq!(in_memory, [&runs[3], &runs[4]], "two steps of three thousand bytes fit");
    let kept: Vec<_> = world.history.iter().map(crate::FinishedRun::id).collect();
    assert_eq!(kept, runs[..3]);
    world.config.keep_finished_bytes = 4_000;
    world.restart();
    world.advance(std::time::Duration::from_millis(1));
    assert!(world.core.run(runs[3]).is_none(), "and after a start with less room");
    assert!(world.core.run(runs[4]).is_some());
}
