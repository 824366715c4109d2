//! What executions leave: logs, values, files, and what of them is refused.

use atoll_model::session::{Binding, BindingSource, FailureReason, Outcome, TemplateWork};
use atoll_model::value::{Type, Value};
use atoll_proto::LogStream;

use crate::site::{Site, eventually, output};

#[tokio::test]
async fn a_log_is_followed_while_it_grows_and_ends_with_its_execution() {
    let mut site = Site::start().await;
    let execution = site.run("echo one; until [ -e @/gate ]; do sleep 0.02; done; echo two");
    site.control.started(execution).await;
    let log = site.control.read_log(execution, LogStream::Stdout, true).await;
    site.control.until("the first line", |state| (state.log(log) == b"one\n").then_some(())).await;
    // Somebody reads it, and it is sealed and stored all the same.
    site.open_gate("gate");
    assert_eq!(site.control.whole_log(log).await, b"one\ntwo\n");
    assert_eq!(site.control.finished(execution).await.logs.stdout.unwrap().bytes, 8);
}

#[tokio::test]
async fn a_follower_of_a_silent_execution_hears_nothing_of_the_next_in_its_slot() {
    let mut site = Site::start().await;
    let mut step = site.step(
        "[ \"${ATOLL_EXECUTION##*-}\" = 0 ] || { echo secret; exit; }
until [ -e @/gate ]; do sleep 0.02; done",
    );
    step.resources.cpu_millis = 4_000;
    let executions = site.run_elements(step, 4);
    site.control.started(executions[0]).await;
    let log = site.control.read_log(executions[0], LogStream::Stdout, true).await;
    let slot = site.slots().remove(0);
    eventually("the follower's lock", || {
        let stdout = std::fs::File::open(slot.join("stdout")).unwrap();
        rustix::fs::flock(&stdout, rustix::fs::FlockOperation::NonBlockingLockExclusive).err()
    })
    .await;
    site.open_gate("gate");
    assert_eq!(site.control.whole_log(log).await, b"");
    for execution in &executions {
        let stdout = site.control.finished(*execution).await.logs.stdout;
        assert_eq!(stdout.is_some(), *execution != executions[0]);
    }
    assert_eq!(site.slots(), [slot], "they shared a slot");
}

#[tokio::test]
async fn what_was_written_before_a_shim_died_is_kept() {
    let mut site = Site::start().await;
    let execution = site.run("echo so far; echo $$ > @/main; exec sleep 300");
    site.trace("main").await;
    rustix::process::kill_process(site.shims()[0], rustix::process::Signal::KILL).unwrap();
    let end = site.control.finished(execution).await;
    assert!(matches!(end.outcome, Outcome::Interrupted { .. }));
    assert_eq!(end.logs.stdout.unwrap().bytes, 7);
}

fn reason(outcome: Outcome) -> (FailureReason, String) {
    match outcome {
        Outcome::Failed { reason, message, .. } => (reason, message),
        other => panic!("it has not failed: {other:?}"),
    }
}

#[tokio::test]
async fn g12_floods_of_logs_take_little_of_the_disk_say_what_was_dropped_and_hold_nobody_up() {
    use std::os::unix::fs::MetadataExt as _;
    let mut site = Site::start().await;
    let flood = "head -c 150000000 /dev/zero | tr '\\0' x; head -c 150000000 /dev/zero | tr '\\0' y >&2\n";
    let flooding = site.run(&format!("{flood}echo > @/flooded; until [ -e @/gate ]; do sleep 0.02; done"));
    site.trace("flooded").await;
    let limit = 64 << 20;
    for name in ["stdout", "stderr"] {
        let log = site.slots().remove(0).join(name);
        eventually("the middle is dropped while it runs", || {
            let found = log.metadata().unwrap();
            assert_eq!(found.len(), 150_000_000);
            (found.blocks() * 512 <= limit + (1 << 20)).then_some(())
        })
        .await;
    }
    let other = site.run("exit 0");
    assert_eq!(site.control.finished(other).await.outcome, Outcome::Succeeded);
    site.open_gate("gate");
    let end = site.control.finished(flooding).await;
    assert_eq!(end.outcome, Outcome::Succeeded);
    for log in [end.logs.stdout.unwrap(), end.logs.stderr.unwrap()] {
        let hex = log.id.hex();
        let text = std::fs::read(site.data().join("store/objects").join(&hex[..2]).join(&hex[2..])).unwrap();
        let words = format!("[{} bytes of this log were dropped here]", 150_000_000 - limit);
        assert!(text.windows(words.len()).any(|part| part == words.as_bytes()), "{} bytes", text.len());
    }
}

