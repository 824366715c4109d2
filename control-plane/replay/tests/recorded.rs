//! Recorded runs under other rules.
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use atoll_model::id::{ObjectId, RunId, StepIndex};
use atoll_model::policy::parse;
use atoll_model::resources::Capacity;
use atoll_model::value::{FileName, FileRef, Value};
use atoll_model::workflow::{Surroundings, Work, parse as parse_workflow};
use control_plane_core::look_ahead::{Aim, Goal, Links};
use control_plane_core::view::RunTags;
use control_plane_core::{RecordedExecution, RecordedSite, Recording};
use control_plane_replay::{ReplayError, Retraced, Setting, retrace};
use indexmap::IndexMap;

const READS: &str = "workflow: w\nsteps:\n  make: { run: x, site: edge, outputs: { f: file } }\n  use: { run: x, site: [edge, hpc], foreach: \"${{ range(8) }}\", with: { f: \"${{ steps.make.outputs.f }}\" } }\n  far: { run: x, site: SITE, with: { f: \"${{ steps.make.outputs.f }}\" } }\n";
const BYTES: u64 = 10_000_000;

struct Nothing;

impl Surroundings for Nothing {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Err(format!("there is no action {reference}"))
    }
}

fn recording(far: &str) -> Recording {
    let source = READS.replace("SITE", far);
    let file = Value::File(FileRef {
        object: ObjectId::from_digest([7; 32]),
        bytes: BYTES,
        name: FileName::new(b"f").unwrap(),
        executable: false,
    });
    let made = RecordedExecution { seconds: 10.0, outputs: vec![file] };
    let read = RecordedExecution { seconds: 10.0, outputs: Vec::new() };
    let mut executions = BTreeMap::from([((StepIndex(0), 0), made), ((StepIndex(2), 0), read.clone())]);
    executions.extend((0..8).map(|element| ((StepIndex(1), element), read.clone())));
    Recording {
        run: RunId::from_bits(99),
        workflow: Arc::new(parse_workflow("w.yaml", &source, &Nothing).unwrap()),
        source: Arc::from(source),
        inputs: IndexMap::new(),
        tags: RunTags { project: "rivers".to_owned(), ..RunTags::default() },
        submitted: Vec::new(),
        executions,
    }
}

fn site(name: &str, cpus: u32) -> RecordedSite {
    RecordedSite {
        name: name.parse().unwrap(),
        labels: BTreeMap::from([("egress-price-per-gb".to_owned(), "0.09".to_owned())]),
        capacity: Capacity {
            cpu_millis: cpus * 1_000,
            memory_bytes: 1 << 40,
            disk_free_bytes: 1 << 50,
            ..Capacity::default()
        },
        runtimes: vec!["command".to_owned()],
        listens: false,
    }
}

fn tried(recording: &Recording, rules: Option<&str>) -> Result<Retraced, ReplayError> {
    let policy = rules.map(|rules| parse("eu.yaml", rules).unwrap());
    let setting = Setting {
        sites: &[site("edge", 1), site("hpc", 8)],
        policy: policy.as_ref(),
        links: Links { bytes_per_second: 1e8, latency_micros: 50_000 },
        goal: Goal { aim: Aim::Time, share_max: 1.0, effort: 10_000 },
    };
    retrace(recording, &setting)
}

#[test]
fn what_stays_costs_time_instead_of_money() {
    let recording = recording("edge");
    let free = tried(&recording, None).unwrap();
    assert_eq!((free.bytes, free.executions.values().sum::<u64>()), (BYTES, 10), "{free:?}");
    assert!((free.money - 0.000_9).abs() < 1e-9, "{free:?}");
    let confined = tried(&recording, Some("placement:\n  - confine: edge\n")).unwrap();
    assert_eq!((confined.bytes, confined.executions.len()), (0, 1), "{confined:?}");
    assert!(confined.seconds > free.seconds, "{confined:?} after {free:?}");
    assert_eq!(confined, tried(&recording, Some("placement:\n  - confine: edge\n")).unwrap());
}

#[test]
fn what_cannot_be_is_refused_with_the_rule() {
    let refused = tried(&recording("hpc"), Some("placement:\n  - match: { step: make }\n    confine: edge\n"));
    assert!(matches!(&refused, Err(error) if error.to_string().contains("eu.yaml:2")), "{refused:?}");
    let eager = tried(&recording("edge"), Some("placement:\n  - push: eager\n")).unwrap();
    assert_eq!(eager.bytes, BYTES);
}
