//! What a site has a number of: GPUs, each for one execution at a time, and resources that its administrator names.

use atoll_model::id::ExecutionId;
use atoll_model::resources::{Confinement, Gpus, IsolationProfile, Resources};
use atoll_model::session::{NotStartedReason, Outcome, StepTemplate};

use crate::control::State;
use crate::site::{Site, eventually};

fn with_gpus(site: &mut Site, script: &str, count: u32, kind: Option<&str>) -> StepTemplate {
    let step = site.step(script);
    let gpus = Some(Gpus { count, kind: kind.map(str::to_owned) });
    StepTemplate { resources: Resources { cpu_millis: 100, gpus, ..step.resources }, ..step }
}

/// An execution of another step has begun and ended: what could start by then has.
async fn others_pass(site: &mut Site) {
    let other = site.run("exit 0");
    assert_eq!(site.control.finished(other).await.outcome, Outcome::Succeeded);
}

fn started(state: &State, executions: &[ExecutionId]) -> usize {
    executions.iter().filter(|execution| state.is_started(**execution)).count()
}

#[tokio::test]
async fn nobody_has_a_gpu_that_another_has_and_those_of_before_keep_theirs_under_a_new_agent() {
    let mut site = Site::start_with("gpus = [\"a100\", \"v100\", \"a100\"]").await;
    let script = "echo $CUDA_VISIBLE_DEVICES > @/has.$CUDA_VISIBLE_DEVICES
until [ -e @/gate.$CUDA_VISIBLE_DEVICES ]; do sleep 0.02; done";
    let step = with_gpus(&mut site, script, 1, Some("a100"));
    let executions = site.run_elements(step, 3);
    for index in ["0", "2"] {
        assert_eq!(site.trace(&format!("has.{index}")).await.trim(), index);
    }
    site.control.until("two that run", |state| (started(state, &executions) == 2).then_some(())).await;
    others_pass(&mut site).await;
    assert_eq!(site.control.look(|state| started(state, &executions)), 2, "the third waits");
    site.kill_agent();
    site.start_agent().await;
    let other = with_gpus(&mut site, script, 1, Some("v100"));
    let other = site.run_step(other);
    assert_eq!(site.trace("has.1").await.trim(), "1");
    others_pass(&mut site).await;
    assert_eq!(site.control.look(|state| started(state, &executions)), 2, "the third waits still");
    std::fs::remove_file(site.scratch().join("has.2")).unwrap();
    site.open_gate("gate.2");
    assert_eq!(site.trace("has.2").await.trim(), "2", "the third has what the other has left");
    ["gate.0", "gate.1"].iter().for_each(|gate| site.open_gate(gate));
    for execution in executions.into_iter().chain([other]) {
        assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
    }
    assert_eq!(std::fs::read_dir(site.data().join("gpus")).unwrap().count(), 0, "nothing is held");
}

#[tokio::test]
async fn what_is_strict_gets_its_gpu_as_others_do() {
    let mut site = Site::start_with("gpus = [\"a100\"]").await;
    let mut step = with_gpus(&mut site, "[ \"$CUDA_VISIBLE_DEVICES\" = 0 ]", 1, None);
    step.resources.confinement = Confinement { isolation: Some(IsolationProfile::Strict), ..Confinement::default() };
    let execution = site.run_step(step);
    assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn more_gpus_than_a_site_has_are_impossible_there() {
    let mut site = Site::start_with("gpus = [\"a100\"]\n[resources]\nlicences = 1").await;
    for resources in [
        Resources { gpus: Some(Gpus { count: 2, kind: None }), ..Resources::default() },
        Resources { gpus: Some(Gpus { count: 1, kind: Some("h100".to_owned()) }), ..Resources::default() },
        Resources { named: [("licences".to_owned(), 1_500)].into(), ..Resources::default() },
    ] {
        let step = StepTemplate { resources, ..site.step("exit 0") };
        let execution = site.run_step(step);
        let outcome = site.control.finished(execution).await.outcome;
        assert!(matches!(outcome, Outcome::NotStarted { reason: NotStartedReason::Impossible, .. }), "{outcome:?}");
    }
}

#[tokio::test]
async fn parts_of_a_named_resource_are_given_out_until_there_is_no_more() {
    let mut site = Site::start_with("[resources]\nlicences = 1").await;
    let step = site.step("echo > @/began.$ATOLL_EXECUTION; until [ -e @/gate ]; do sleep 0.02; done");
    let named = [("licences".to_owned(), 400)].into();
    let step = StepTemplate { resources: Resources { cpu_millis: 100, named, ..step.resources }, ..step };
    let executions = site.run_elements(step, 3);
    let began = |site: &Site| {
        let names = std::fs::read_dir(site.scratch()).unwrap().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with("began.")).count()
    };
    eventually("two that run", || (began(&site) == 2).then_some(())).await;
    others_pass(&mut site).await;
    assert_eq!(began(&site), 2, "the third waits");
    site.open_gate("gate");
    for execution in executions {
        assert_eq!(site.control.finished(execution).await.outcome, Outcome::Succeeded);
    }
}
