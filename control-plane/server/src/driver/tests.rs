#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::sync::Arc;

use atoll_model::id::RunId;
use atoll_model::workflow::{Surroundings, Work, parse};
use control_plane_core::view::{ExecutionPage, LedgerFilter, RunFilter};
use control_plane_core::{Rejection, Request, Response};
use storage_sync_journal::{JournalError, MemoryDisk};
use tokio::sync::mpsc;

use super::start::Beginning;
use super::{DriverError, Handle, Notices, start, wall_clock};
use crate::telemetry::Meters;
use crate::testing::{Core, Schema, fresh};

struct Alone;

impl Surroundings for Alone {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action {reference}"))
    }
}

const WORKFLOW: &str = "workflow: hello\nsteps:\n  hello:\n    run: echo hello\n";

fn submit(run: RunId) -> Request {
    Request::Submit {
        run,
        workflow: Arc::new(parse("hello.yaml", WORKFLOW, &Alone).unwrap()),
        source: Arc::from(WORKFLOW),
        inputs: Default::default(),
        submitted_by: "somebody".to_owned(),
        traceparent: None,
        tags: Default::default(),
    }
}

fn fresh_run() -> RunId {
    RunId::from_bits(fresh())
}

/// Everything that people can see.
async fn seen(handle: &Handle) -> String {
    let see = |core: &control_plane_core::ControlPlane| {
        let runs = core.runs(&RunFilter::default());
        let executions: Vec<_> = runs.iter().map(|run| core.executions(run.run, &ExecutionPage::default())).collect();
        let sites: Vec<_> = core.sites().into_iter().map(|site| (site.site, site.labels)).collect();
        core.check();
        format!("{runs:?}\n{executions:?}\n{sites:?}\n{:?}", core.ledger(&LedgerFilter::default()))
    };
    handle.query(see).await.unwrap()
}

#[tokio::test]
async fn nothing_is_answered_or_shown_before_it_is_durable() {
    let core = Core::start(&MemoryDisk::default());
    core.enrol("edge").await;
    core.gate.close();
    let run = fresh_run();
    let mut submitted = Box::pin(core.handle.request(submit(run)));
    assert!(futures::poll!(&mut submitted).is_pending());
    let gate = core.gate.clone();
    tokio::task::spawn_blocking(move || gate.wait_for_barrier()).await.unwrap();
    // The core has decided by now: whoever asks it would be told, were it not for the journal.
    let mut asked = Box::pin(core.handle.query(move |core| core.run(run).is_some()));
    assert!(futures::poll!(&mut asked).is_pending());
    for _ in 0..100 {
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut submitted).is_pending());
        assert!(futures::poll!(&mut asked).is_pending());
    }
    core.gate.open();
    assert_eq!(submitted.await, Ok(Response::Submitted { run }));
    assert_eq!(asked.await, Ok(true));
}

#[tokio::test]
async fn what_piles_up_behind_a_barrier_shares_the_next_one() {
    let core = Core::start(&MemoryDisk::default());
    core.enrol("edge").await;
    core.gate.close();
    let first = core.handle.request(submit(fresh_run()));
    let mut first = Box::pin(first);
    assert!(futures::poll!(&mut first).is_pending());
    let gate = core.gate.clone();
    tokio::task::spawn_blocking(move || gate.wait_for_barrier()).await.unwrap();
    let mut rest: Vec<_> = (0..50).map(|_| Box::pin(core.handle.request(submit(fresh_run())))).collect();
    for request in &mut rest {
        assert!(futures::poll!(request).is_pending());
    }
    // All have been handed over when the core has answered something that was asked after them, or waits to.
    let mut last = Box::pin(core.handle.query(|_| ()));
    assert!(futures::poll!(&mut last).is_pending());
    core.gate.open();
    first.await.unwrap();
    for result in futures::future::join_all(rest).await {
        result.unwrap();
    }
    last.await.unwrap();
    let barriers = core.gate.passed();
    assert!(barriers < 25, "51 runs took {barriers} barriers");
}

#[tokio::test]
async fn a_recovered_control_plane_equals_the_one_that_was_killed() {
    let disk = MemoryDisk::default();
    let core = Core::start(&disk);
    core.enrol("edge").await;
    for _ in 0..3 {
        core.handle.request(submit(fresh_run())).await.unwrap();
    }
    let cancelled = fresh_run();
    core.handle.request(submit(cancelled)).await.unwrap();
    core.handle.request(Request::CancelRun { run: cancelled, reason: "enough".to_owned() }).await.unwrap();
    let before = seen(&core.handle).await;
    kill(core, &disk).await;
    let core = Core::start(&disk);
    assert_eq!(seen(&core.handle).await, before);
}