#[tokio::test]
async fn g5_a_log_without_end_keeps_its_beginning_and_its_end() {
    let mut site = Site::start().await;
    let execution = site.run("echo first; head -c 80000000 /dev/zero | tr '\\0' x; echo; echo last");
    let end = site.control.finished(execution).await;
    assert_eq!(end.outcome, Outcome::Succeeded);
    let stdout = end.logs.stdout.unwrap();
    let limit = 64 << 20;
    assert!(stdout.bytes > limit && stdout.bytes < limit + 100, "{}", stdout.bytes);
    let hex = stdout.id.hex();
    let text = std::fs::read(site.data().join("store/objects").join(&hex[..2]).join(&hex[2..])).unwrap();
    assert!(text.starts_with(b"first\nx") && text.ends_with(b"x\nlast\n"));
    assert!(text.windows(22).any(|part| part == b"of this log were dropp"));
}

#[tokio::test]
async fn g5_a_value_that_is_too_long_is_to_be_a_file() {
    let mut site = Site::start().await;
    let mut step = site.step("head -c 9000000 /dev/zero | tr '\\0' x > \"$ATOLL_OUTPUTS/text\"");
    step.outputs = vec![output("text", Type::String)];
    let execution = site.run_step(step);
    let (why, message) = reason(site.control.finished(execution).await.outcome);
    assert_eq!(why, FailureReason::InvalidOutput);
    assert!(message.contains("text") && message.contains("declare it as a file"), "{message}");
}

#[tokio::test]
async fn g6_a_file_with_an_odd_name_is_read_by_that_name() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    let name = b"a 'b' \"c\"\n$d \xff;*";
    let path = folder.path().join("x y");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join(std::ffi::OsStr::from_bytes(name)), "inside").unwrap();
    let mut site = Site::start_with(&format!("imports = [{:?}]", folder.path())).await;
    let mut import = site.step("");
    import.work = TemplateWork::Import { source: path.to_str().unwrap().to_owned().into(), directory: true };
    import.outputs = vec![output("value", Type::Directory)];
    let import = site.run_step(import);
    let made = site.control.finished(import).await;
    assert_eq!(made.outcome, Outcome::Succeeded, "{made:?}");

    // The name of the directory comes back as it was, and so does what is in it.
    let mut make = site.step("cp \"$tree\"/* \"$ATOLL_OUTPUTS/tree/\" 2>/dev/null || { mkdir \"$ATOLL_OUTPUTS/tree\"; cp \"$tree\"/* \"$ATOLL_OUTPUTS/tree/\"; }; basename \"$tree\" > \"$ATOLL_OUTPUTS/name\"");
    make.outputs = vec![output("tree", Type::Directory), output("name", Type::String)];
    let bound = |name: &str, value: Value| Binding { name: name.to_owned(), source: BindingSource::Value(value) };
    let copied = site.run_bound(make, vec![bound("tree", made.outputs[0].clone())]);
    let copied = site.control.finished(copied).await;
    assert_eq!(copied.outcome, Outcome::Succeeded);
    assert_eq!(copied.outputs[1], Value::string("x y"));
    let (Value::Directory(from), Value::Directory(to)) = (&made.outputs[0], &copied.outputs[0]) else {
        panic!("{copied:?}");
    };
    assert_eq!(from.object, to.object, "bytes and names are the same");
}

