//! Repositories that actions are imported from: added, looked at by the clock or when somebody asks, removed.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::action::ActionKind;
use atoll_model::repository::{RepositoryName, RepositorySource};
use atoll_model::time::Timestamp;

use super::registry::{bundle, name, push};
use super::world::{T0, World};
use crate::{
    ActionVersion, Finding, FoundAction, Import, ImportMode, ImportOutcome, ImportReport, Origin, Rejection,
    Repository, Request, Response,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn tools() -> RepositoryName {
    RepositoryName::new("default", "tools").unwrap()
}

fn add(world: &mut World, subdir: Option<&str>, every: Option<Duration>) -> Result<Response, Rejection> {
    let source = RepositorySource::new("https://git.example.org/tools".parse().unwrap(), None, subdir).unwrap();
    world.ask(Request::AddRepository { name: tools(), source, every, by: "ann".to_owned() })
}

fn look(world: &mut World, mode: ImportMode) -> Result<Response, Rejection> {
    world.ask(Request::LookAtRepository { name: tools(), mode, by: "ann".to_owned() })
}

fn under_way(world: &World) -> Option<Import> {
    let repositories = world.core.repositories();
    let import = repositories.get(&tools()).and_then(|known| known.under_way.clone());
    let ordered: Vec<_> = repositories.orders().into_iter().map(|order| order.import).collect();
    assert_eq!(ordered, import.iter().cloned().collect::<Vec<_>>(), "what goes on is what shells are asked for");
    import
}

fn report(commit: &str, actions: Vec<FoundAction>) -> ImportReport {
    ImportReport { commit: Some(commit.to_owned()), outcome: ImportOutcome::Done, actions, log: "done\n".to_owned() }
}

fn end(world: &mut World, number: u64, report: ImportReport) {
    let report = Box::new(report);
    assert_eq!(world.ask(Request::ImportEnded { name: tools(), number, report }), Ok(Response::Done));
}

fn known(world: &World) -> Repository {
    world.core.repositories().get(&tools()).cloned().unwrap()
}

fn origin(commit: &str, path: &str) -> Origin {
    Origin {
        repository: "tools".to_owned(),
        url: "https://git.example.org/tools".to_owned(),
        commit: commit.to_owned(),
        path: path.to_owned(),
    }
}

fn push_imported(world: &mut World, import: u64, number: u8, origin: Origin) -> Result<Response, Rejection> {
    world.carry_out_deletes();
    world.ask(Request::RecordUpload { object: bundle(number), key: None }).unwrap();
    let version = Box::new(ActionVersion {
        kind: ActionKind::Processor,
        bundle: bundle(number),
        manifest: Arc::from("name: clean\nversion: \"1.0\"\ncommand: [./clean]\n"),
        description: None,
        labels: Default::default(),
        signatures: Vec::new(),
        pushed_by: "ann".to_owned(),
        pushed_at: Timestamp::ZERO,
        deprecated: None,
    });
    let origin = Box::new(origin);
    world.ask(Request::PushImported { number: import, name: name("1.0"), version, origin })
}

#[test]
fn what_is_added_is_scanned_at_once_and_added_again_it_stays_as_it_is() {
    let mut world = World::new();
    assert_eq!(add(&mut world, None, None), Ok(Response::Done));
    let scan = under_way(&world).unwrap();
    assert_eq!((scan.mode, scan.by.as_deref(), scan.at), (ImportMode::Scan, Some("ann"), T0));
    assert_eq!(add(&mut world, None, None), Ok(Response::Done));
    assert_eq!(under_way(&world), Some(scan.clone()), "it is not asked for twice");
    let Err(Rejection::Conflict(message)) = add(&mut world, Some("lib"), None) else { panic!("another one") };
    assert!(message.contains("https://git.example.org/tools"), "{message}");
    let refused = look(&mut world, ImportMode::Import);
    assert!(
        matches!(refused, Err(Rejection::Conflict(ref message)) if message.contains("being scanned")),
        "{refused:?}"
    );
    end(&mut world, scan.number, report("c1", Vec::new()));
    assert_eq!(under_way(&world), None);
    assert_eq!(known(&world).last.unwrap().report.commit.as_deref(), Some("c1"));
    for wrong in [Duration::from_secs(1), Duration::from_secs(400 * 86_400)] {
        let other = RepositoryName::new("default", "other").unwrap();
        let Repository { source, .. } = known(&world);
        let refused =
            world.ask(Request::AddRepository { name: other, source, every: Some(wrong), by: "ann".to_owned() });
        assert!(matches!(refused, Err(Rejection::Invalid(_))), "{refused:?}");
    }
}

#[test]
fn the_clock_asks_for_an_import_each_time_and_never_while_one_goes_on() {
    let mut world = World::new();
    add(&mut world, None, Some(HOUR)).unwrap();
    let first = under_way(&world).unwrap();
    assert_eq!(first.mode, ImportMode::Import, "the first does not wait for the clock");
    world.advance(3 * HOUR);
    assert_eq!(under_way(&world), Some(first.clone()), "it takes long, and nothing piles up");
    end(&mut world, first.number, report("c1", Vec::new()));
    let second = under_way(&world).expect("its time has come meanwhile");
    assert_eq!((second.number, second.by.clone(), second.mode), (first.number + 1, None, ImportMode::Import));
    end(&mut world, second.number, report("c1", Vec::new()));
    assert_eq!(under_way(&world), None);
    world.restart();
    world.advance(HOUR - Duration::from_secs(1));
    assert_eq!(under_way(&world), None);
    world.advance(Duration::from_secs(1));
    assert_eq!(under_way(&world).unwrap().number, second.number + 1, "also after a restart");
}

#[test]
fn what_goes_on_is_asked_for_again_after_a_restart_until_it_has_ended() {
    let mut world = World::new();
    add(&mut world, None, None).unwrap();
    let scan = under_way(&world).unwrap();
    end(&mut world, scan.number, report("c1", Vec::new()));
    look(&mut world, ImportMode::Import).unwrap();
    let import = under_way(&world).unwrap();
    world.restart();
    assert_eq!(under_way(&world), Some(import.clone()));
    let found = |finding| FoundAction { path: ".".to_owned(), action: None, digest: None, finding };
    end(&mut world, import.number, report("c2", vec![found(Finding::Known)]));
    look(&mut world, ImportMode::Import).unwrap();
    let order = world.core.repositories().orders().remove(0);
    assert_eq!(order.imported.unwrap().report.commit.as_deref(), Some("c2"), "all of it is there");
    end(&mut world, order.import.number, report("c2", vec![found(Finding::Failed("no".to_owned()))]));
    look(&mut world, ImportMode::Import).unwrap();
    assert_eq!(world.core.repositories().orders()[0].imported, None, "something of it is not");
}

#[test]
fn what_was_cancelled_or_removed_counts_no_more_and_a_new_one_is_another() {
    let mut world = World::new();
    add(&mut world, None, None).unwrap();
    let scan = under_way(&world).unwrap();
    world.ask(Request::CancelImport { name: tools(), by: "bob".to_owned() }).unwrap();
    assert_eq!(known(&world).last.unwrap().report.outcome, ImportOutcome::Cancelled { by: "bob".to_owned() });
    end(&mut world, scan.number, report("c1", Vec::new()));
    assert_eq!(known(&world).last.unwrap().report.commit, None, "nobody waits for it");
    look(&mut world, ImportMode::Import).unwrap();
    let import = under_way(&world).unwrap();
    world.ask(Request::RemoveRepository { name: tools() }).unwrap();
    let refused = push_imported(&mut world, import.number, 1, origin("c1", "."));
    assert!(matches!(refused, Err(Rejection::Conflict(_))), "{refused:?}");
    assert!(world.core.registry().get(&name("1.0")).is_none());
    add(&mut world, None, None).unwrap();
    end(&mut world, import.number, report("c1", Vec::new()));
    assert!(under_way(&world).unwrap().number > import.number, "the new one goes on");
    let missing = RepositoryName::new("default", "tolls").unwrap();
    let refused = world.ask(Request::RemoveRepository { name: missing });
    assert!(matches!(refused, Err(Rejection::NotFound(ref message)) if message.contains("tools")), "{refused:?}");
}

#[test]
fn a_version_that_is_imported_says_where_it_came_from_and_another_content_names_both_commits() {
    let mut world = World::new();
    add(&mut world, None, Some(HOUR)).unwrap();
    let first = under_way(&world).unwrap().number;
    assert_eq!(push_imported(&mut world, first, 1, origin("c1", "lib/clean")), Ok(Response::Done));
    assert_eq!(push_imported(&mut world, first, 1, origin("c2", "lib/clean")), Ok(Response::Done));
    let came_from = |world: &World| world.core.repositories().origin(&name("1.0")).cloned();
    assert_eq!(came_from(&world), Some(origin("c1", "lib/clean")), "where it came from first");
    assert_eq!(world.core.finding(&name("1.0"), bundle(1).id, &origin("c3", ".")), Finding::Known);
    assert_eq!(world.core.finding(&name("2.0"), bundle(2).id, &origin("c3", ".")), Finding::New);
    let Err(Rejection::Conflict(message)) = push_imported(&mut world, first, 2, origin("c3", "lib/clean")) else {
        panic!("a version never changes")
    };
    for part in ["clean@1.0", "commit c1 of repository tools (lib/clean)", "commit c3", "another version"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    world.ask(Request::RemoveAction { name: name("1.0") }).unwrap();
    world.restart();
    assert_eq!(
        came_from(&world),
        Some(origin("c1", "lib/clean")),
        "what was removed does not come to mean something else"
    );
    push(&mut world, "2.0", 3, &[]).unwrap();
    let Finding::Failed(message) = world.core.finding(&name("2.0"), bundle(4).id, &origin("c3", ".")) else { panic!() };
    assert!(message.contains("was pushed by test") && message.contains("commit c3"), "{message}");
}

#[test]
fn of_a_report_no_more_is_kept_than_there_is_room_for() {
    let mut world = World::new();
    add(&mut world, None, None).unwrap();
    let number = under_way(&world).unwrap().number;
    let failed = Finding::Failed("ü".repeat(10_000));
    let action = FoundAction { path: ".".to_owned(), action: None, digest: None, finding: failed };
    let long = ImportReport { log: "ü".repeat(100_000), ..report("c1", vec![action; 1_000]) };
    end(&mut world, number, long);
    let kept = known(&world).last.unwrap();
    assert_eq!(kept.report.actions.len(), atoll_model::limits::REPOSITORY_ACTIONS_MAX);
    assert!(kept.report.log.len() < 17_000 && kept.report.log.starts_with('…'));
    let Finding::Failed(message) = &kept.report.actions[0].finding else { panic!("{kept:?}") };
    assert!(message.len() < 2_100 && message.ends_with('…'));
}
