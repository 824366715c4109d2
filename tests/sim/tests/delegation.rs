//! What an agent decides of a step that was delegated to it is what the control plane would have decided.

use std::time::Duration;

use atoll_model::id::Attempt;
use control_plane_core::view::{ExecutionState, RunState};
use sim_tests::workload::draw;
use sim_tests::{Cut, Rng, Scenario, Seen, run};

const CUT_AT: Duration = Duration::from_millis(1_500);
const CUT_LASTS: Duration = Duration::from_secs(800);

/// A workflow of one site without inputs, of which nothing depends on the link.
fn drawn(seed: u64) -> Option<String> {
    let workflow = draw(&mut Rng::new(seed), &Scenario { sites: 1, at_most_once: false, ..Scenario::quiet(seed) });
    let source = workflow.source.replace("    on_disconnect: stop\n", "");
    (!workflow.has_input && source.contains("steps.s")).then_some(source)
}

fn scenario(seed: u64, source: String) -> Scenario {
    Scenario {
        sites: 1,
        workflows: vec![source],
        unquiet: CUT_AT + CUT_LASTS,
        unnumbered: true,
        ..Scenario::quiet(seed)
    }
}

/// How attempts are numbered depends on what was withdrawn before it began.
fn forget_numbers(run: &mut Seen) {
    run.executions.iter_mut().for_each(|execution| execution.attempt = Attempt::FIRST);
}

#[test]
fn b5_a_workflow_that_a_site_finishes_alone_ends_as_it_would_have_ended_under_the_control_plane() {
    let (mut compared, mut alone) = (0, 0);
    for seed in 0..400 {
        let Some(source) = drawn(seed) else { continue };
        let mut central = run(Scenario { old_agents: true, ..scenario(seed, source.clone()) });
        let cut = Cut { site: 0, at: CUT_AT, lasts: CUT_LASTS, to_server: true, to_agent: true };
        let mut delegated = run(Scenario { cuts: vec![cut], ..scenario(seed, source.clone()) });
        forget_numbers(&mut central.runs[0]);
        forget_numbers(&mut delegated.runs[0]);
        let (there, here) = (&central.runs[0], &delegated.runs[0]);
        assert_eq!(here.state, there.state, "seed {seed}:\n{source}");
        if here.state == RunState::Succeeded {
            assert_eq!(here, there, "seed {seed}:\n{source}");
            assert_eq!(delegated.starts, central.starts, "starts of seed {seed}:\n{source}");
        }
        // Which executions a failing run has ended by then depends on when; what they came to does not.
        for (one, other) in here.executions.iter().zip(&there.executions) {
            if one.execution == other.execution && [one.state, other.state] == [ExecutionState::Succeeded; 2] {
                assert_eq!(one, other, "seed {seed}:\n{source}");
            }
        }
        compared += 1;
        alone += u32::from(delegated.last_start > CUT_AT && delegated.last_start < CUT_AT + CUT_LASTS);
    }
    println!("{compared} workflows compared, {alone} of them went on while the link was cut, to their end");
    assert!(compared > 100 && alone > compared / 3, "{alone} of {compared} were finished alone");
}