#[tokio::test]
async fn a_checkpoint_stands_for_everything_before_it() {
    let disk = MemoryDisk::default();
    let core = Core::start(&disk);
    core.enrol("edge").await;
    let old = fresh_run();
    core.handle.request(submit(old)).await.unwrap();
    core.meters.wish_for_snapshot();
    let new = fresh_run();
    core.handle.request(submit(new)).await.unwrap();
    let newest = fresh_run();
    core.handle.request(submit(newest)).await.unwrap();
    assert_eq!(core.meters.checkpoints.get(), 1);
    let before = seen(&core.handle).await;
    kill(core, &disk).await;
    let core = Core::start(&disk);
    assert_eq!(seen(&core.handle).await, before);
    for run in [old, new, newest] {
        assert_eq!(core.handle.query(move |core| core.run(run).is_some()).await, Ok(true));
    }
}

/// Ends the threads; what no barrier has covered is gone.
async fn kill(core: Core, disk: &MemoryDisk) {
    let Core { handle, mut driver, .. } = core;
    drop(handle);
    driver.ended().await.unwrap();
    disk.crash();
}

#[tokio::test]
async fn a_failing_journal_ends_the_driver_and_nothing_of_the_batch_is_carried_out() {
    let disk = MemoryDisk::default();
    let mut core = Core::start(&disk);
    core.enrol("edge").await;
    let kept = fresh_run();
    core.handle.request(submit(kept)).await.unwrap();
    core.gate.break_down();
    let lost = fresh_run();
    let refused = core.handle.request(submit(lost)).await;
    assert!(matches!(refused, Err(Rejection::Unavailable(_))), "{refused:?}");
    let error = core.driver.ended().await.expect_err("the journal has failed");
    assert!(matches!(&error, DriverError::Journal(JournalError::Store(_))), "{error:?}");
    assert!(error.to_string().contains("the journal cannot be written"));
    let later = core.handle.query(|core| core.counters()).await;
    assert!(matches!(later, Err(Rejection::Unavailable(_))), "{later:?}");

    disk.crash();
    let core = Core::start(&disk);
    let there = |run| core.handle.query(move |core| core.run(run).is_some());
    assert_eq!((there(kept).await, there(lost).await), (Ok(true), Ok(false)));
}

#[tokio::test]
async fn a_submission_that_is_repeated_makes_one_run() {
    let core = Core::start(&MemoryDisk::default());
    core.enrol("edge").await;
    let run = fresh_run();
    for _ in 0..2 {
        assert_eq!(core.handle.request(submit(run)).await, Ok(Response::Submitted { run }));
    }
    assert_eq!(core.handle.query(|core| core.runs(&RunFilter::default()).len()).await, Ok(1));
}

#[tokio::test]
async fn agents_are_told_when_the_control_plane_goes_down() {
    use atoll_model::session::{ControlBody, Goodbye};
    let mut core = Core::start(&MemoryDisk::default());
    let mut connection = core.handle.connect().await.unwrap();
    core.handle.shut_down().await;
    let frame = connection.frames.recv().await.unwrap();
    assert_eq!(frame.body, ControlBody::Goodbye(Goodbye::ShuttingDown));
    assert!(connection.frames.recv().await.is_none());
    core.driver.ended().await.unwrap();
}

/// Reads and answers that need no append are not refused by the database: the keeper has to ask for them.
#[tokio::test]
async fn b3_a_leader_whose_lease_is_over_answers_nothing_and_ends() {
    let Some(schema) = Schema::fresh() else { return };
    let schema = Arc::new(schema);
    let led = Arc::clone(&schema);
    let (mut journal, contents, _) = tokio::task::spawn_blocking(move || led.lead()).await.unwrap();
    let lost = journal.take_end().unwrap();
    let meters = Arc::new(Meters::new());
    let beginning = Beginning {
        config: control_plane_core::Config { started_at: wall_clock(), ..Default::default() },
        log: Box::new(journal),
        // Nobody ends it from outside.
        deposed: None,
        checkpoint: contents.checkpoint,
        batches: contents.batches,
        format: contents.format,
        deletions: mpsc::unbounded_channel().0,
        history: mpsc::unbounded_channel().0,
        notices: Notices::new(None, Arc::clone(&meters)),
        meters,
    };
    let (handle, mut driver) = start(beginning).unwrap();
    assert_eq!(handle.query(|core| core.runs(&RunFilter::default()).len()).await, Ok(0));
    // As if another had taken the lead while this one was asleep.
    let deposed = format!("UPDATE {}.lease SET epoch = epoch + 1", schema.address().schema());
    let server = std::env::var("ATOLL_TEST_POSTGRES").unwrap();
    let status = tokio::process::Command::new("psql").args(["-X", "-q", "-c", &deposed, &server]).status().await;
    assert!(status.unwrap().success());
    lost.await.unwrap();
    let unanswered = handle.query(|core| core.runs(&RunFilter::default()).len()).await;
    assert!(matches!(unanswered, Err(Rejection::Unavailable(_))), "{unanswered:?}");
    let error = driver.ended().await.expect_err("it leads no more");
    assert!(matches!(&error, DriverError::Journal(JournalError::Store(_))), "{error:?}");
    assert!(format!("{:?}", error).contains("the leader's lease is over"), "{error:?}");
    tokio::task::spawn_blocking(move || drop((handle, driver, schema))).await.unwrap();
}
