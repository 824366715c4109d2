//! What Slurm 22.05.8 answers, and what later versions write otherwise.

use std::cell::Cell;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use atoll_model::time::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::executor::batch::system::Over;

const NAME: &str = "atoll.flood.a.0123456789abcdef";
/// When the intention was written.
const INTENDED: i64 = 1_795_489_430;
const DISABLED: &str = "Slurm accounting storage is disabled\n";
const REFUSED: &str = "\
sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:127.0.0.1:6819: Connection refused
sacct: error: Sending PersistInit msg: Connection refused
sacct: error: Problem talking to the database: Connection refused
";
const NO_JSON: &str = "sacct: unrecognized option '--json'\nTry \"sacct --help\" for more information\n";

/// Single jobs, an array of which some have not begun, a job of another with a name that has a bar, a number that had been
/// another's, and a job that was requeued.
const TEXT: &str = "\
1|1795489438|FAILED|3:0|main|None|atoll.flood.a.0123456789abcdef
2|1795489438|FAILED|0:9|main|None|atoll.flood.a.0123456789abcdef
3|1795489438|OUT_OF_MEMORY|0:125|main|None|atoll.flood.a.0123456789abcdef
5|1795489438|RUNNING|0:0|main|None|od|d
4_0|1795489438|CANCELLED by 0|0:0|main|None|atoll.flood.a.0123456789abcdef
4_1|1795489438|RUNNING|0:0|main|None|atoll.flood.a.0123456789abcdef
4_[2-5%2]|1795489438|PENDING|0:0|main|JobArrayTaskLimit|atoll.flood.a.0123456789abcdef
6|1795400000|TIMEOUT|0:0|main|None|atoll.flood.a.0123456789abcdef
7|1795489438|COMPLETED|0:0|main|None|atoll.other.a.fedcba9876543210
8|1795489438|NODE_FAIL|0:0|main|None|atoll.flood.a.0123456789abcdef
8|1795489440|TIMEOUT|0:0|main|None|atoll.flood.a.0123456789abcdef
9|1795489438|CANCELLED|0:0|main|JobArrayTaskLimit|atoll.flood.a.0123456789abcdef
10|1795489438|PREEMPTED|0:0|small|None|atoll.flood.a.0123456789abcdef
11|1795489438|FAILED|0:53|main|None|atoll.flood.a.0123456789abcdef
no line of ours
";

fn answered(code: i32, stdout: &str, stderr: &str) -> io::Result<Output> {
    Ok(Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() })
}

fn sought(job: &str, elements: &[u32]) -> Sought {
    let at = Timestamp::from_micros(INTENDED * 1_000_000);
    Sought { name: NAME.to_owned(), job: Some(job.to_owned()), elements: elements.to_vec(), at }
}

/// A version that writes no JSON.
fn in_text(arguments: &[&str]) -> io::Result<Output> {
    if arguments.contains(&"--json") { answered(1, "", NO_JSON) } else { answered(0, TEXT, "") }
}

fn rows(sought: Sought, ask: impl Fn(&[&str]) -> io::Result<Output>) -> Vec<(u32, Standing, String)> {
    let rows = Accounting::default().rows(&[sought], Instant::now(), ask);
    assert!(rows.iter().all(|row| row.token == "0123456789abcdef"), "{rows:?}");
    rows.into_iter().map(|row| (row.index, row.standing, row.words)).collect()
}

fn over(over: Over, words: &str) -> Vec<(u32, Standing, String)> {
    vec![(0, Standing::Forgotten(Some(over)), words.to_owned())]
}

#[test]
fn how_a_job_ended_is_told_in_the_words_of_the_queue() {
    let of = |job| rows(sought(job, &[0]), in_text);
    assert_eq!(of("1"), over(Over::Ended, "FAILED (exit code 3) in partition main"));
    assert_eq!(of("2"), over(Over::Ended, "FAILED (signal 9) in partition main"));
    assert_eq!(of("3"), over(Over::OutOfMemory, "OUT_OF_MEMORY in partition main"));
    assert_eq!(of("10"), over(Over::Lost, "PREEMPTED in partition small"));
    assert_eq!(of("11"), over(Over::Ended, "FAILED (signal 53) in partition main"));
}

