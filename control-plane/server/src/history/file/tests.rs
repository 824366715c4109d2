#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use control_plane_core::Snapshot;

use super::*;
use crate::history::tests::{Bench, Folder, all};

#[test]
fn lists_and_index_are_made_again_from_the_runs() {
    let bench = Bench::<Folder>::new().unwrap();
    let table = |table, key: &[u8], value: &[u8]| TableChange::Put { table, key: key.to_vec(), value: value.to_vec() };
    let other = [table(ABOUT, FORMAT_KEY, &[0, 0]), table(HEADS, &[0; 24], b"?"), table(INDEX, b"w?", b"")];
    bench.history.tables.change(&other).unwrap();
    assert!(bench.history.runs(&all()).is_err());
    let bench = bench.reopened();
    assert_eq!(bench.found(&all()), [3, 2, 1, 0]);
    assert_eq!(bench.found(&RunFilter { project: Some("rivers".to_owned()), ..all() }), [3, 1, 0]);
}

#[test]
fn a_run_of_a_newer_version_is_refused_by_name() {
    let bench = Bench::<Folder>::new().unwrap();
    let run = bench.kept[0].id();
    let value = (Snapshot::FORMAT + 1).to_be_bytes().to_vec();
    bench.history.tables.change(&[TableChange::Put { table: RUNS, key: run_key(run), value }]).unwrap();
    let message = bench.history.run(run).unwrap_err().to_string();
    assert!(message.contains(&run.to_string()) && message.contains("run the newer program"), "{message}");
}
