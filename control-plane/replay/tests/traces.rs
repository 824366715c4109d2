//! Reading traces, and carrying them out: what the ledger says has crossed is what had to.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "what goes wrong fails the test")]

use control_plane_core::look_ahead::{Aim, Goal, Links};
use control_plane_replay::{Carried, File, Installation, Task, Trace, TraceError, heft, least_bytes, replay};
use proptest::prelude::*;

const MOSAIC: &str = include_str!("traces/mosaic-1.5.json");
const OLD_MOSAIC: &str = include_str!("traces/mosaic-1.4.json");

fn installation(sites: usize, share_max: f64) -> Installation {
    Installation {
        sites,
        processors: 4,
        links: Links { bytes_per_second: 1e8, latency_micros: 50_000 },
        goal: Goal { aim: Aim::Bytes, share_max, effort: 300_000 },
    }
}

fn highest_share(carried: &Carried) -> f64 {
    carried.site_seconds.iter().copied().fold(0.0, f64::max) / carried.site_seconds.iter().sum::<f64>()
}

#[test]
fn an_instance_is_read_with_its_files_its_needs_and_its_times() {
    let trace = Trace::parse(MOSAIC).unwrap();
    assert_eq!((trace.name.as_str(), trace.tasks.len(), trace.processors), ("mosaic", 7, Some(8)));
    let add = trace.tasks.iter().find(|task| task.name == "add").unwrap();
    assert_eq!((add.seconds, add.needs.as_slice(), add.reads.len()), (30.0, [0, 1, 2, 5].as_slice(), 4));
    assert_eq!(trace.produced_bytes(), 260_001_000);
    assert_eq!(trace.task_seconds(), 99.75);
}

#[test]
fn an_instance_of_an_earlier_format_says_the_same() {
    assert_eq!(Trace::parse(OLD_MOSAIC).unwrap(), Trace::parse(MOSAIC).unwrap());
}

#[test]
fn what_is_no_trace_is_refused_with_the_reason() {
    let refused = |text: &str| Trace::parse(text).expect_err("it is refused").to_string();
    assert_eq!(refused("{}"), "it is not a WfFormat document");
    assert_eq!(refused(r#"{"workflow":{"specification":{"tasks":[]}}}"#), "it has no tasks");
    let unknown = r#"{"workflow":{"specification":{"tasks":[{"name":"a","inputFiles":["x"]}]}}}"#;
    assert_eq!(refused(unknown), "task a names file x, which it does not describe");
    let circle =
        r#"{"workflow":{"specification":{"tasks":[{"name":"a","parents":["b"]},{"name":"b","parents":["a"]}]}}}"#;
    assert!(matches!(Trace::parse(circle), Err(TraceError::Circle(_))));
    let twice = r#"{"workflow":{"specification":{"tasks":[{"name":"a"},{"name":"a"}]}}}"#;
    assert_eq!(refused(twice), "task a is described twice");
}

#[test]
fn a_trace_that_was_seen_before_moves_as_few_bytes_as_a_partitioner_that_knows_it() {
    let trace = Trace::parse(MOSAIC).unwrap();
    let installation = installation(2, 0.7);
    let carried = replay(&trace, &installation, 2).unwrap();
    let fewest = least_bytes(&trace.graph(2, 4_000, installation.links), 0.7);
    assert_eq!(carried[1].crossing_bytes, fewest.crossing_bytes);
    assert!(highest_share(&carried[1]) <= 0.7);
}

#[test]
fn a_trace_goes_the_same_way_each_time() {
    let trace = Trace::parse(MOSAIC).unwrap();
    let installation = installation(3, 0.6);
    assert_eq!(replay(&trace, &installation, 3).unwrap(), replay(&trace, &installation, 3).unwrap());
}

#[test]
fn heft_runs_what_is_independent_at_the_same_time() {
    let trace = Trace::parse(MOSAIC).unwrap();
    let found = heft(&trace.graph(2, 4_000, installation(2, 1.0).links));
    // The slowest way through: project-2, compare-23, fit, add; nothing has to cross a border.
    assert_eq!(found.makespan_seconds, 21.5 + 4.25 + 1.0 + 30.0);
}

fn traces() -> impl Strategy<Value = Trace> {
    let task = (0.1_f64..100.0, proptest::collection::vec(any::<prop::sample::Index>(), 0..4), 0_u64..1 << 30);
    proptest::collection::vec(task, 1..40).prop_map(|drawn| {
        let mut trace = Trace { name: "drawn".to_owned(), tasks: Vec::new(), files: Vec::new(), processors: None };
        for (number, (seconds, reads, bytes)) in drawn.into_iter().enumerate() {
            let mut reads: Vec<usize> = reads.iter().filter(|_| number > 0).map(|read| read.index(number)).collect();
            reads.sort_unstable();
            reads.dedup();
            // Each task makes one file, of the same number.
            trace.files.push(File { bytes, maker: Some(number) });
            trace.tasks.push(Task { name: format!("t{number}"), seconds, needs: reads.clone(), reads });
        }
        trace
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_crosses_is_each_file_once_for_each_site_that_reads_it_elsewhere(trace in traces(), sites in 2_usize..4) {
        let installation = installation(sites, 0.8);
        let graph = trace.graph(sites, 4_000, installation.links);
        for carried in replay(&trace, &installation, 2).expect("it is carried out") {
            let site_of: Vec<u8> = carried.site_of.iter().map(|site| u8::try_from(*site).expect("few")).collect();
            prop_assert_eq!(carried.crossing_bytes, graph.crossing_bytes(&site_of));
        }
    }
}
