//! Objects and logs: for whom there are URLs, and what somebody sees who looks.

use atoll_model::id::{Attempt, ExecutionId};
use atoll_model::session::{BindingSource, DispatchElements, Report, SiteCommand, StartedElement};
use atoll_model::time::Timestamp;
use atoll_model::value::{ObjectKind, ObjectRef, Value};
use serde_json::json;
use site_agent_daemon::link::http_client;
use storage_sync_engine::transfer::{CredentialError, Credentials as _};

use crate::agent::{Agent, LINES, join};
use crate::world::{World, until};

const WORKFLOW: &str = r#"
workflow: read
inputs:
  data: { type: file }
steps:
  read:
    site: beta
    with: { data: "${{ inputs.data }}" }
    run: cat "$data" > "$ATOLL_OUTPUTS/copy"
    outputs: { copy: file }
"#;

/// Runs a step at `beta` that reads what a person has sent in: the object, and the execution.
async fn dispatched(world: &World, beta: &mut Agent) -> (ObjectRef, ExecutionId) {
    let data = world.upload("data.txt", b"hello").await;
    world.post("runs", json!({ "source": WORKFLOW, "inputs": { "data": data } })).await;
    let (mut object, mut execution) = (None, None);
    let mut take = |source: &BindingSource| {
        if let BindingSource::Value(Value::File(file)) = source {
            object = Some(ObjectRef { id: file.object, kind: ObjectKind::File, bytes: file.bytes });
        }
    };
    while execution.is_none() {
        for command in beta.commands().await {
            match command {
                SiteCommand::Prepare(template) => template.bindings.iter().for_each(|bound| take(&bound.source)),
                SiteCommand::Dispatch(dispatch) => {
                    if let DispatchElements::Bound(bound) = &dispatch.elements {
                        bound.iter().flat_map(|(_, bindings)| bindings).for_each(|bound| take(&bound.source));
                    }
                    execution = Some(ExecutionId { run: dispatch.run, step: dispatch.step, element: 0 });
                }
                SiteCommand::Cancel { .. }
                | SiteCommand::Push { .. }
                | SiteCommand::CancelPush { .. }
                | SiteCommand::Forget { .. }
                | SiteCommand::Delegate(_)
                | SiteCommand::Withdraw { .. }
                | SiteCommand::Evict { .. }
                | SiteCommand::ProposeEviction { .. }
                | SiteCommand::Replicate { .. }
                | SiteCommand::MakeReady(_)
                | SiteCommand::Verify { .. }
                | SiteCommand::Unknown { .. } => panic!("not asked for: {command:?}"),
            }
        }
    }
    (object.expect("an input that is a file"), execution.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_there_is_a_url_only_for_the_agent_that_holds_an_execution_which_reads_the_object() {
    let world = World::start().await;
    let (alpha, beta) = (join(&world, "alpha").await.unwrap(), join(&world, "beta").await.unwrap());
    let (mut alpha, mut beta) = (Agent::start(&alpha), Agent::start(&beta));
    alpha.greet(1).await;
    beta.greet(1).await;
    let (object, _) = dispatched(&world, &mut beta).await;

    let download = beta.link.credentials().download(object).await.unwrap();
    assert_eq!(download.stream_bytes, 5);
    let client = http_client(&beta.identity).unwrap();
    let bytes = client.get(&download.url).send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
    assert_eq!(&bytes[..], b"hello");

    let error = alpha.link.credentials().download(object).await.unwrap_err();
    assert!(matches!(error, CredentialError::Refused(_)), "{error}");
    alpha.stop().await;
    beta.stop().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_of_a_site_are_sent_when_somebody_looks() {
    let world = World::start().await;
    let mut beta = Agent::start(&join(&world, "beta").await.unwrap());
    beta.greet(1).await;
    let (_, execution) = dispatched(&world, &mut beta).await;
    let at = Timestamp::from_micros(1_700_000_000_000_000);
    let started = StartedElement { element: 0, attempt: Attempt::FIRST, at };
    beta.report(1, vec![Report::Started { run: execution.run, step: execution.step, elements: vec![started] }]);
    let path = format!("executions/{execution}");
    let running = || async { world.get(&path).await.contains("\"running\"").then_some(()) };
    until("the execution runs", running).await;

    let log = world.get(&format!("{path}/logs?stream=stdout")).await;
    assert_eq!(log.lines().count(), LINES, "{}", &log[..log.len().min(500)]);
    let log = world.get(&format!("{path}/logs?stream=stderr")).await;
    assert!(log.contains("nothing was kept"), "{log}");
    beta.stop().await;
    world.stop().await;
}