#[test]
fn numbers_that_came_again_are_other_jobs_and_of_a_requeued_one_the_last_counts() {
    let of = |job| rows(sought(job, &[0]), in_text);
    assert_eq!(of("5"), [], "somebody else's");
    assert_eq!(of("6"), [], "of before the intention");
    assert_eq!(of("7"), [], "of another step");
    assert_eq!(of("8"), over(Over::TimedOut, "TIMEOUT in partition main"));
    assert_eq!(of("12"), []);
}

#[test]
fn what_was_cancelled_by_nobody_was_lost_by_its_controller() {
    let lost = over(Over::Lost, "CANCELLED, and by nobody: the controller has lost it");
    assert_eq!(rows(sought("9", &[0]), in_text), lost);
}

#[test]
fn elements_that_have_not_begun_are_on_record_together() {
    let unsettled = |words: &str| format!("unknown to the controller, and for accounting {words} in partition main");
    let expected = [
        (0, Standing::Forgotten(Some(Over::Cancelled)), "CANCELLED by 0 in partition main".to_owned()),
        (1, Standing::Forgotten(None), unsettled("RUNNING")),
        (4, Standing::Forgotten(None), unsettled("PENDING (JobArrayTaskLimit)")),
    ];
    assert_eq!(rows(sought("4", &[0, 1, 4]), in_text), expected);
}

/// A job of 22.05, as far as it is read.
fn job(number: u32, task: &Value, state: &str, by: &Value, exit: &Value) -> Value {
    let array = if task.is_null() { 0 } else { number };
    json!({
        "account": "root",
        "array": {"job_id": array, "limits": {"max": {"running": {"tasks": 0}}}, "task": null, "task_id": task},
        "job_id": if task.is_null() { number } else { number + 100 },
        "name": NAME,
        "state": {"current": state, "reason": "None"},
        "exit_code": exit,
        "derived_exit_code": {"status": "SUCCESS", "return_code": 0},
        "kill_request_user": by,
        "time": {"elapsed": 4, "eligible": 1_795_489_438, "submission": 1_795_489_438},
        "partition": "main",
        "steps": [],
    })
}

fn document(jobs: &[Value]) -> String {
    json!({"meta": {"Slurm": {"release": "22.05.8"}}, "errors": [], "jobs": jobs}).to_string()
}

#[test]
fn json_says_the_same() {
    let killed = json!({"status": "SIGNALED", "return_code": null, "signal": {"signal_id": 9, "name": "Killed"}});
    let memory = json!({"status": "SIGNALED", "return_code": null, "signal": {"signal_id": 125}});
    let (success, failed) = (json!({"status": "SUCCESS", "return_code": 0}), json!({"return_code": 3}));
    let text = document(&[
        job(1, &Value::Null, "FAILED", &Value::Null, &failed),
        job(2, &Value::Null, "FAILED", &Value::Null, &killed),
        job(3, &Value::Null, "OUT_OF_MEMORY", &Value::Null, &memory),
        job(4, &json!(0), "CANCELLED", &json!("root"), &success),
        job(4, &json!(1), "RUNNING", &Value::Null, &success),
    ]);
    let of = |job, elements: &[u32]| {
        rows(sought(job, elements), |arguments| {
            assert!(arguments.contains(&"--json") && arguments.contains(&format!("--jobs={job}").as_str()));
            answered(0, &text, "")
        })
    };
    assert_eq!(of("1", &[0]), over(Over::Ended, "FAILED (exit code 3) in partition main"));
    assert_eq!(of("2", &[0]), over(Over::Ended, "FAILED (signal 9) in partition main"));
    assert_eq!(of("3", &[0]), over(Over::OutOfMemory, "OUT_OF_MEMORY in partition main"));
    let expected = [
        (0, Standing::Forgotten(Some(Over::Cancelled)), "CANCELLED by root in partition main".to_owned()),
        (
            1,
            Standing::Forgotten(None),
            "unknown to the controller, and for accounting RUNNING in partition main".to_owned(),
        ),
    ];
    assert_eq!(of("4", &[0, 1, 2]), expected);
}