#[tokio::test]
async fn g7_a_link_is_no_output_and_one_that_leads_outside_is_refused_by_name() {
    let mut site = Site::start().await;
    for (script, kind, expected) in [
        ("ln -s /etc/passwd \"$ATOLL_OUTPUTS/out\"", Type::File, "a symbolic link"),
        ("ln -s /etc/passwd \"$ATOLL_OUTPUTS/out\"", Type::String, "a symbolic link"),
        ("mkdir \"$ATOLL_OUTPUTS/out\"; ln -s ../../../etc \"$ATOLL_OUTPUTS/out/away\"", Type::Directory, "away"),
    ] {
        let mut step = site.step(script);
        step.outputs = vec![output("out", kind)];
        let execution = site.run_step(step);
        let (why, message) = reason(site.control.finished(execution).await.outcome);
        assert_eq!(why, FailureReason::InvalidOutput);
        assert!(message.contains("out") && message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn g10_what_is_no_file_holds_nobody_up_and_is_refused() {
    let mut site = Site::start().await;
    for (script, kind) in [
        ("mkfifo \"$ATOLL_OUTPUTS/out\"", Type::Integer),
        ("mkfifo \"$ATOLL_OUTPUTS/out\"", Type::File),
        ("mkdir \"$ATOLL_OUTPUTS/out\"; mkfifo \"$ATOLL_OUTPUTS/out/pipe\"", Type::Directory),
    ] {
        let mut step = site.step(script);
        step.outputs = vec![output("out", kind)];
        let execution = site.run_step(step);
        let (why, message) = reason(site.control.finished(execution).await.outcome);
        assert_eq!(why, FailureReason::InvalidOutput, "{message}");
    }
    let next = site.run("true");
    assert_eq!(site.control.finished(next).await.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn an_output_that_is_missing_is_named_unless_it_is_optional() {
    let mut site = Site::start().await;
    let mut step = site.step("true");
    let mut optional = output("maybe", Type::File);
    optional.optional = true;
    step.outputs = vec![optional];
    let execution = site.run_step(step);
    assert_eq!(site.control.finished(execution).await.outputs, [Value::Null]);
    let mut step = site.step("true");
    step.outputs = vec![output("table", Type::File)];
    let execution = site.run_step(step);
    let (why, message) = reason(site.control.finished(execution).await.outcome);
    assert_eq!((why, message.as_str()), (FailureReason::MissingOutput, "the output table is missing"));
}

/// The seals in the store's log that were not dropped.
fn seals(site: &Site) -> Vec<String> {
    let log = std::fs::read_to_string(site.data().join("store/sealed/log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let dropped = |seal: &serde_json::Value| lines.iter().any(|line| line["dropped"]["seal"] == *seal);
    let sealed = lines.iter().map(|line| &line["sealed"]).filter(|sealed| !sealed.is_null());
    sealed.filter(|sealed| !dropped(&sealed["seal"])).map(|sealed| sealed["claim"].to_string()).collect()
}

#[tokio::test]
async fn the_store_forgets_the_seals_of_what_was_reported() {
    let mut site = Site::start().await;
    for last in [false, true] {
        let mut step = site.step("echo $$; echo $$ > \"$ATOLL_OUTPUTS/out\"");
        step.outputs = vec![output("out", Type::File)];
        let executions = site.run_elements(step, 5);
        for execution in executions {
            site.control.finished(execution).await;
        }
        if last {
            // Killed with some of it undone, the next process does it.
            site.kill_agent();
            site.start_agent().await;
        }
        eventually("the end of all seals", || seals(&site).is_empty().then_some(())).await;
    }
}

#[tokio::test]
async fn an_output_that_is_still_sealed_is_handed_to_its_followers() {
    let mut site = Site::start().await;
    let mut make = site.step("head -c 100000000 /dev/zero > \"$ATOLL_OUTPUTS/big\"");
    make.outputs = vec![output("big", Type::File)];
    let producer = site.run_step(make);
    let mut followers = Vec::new();
    for _ in 0..4 {
        let mut step = site.step("wc -c < \"$big\" > \"$ATOLL_OUTPUTS/bytes\"");
        step.outputs = vec![output("bytes", Type::Integer)];
        let source = BindingSource::Output {
            execution: producer,
            attempt: atoll_model::id::Attempt::FIRST,
            output: "big".to_owned(),
        };
        followers.push(site.run_bound(step, vec![Binding { name: "big".to_owned(), source }]));
    }
    let made = site.control.finished(producer).await;
    for follower in followers {
        let end = site.control.finished(follower).await;
        assert_eq!(end.outputs, [Value::Integer(100_000_000)], "{end:?}");
        assert!(end.finished_at >= made.finished_at);
    }
    eventually("the end of all seals", || seals(&site).is_empty().then_some(())).await;
}