/// Lists of states since 23.02, numbers that may not be set since 23.11.
#[test]
fn json_of_later_versions_is_read_too() {
    let unset = json!({"set": false, "infinite": false, "number": 0});
    let set = |number: u32| json!({"set": true, "infinite": false, "number": number});
    let signal = json!({"id": set(9), "name": "KILL"});
    let exit = json!({"status": ["SIGNALED"], "return_code": unset, "signal": signal});
    let mut whole = job(2, &Value::Null, "", &json!(""), &exit);
    whole["state"] = json!({"current": ["TIMEOUT"], "reason": "TimeLimit"});
    whole["array"]["task_id"] = unset;
    let timed_out = document(&[whole.clone()]);
    let words = "TIMEOUT (signal 9) in partition main";
    assert_eq!(rows(sought("2", &[0]), |_| answered(0, &timed_out, "")), over(Over::TimedOut, words));
    (whole["array"]["job_id"], whole["array"]["task_id"]) = (json!(2), set(7));
    let element = document(&[whole]);
    let found = rows(sought("2", &[6, 7]), |_| answered(0, &element, ""));
    assert_eq!(found, [(7, Standing::Forgotten(Some(Over::TimedOut)), words.to_owned())]);
}

#[test]
fn accounting_that_is_not_there_is_found_out_once_and_asked_for_again_now_and_then() {
    let missing = || Err(io::Error::new(io::ErrorKind::NotFound, "sacct cannot be started"));
    for answer in [&(|| answered(1, "", DISABLED)) as &dyn Fn() -> io::Result<Output>, &missing] {
        let (accounting, calls, now) = (Accounting::default(), Cell::new(0), Instant::now());
        let ask = |_: &[&str]| {
            calls.set(calls.get() + 1);
            answer()
        };
        for seconds in [0, 5, 3_000] {
            assert_eq!(accounting.rows(&[sought("1", &[0])], now + Duration::from_secs(seconds), ask), []);
        }
        assert_eq!(calls.get(), 1);
        let found = accounting.rows(&[sought("1", &[0])], now + Duration::from_secs(3_601), in_text);
        assert_eq!(found[0].standing, Standing::Forgotten(Some(Over::Ended)));
    }
}

#[test]
fn accounting_that_is_away_leaves_open_how_jobs_ended_and_is_asked_again_soon() {
    let (accounting, calls, now) = (Accounting::default(), Cell::new(0), Instant::now());
    let ask = |_: &[&str]| {
        calls.set(calls.get() + 1);
        answered(1, "", REFUSED)
    };
    for seconds in [0, 5] {
        let found = accounting.rows(&[sought("1", &[0, 3])], now + Duration::from_secs(seconds), ask);
        let standings: Vec<_> = found.iter().map(|row| (row.index, row.standing)).collect();
        assert_eq!(standings, [(0, Standing::Forgotten(None)), (3, Standing::Forgotten(None))]);
        assert!(found[0].words.ends_with("Problem talking to the database: Connection refused"), "{found:?}");
    }
    assert_eq!(calls.get(), 2, "in both forms, once");
    let found = accounting.rows(&[sought("1", &[0])], now + Duration::from_secs(21), in_text);
    assert_eq!(found[0].standing, Standing::Forgotten(Some(Over::Ended)));
}

#[test]
fn a_version_without_json_is_asked_for_it_once() {
    let (accounting, calls) = (Accounting::default(), Cell::new(0));
    for _ in 0..3 {
        accounting.rows(&[sought("1", &[0])], Instant::now(), |arguments| {
            calls.set(calls.get() + u32::from(arguments.contains(&"--json")));
            in_text(arguments)
        });
    }
    assert_eq!(calls.get(), 1);
}

#[test]
fn json_with_errors_is_no_answer() {
    let errors = json!({"errors": [{"error": "Unable to query JOBS"}], "jobs": []}).to_string();
    let found = rows(sought("1", &[0]), |arguments| match arguments.contains(&"--json") {
        true => answered(0, &errors, ""),
        false => answered(1, "", REFUSED),
    });
    assert_eq!(found[0].1, Standing::Forgotten(None));
}
