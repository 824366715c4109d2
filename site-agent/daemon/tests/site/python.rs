//! Actions with the runtime `python`: handlers that are called in processes which stay.

use std::collections::BTreeSet;
use std::time::Duration;

use atoll_model::id::ExecutionId;
use atoll_model::session::{
    Binding, BindingSource, FailureReason, FinishedElement, Outcome, StepTemplate, TemplateWork,
};
use atoll_model::value::{ObjectKind, ObjectRef, Type, Value, from_json};
use rustix::process::Pid;

use crate::site::{Site, gone, is_alive, output};

/// A site with an action whose `action.yaml` says these inputs and outputs, and whose `main.py` is this.
pub(super) struct Acting {
    pub(super) site: Site,
    bundle: ObjectRef,
    outputs: Vec<(String, Type)>,
}

impl Acting {
    async fn start(inputs: &str, outputs: &[(&str, &str, Type)], module: &str) -> Self {
        Self::at(Site::start().await, inputs, outputs, module, &[]).await
    }

    /// … with more files in its folder.
    pub(super) async fn at(
        mut site: Site,
        inputs: &str,
        outputs: &[(&str, &str, Type)],
        module: &str,
        files: &[(&str, &str)],
    ) -> Self {
        let folder = site.scratch().join("action");
        std::fs::create_dir(&folder).unwrap();
        let declared: String = outputs.iter().map(|(name, declared, _)| format!("  {name}: {declared}\n")).collect();
        let declared = if outputs.is_empty() { String::new() } else { format!("outputs:\n{declared}") };
        let requirements = if files.iter().any(|(name, _)| *name == "requirements.txt") {
            "requirements: requirements.txt\n"
        } else {
            ""
        };
        let manifest = format!(
            "name: act\nversion: '1'\nruntime: python\nhandler: main.py:handle\n{requirements}inputs: {inputs}\n{declared}"
        );
        let module = module.replace('@', site.scratch().to_str().unwrap());
        for (name, content) in [("action.yaml", manifest.as_str()), ("main.py", &module)].iter().chain(files) {
            std::fs::write(folder.join(name), content).unwrap();
        }
        // What a site has of a bundle is a tree like every other.
        let mut step = site.step("cp -r @/action \"$ATOLL_OUTPUTS/bundle\"");
        step.outputs = vec![output("bundle", Type::Directory)];
        let stored = site.run_step(step);
        let outcome = site.control.finished(stored).await;
        let [Value::Directory(bundle)] = outcome.outputs.as_slice() else { panic!("no bundle: {outcome:?}") };
        let bundle = ObjectRef { id: bundle.object, kind: ObjectKind::Tree, bytes: bundle.bytes };
        let outputs = outputs.iter().map(|(name, _, r#type)| ((*name).to_owned(), r#type.clone())).collect();
        Self { site, bundle, outputs }
    }

    pub(super) fn step(&mut self) -> StepTemplate {
        let work = TemplateWork::Python { bundle: self.bundle, signatures: Vec::new() };
        let outputs = self.outputs.iter().map(|(name, r#type)| output(name, r#type.clone())).collect();
        StepTemplate { work, outputs, ..self.site.step("") }
    }

    /// Starts one execution with these inputs.
    pub(super) fn begin(&mut self, inputs: &[(&str, Value)]) -> ExecutionId {
        let step = self.step();
        self.begin_step(step, inputs)
    }

    pub(super) fn begin_step(&mut self, step: StepTemplate, inputs: &[(&str, Value)]) -> ExecutionId {
        let binding = |(name, value): &(&str, Value)| Binding {
            name: (*name).to_owned(),
            source: BindingSource::Value(value.clone()),
        };
        self.site.run_bound(step, inputs.iter().map(binding).collect())
    }

    pub(super) async fn call(&mut self, inputs: &[(&str, Value)]) -> FinishedElement {
        let execution = self.begin(inputs);
        self.site.control.finished(execution).await
    }

    /// The outputs of one execution, which succeeds.
    pub(super) async fn outputs(&mut self, inputs: &[(&str, Value)]) -> Vec<Value> {
        let end = self.call(inputs).await;
        assert_eq!(end.outcome, Outcome::Succeeded);
        end.outputs
    }

    /// A log that was stored.
    fn log(&self, object: Option<ObjectRef>) -> String {
        let hex = object.unwrap().id.hex();
        std::fs::read_to_string(self.site.data().join("store/objects").join(&hex[..2]).join(&hex[2..])).unwrap()
    }
}

pub(super) fn failure(end: FinishedElement) -> (FailureReason, String) {
    match end.outcome {
        Outcome::Failed { reason, message, .. } => (reason, message),
        other => panic!("it has not failed: {other:?}"),
    }
}

fn text(value: &str) -> Value {
    Value::string(value)
}

/// Tells which process it is called in, and does what it is told.
const OBEDIENT: &str = r#"
import os, signal, subprocess, sys, time

def handle(order, argument=None):
    if order == "raise":
        raise ValueError("three\nlines\nof it")
    elif order == "exit":
        sys.exit(3)
    elif order == "die":
        os._exit(3)
    elif order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "print":
        print(argument)
        os.system("echo from below >&2")
    elif order == "wait":
        open("@/waits", "w").write("%d\n" % os.getpid())
        while not os.path.exists("@/gate"):
            time.sleep(0.01)
    elif order == "resist":
        open("@/waits", "w").write("%d\n" % os.getpid())
        while True:
            try:
                time.sleep(300)
            except BaseException:
                pass
    elif order == "take":
        return {"pid": len(bytearray(400_000_000))}
    elif order == "return":
        return argument
    elif order == "leave":
        child = subprocess.Popen(["sleep", "300"], start_new_session=True)
        open("@/child", "w").write("%d\n" % child.pid)
    elif order == "babble":
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"what is this?\r\n\r\n")
            except OSError:
                pass
        time.sleep(300)
    return {"pid": os.getpid()}
"#;

async fn obedient() -> Acting {
    let inputs = "{ order: string, argument: { type: string, default: '' } }";
    Acting::start(inputs, &[("pid", "integer", Type::Integer)], OBEDIENT).await
}

fn order(order: &str) -> Vec<(&'static str, Value)> {
    vec![("order", text(order))]
}

async fn pid(acting: &mut Acting) -> Value {
    acting.outputs(&order("go")).await.remove(0)
}

#[tokio::test]
async fn a_handler_gets_values_as_they_are_and_returns_them() {
    let module = "def handle(t, i, n, b, l, o):\n    assert isinstance(n, float) and i == -(1 << 63), (n, i)\n    \
                  return dict(t=t + '\\n', i=i, n=2, b=not b, l=l[::-1], o=o, more=1)\n";
    let inputs = "{ t: string, i: integer, n: number, b: boolean, l: list, o: object }";
    let outputs = [
        ("t", "string", Type::String),
        ("i", "integer", Type::Integer),
        ("n", "number", Type::Number),
        ("b", "boolean", Type::Boolean),
        ("l", "list of string", Type::List(Some(Box::new(Type::String)))),
        ("o", "object", Type::Object),
    ];
    let mut acting = Acting::start(inputs, &outputs, module).await;
    let list = |texts: [&str; 2]| Value::list(texts.map(text).to_vec());
    let object = from_json(&serde_json::json!({ "a b": ["c", { "d": null }] }), &Type::Object).unwrap();
    let returned = acting
        .outputs(&[
            ("t", text("größer \"als\"\n'nichts' $x \u{1f30d}")),
            ("i", Value::Integer(i64::MIN)),
            ("n", Value::Number(3.0)),
            ("b", Value::Boolean(true)),
            ("l", list(["x", "y"])),
            ("o", object.clone()),
        ])
        .await;
    let expected = [
        text("größer \"als\"\n'nichts' $x \u{1f30d}\n"),
        Value::Integer(i64::MIN),
        Value::Number(2.0),
        Value::Boolean(false),
        list(["y", "x"]),
        object,
    ];
    assert_eq!(returned, expected);
}

#[tokio::test]
async fn two_hundred_executions_share_a_few_processes() {
    let mut acting = obedient().await;
    let mut step = acting.step();
    step.bindings = vec![Binding { name: "order".to_owned(), source: BindingSource::Value(text("go")) }];
    let mut pids = BTreeSet::new();
    for execution in acting.site.run_elements(step, 200) {
        let end = acting.site.control.finished(execution).await;
        assert_eq!(end.outcome, Outcome::Succeeded);
        let [Value::Integer(pid)] = end.outputs.as_slice() else { panic!("{end:?}") };
        pids.insert(*pid);
    }
    assert!((1..=8).contains(&pids.len()), "{pids:?}");
    // One that is warm is taken before one that would have to be started.
    let Value::Integer(next) = pid(&mut acting).await else { panic!("no number") };
    assert!(pids.contains(&next));
}

#[tokio::test]
async fn files_and_directories_come_and_go_as_paths() {
    let module = r#"
import os, shutil, tempfile
from pathlib import Path

def handle(inputs):
    made = tempfile.mkdtemp()
    Path(made, "x").write_text(Path(inputs["text"]).read_text().upper())
    with open(os.path.join(os.environ["ATOLL_OUTPUTS"], "told"), "w") as told:
        told.write("told")
    open("here", "w").write("here")
    return {"same": inputs["text"], "folder": made, "here": Path("here"), "count": len(os.listdir(made))}
"#;
    let outputs = [
        ("same", "file", Type::File),
        ("folder", "directory", Type::Directory),
        ("told", "file", Type::File),
        ("here", "file", Type::File),
        ("count", "integer", Type::Integer),
    ];
    let mut acting = Acting::start("{ text: file }", &outputs, module).await;
    let mut step = acting.site.step("echo a text > \"$ATOLL_OUTPUTS/text\"");
    step.outputs = vec![output("text", Type::File)];
    let stored = acting.site.run_step(step);
    let given = acting.site.control.finished(stored).await.outputs.remove(0);
    for _ in 0..2 {
        let returned = acting.outputs(&[("text", given.clone())]).await;
        let objects: Vec<_> = returned.iter().map(object).collect();
        assert_eq!(objects[0], object(&given), "what it was given is given back as it is");
        assert_eq!(returned[4], Value::Integer(1));
        let Value::Directory(folder) = &returned[1] else { panic!("{returned:?}") };
        assert_eq!((folder.files, folder.bytes > 0), (1, true));
        let lengths: Vec<_> =
            returned[2..4].iter().map(|file| if let Value::File(file) = file { file.bytes } else { 0 }).collect();
        assert_eq!(lengths, [4, 4]);
    }
}

fn object(value: &Value) -> Option<atoll_model::id::ObjectId> {
    match value {
        Value::File(file) => Some(file.object),
        Value::Directory(tree) => Some(tree.object),
        _ => None,
    }
}

#[tokio::test]
async fn an_exception_fails_its_execution_with_its_last_line_and_the_process_stays() {
    let mut acting = obedient().await;
    let before = pid(&mut acting).await;
    let end = acting.call(&order("raise")).await;
    let log = acting.log(end.logs.stderr);
    assert_eq!(failure(end), (FailureReason::ActionFailed, "of it".to_owned()));
    assert!(log.contains("main.py\", line 6, in handle") && log.contains("ValueError: three"), "{log}");
    assert!(!log.contains("atoll_worker"), "only what is the author's: {log}");
    let (reason, message) = failure(acting.call(&order("exit")).await);
    assert_eq!((reason, message.as_str()), (FailureReason::ActionFailed, "SystemExit: 3"));
    assert_eq!(pid(&mut acting).await, before);
}

#[tokio::test]
async fn a_process_that_dies_fails_the_execution_that_it_was_called_for_and_the_next_gets_another() {
    let mut acting = obedient().await;
    let before = pid(&mut acting).await;
    for (word, how) in [("die", "exited with code 3"), ("kill", "was killed by signal 9")] {
        let (reason, message) = failure(acting.call(&order(word)).await);
        assert_eq!(reason, FailureReason::ActionFailed);
        assert_eq!(message, format!("the process of the action {how} before it answered"));
        assert_ne!(pid(&mut acting).await, before);
    }
    let (reason, message) = failure(acting.call(&order("babble")).await);
    assert_eq!(reason, FailureReason::ActionFailed);
    assert!(message.contains("breaks the action protocol: it says \"what is this?"), "{message}");
    pid(&mut acting).await;
}

#[tokio::test]
async fn what_a_process_writes_is_in_the_log_of_the_execution_that_it_serves() {
    let mut acting = obedient().await;
    for round in 0..4 {
        let said = format!("round {round}");
        let end = acting.call(&[("order", text("print")), ("argument", text(&said))]).await;
        assert_eq!((end.outcome, end.outputs.len()), (Outcome::Succeeded, 1));
        assert_eq!(acting.log(end.logs.stdout), format!("{said}\n"));
        assert_eq!(acting.log(end.logs.stderr), "from below\n");
        // A silent one has no log, and neither takes that of the one before it.
        let silent = acting.call(&order("go")).await;
        assert_eq!((silent.logs.stdout, silent.logs.stderr), (None, None));
    }
}

#[tokio::test]
async fn a_cancel_ends_the_execution_and_spares_the_process_unless_it_resists() {
    let mut acting = obedient().await;
    for (word, spared) in [("wait", true), ("resist", false)] {
        let execution = acting.begin(&order(word));
        let called = acting.site.traced_pid("waits").await;
        acting.site.cancel(execution);
        assert_eq!(acting.site.control.finished(execution).await.outcome, Outcome::Cancelled);
        let next = pid(&mut acting).await;
        assert_eq!(next == Value::Integer(called.as_raw_nonzero().get().into()), spared, "{word}");
        assert_eq!(is_alive(called), spared, "{word}");
        std::fs::remove_file(acting.site.scratch().join("waits")).unwrap();
    }
}

#[tokio::test]
async fn time_and_memory_are_limited_for_each_execution() {
    let mut acting = obedient().await;
    let mut step = acting.step();
    step.resources.time = Some(Duration::from_millis(700));
    let execution = acting.begin_step(step, &order("wait"));
    let called = acting.site.traced_pid("waits").await;
    assert_eq!(failure(acting.site.control.finished(execution).await).0, FailureReason::TimedOut);
    assert!(!is_alive(called));
    let mut step = acting.step();
    step.resources.memory_bytes = Some(96 << 20);
    let execution = acting.begin_step(step, &order("take"));
    assert_eq!(failure(acting.site.control.finished(execution).await).0, FailureReason::OutOfMemory);
    pid(&mut acting).await;
}

#[tokio::test]
async fn an_execution_goes_on_while_the_agent_is_down_and_its_outcome_counts() {
    let mut acting = obedient().await;
    let execution = acting.begin(&order("wait"));
    let called = acting.site.traced_pid("waits").await;
    acting.site.control.started(execution).await;
    acting.site.kill_agent();
    acting.site.start_agent().await;
    assert!(is_alive(called));
    acting.site.kill_agent();
    acting.site.open_gate("gate");
    acting.site.start_agent().await;
    let end = acting.site.control.finished(execution).await;
    assert_eq!(
        (end.outcome, end.outputs),
        (Outcome::Succeeded, vec![Value::Integer(called.as_raw_nonzero().get().into())])
    );
}

#[tokio::test]
async fn an_output_that_is_not_what_was_declared_is_named() {
    let module =
        "def handle(which):\n    return [{}, {'y': True}, {'y': 1 << 63}, {'y': 'x'}, [1], {'y': None}][which]\n";
    let mut acting = Acting::start("{ which: integer }", &[("y", "integer", Type::Integer)], module).await;
    let expected = [
        (FailureReason::MissingOutput, "the output y is missing"),
        (FailureReason::InvalidOutput, "the output y is bool True, and an integer is declared"),
        (FailureReason::InvalidOutput, "the output y is int 9223372036854775808, and an integer is declared"),
        (FailureReason::InvalidOutput, "the output y is str 'x', and an integer is declared"),
        (FailureReason::InvalidOutput, "the handler returned list [1], and a dict of outputs is asked for"),
        (FailureReason::MissingOutput, "the output y is missing"),
    ];
    for (which, (reason, message)) in expected.into_iter().enumerate() {
        let which = Value::Integer(i64::try_from(which).unwrap());
        assert_eq!(failure(acting.call(&[("which", which)]).await), (reason, message.to_owned()));
    }
}

#[tokio::test]
async fn a_path_that_is_none_and_text_that_is_no_text_are_refused_with_the_name_of_the_output() {
    let module = "def handle(which):\n    return [{'f': '/no/such', 't': ''}, {'f': 3, 't': ''}, {'f': __file__, 't': '\\udc80'}][which]\n";
    let outputs = [("f", "file", Type::File), ("t", "string", Type::String)];
    let mut acting = Acting::start("{ which: integer }", &outputs, module).await;
    for (which, part) in
        ["the output f: /no/such is not the path of a file", "the output f is int 3", "the outputs are no JSON"]
            .into_iter()
            .enumerate()
    {
        let which = Value::Integer(i64::try_from(which).unwrap());
        let (reason, message) = failure(acting.call(&[("which", which)]).await);
        assert!(reason == FailureReason::InvalidOutput && message.contains(part), "{reason:?}: {message}");
    }
}

#[tokio::test]
async fn what_an_execution_leaves_running_is_ended_with_it() {
    let mut acting = obedient().await;
    let end = acting.call(&order("leave")).await;
    assert_eq!((end.outcome, end.outputs.len()), (Outcome::Succeeded, 1));
    let child: Pid = acting.site.traced_pid("child").await;
    assert!(!is_alive(child), "nothing is left when the end is told");
    pid(&mut acting).await;
}

#[tokio::test]
async fn one_execution_sees_nothing_of_what_another_left_in_its_surroundings() {
    let module = r#"
import os, sys, tempfile

def handle():
    found = [*os.listdir("."), *os.listdir(tempfile.gettempdir()), *os.listdir(os.environ["ATOLL_OUTPUTS"])]
    found += [name for name in ("LEFT",) if name in os.environ] + [path for path in sys.path if path == "left"]
    for place in (".", tempfile.gettempdir(), os.environ["ATOLL_OUTPUTS"]):
        os.mkdir(os.path.join(place, "left"))
    os.chdir("left")
    os.environ["LEFT"] = "x"
    sys.path.insert(0, "left")
    return {"found": found, "pid": os.getpid(), "execution": os.environ["ATOLL_EXECUTION"]}
"#;
    let outputs =
        [("found", "list", Type::List(None)), ("pid", "integer", Type::Integer), ("execution", "string", Type::String)];
    let mut acting = Acting::start("{}", &outputs, module).await;
    let mut pids = BTreeSet::new();
    for _ in 0..3 {
        let execution = acting.begin(&[]);
        let end = acting.site.control.finished(execution).await;
        let [found, Value::Integer(pid), said] = end.outputs.as_slice() else { panic!("{end:?}") };
        assert_eq!((found, said), (&Value::list(Vec::new()), &text(&execution.to_string())));
        pids.insert(*pid);
    }
    assert_eq!(pids.len(), 1);
}

#[tokio::test]
async fn each_execution_has_a_tmp_of_its_own() {
    // Where the site itself is below `/tmp` it is the machine's.
    let folder = tempfile::Builder::new().prefix("tmp-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = folder.path().join("data");
    let site = Site::start_in(folder, data, "").await;
    let module = "import os\n\ndef handle():\n    found = os.path.exists('/tmp/atoll-fixed-name')\n    \
                  open('/tmp/atoll-fixed-name', 'x').write('x')\n    return {'found': found, 'f': '/tmp/atoll-fixed-name'}\n";
    let outputs = [("found", "boolean", Type::Boolean), ("f", "file", Type::File)];
    let mut acting = Acting::at(site, "{}", &outputs, module, &[]).await;
    if acting.site.agent_log().contains("isolated less") {
        return;
    }
    for _ in 0..3 {
        let returned = acting.outputs(&[]).await;
        assert!(
            matches!(returned.as_slice(), [Value::Boolean(false), Value::File(file)] if file.bytes == 1),
            "{returned:?}"
        );
    }
    assert!(!std::path::Path::new("/tmp/atoll-fixed-name").exists());
}

#[tokio::test]
async fn a_handler_that_cannot_be_loaded_says_why_and_leaves_no_process() {
    let module =
        "import os\nopen('@/pid', 'w').write('%d\\n' % os.getpid())\nimport no_such_module\n\ndef handle(): pass\n";
    let mut acting = Acting::start("{}", &[], module).await;
    let end = acting.call(&[]).await;
    assert!(acting.log(end.logs.stderr).contains("main.py\", line 3"));
    let (reason, message) = failure(end);
    assert_eq!(reason, FailureReason::ActionFailed);
    let expected = "the handler main.py:handle cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'";
    assert_eq!(message, expected);
    let loaded = acting.site.traced_pid("pid").await;
    gone("what could not be loaded", loaded).await;
}

#[tokio::test]
async fn other_work_takes_the_place_of_a_process_that_waits() {
    let mut acting = obedient().await;
    let Value::Integer(before) = pid(&mut acting).await else { panic!("no number") };
    let shims = acting.site.shims().len();
    // More than stay idle beside one another.
    let mut step = acting.site.step("until [ -e @/gate ]; do sleep 0.02; done");
    step.resources.cpu_millis = 10;
    let executions = acting.site.run_elements(step, 4);
    for execution in &executions {
        acting.site.control.started(*execution).await;
    }
    acting.site.open_gate("gate");
    for execution in executions {
        assert_eq!(acting.site.control.finished(execution).await.outcome, Outcome::Succeeded);
    }
    assert!(acting.site.shims().len() > shims);
    assert_eq!(pid(&mut acting).await, Value::Integer(before), "it was left alone, since there was room");
}

#[tokio::test]
async fn a_process_that_waits_is_kept_for_as_long_as_the_site_says() {
    let site = Site::start_with("[python]\nidle_seconds = 0\n").await;
    let outputs = [("pid", "integer", Type::Integer)];
    let module = "import os\n\ndef handle():\n    return {\"pid\": os.getpid()}\n";
    let mut acting = Acting::at(site, "{}", &outputs, module, &[]).await;
    let [Value::Integer(pid)] = acting.outputs(&[]).await[..] else { panic!("no number") };
    gone("what waits", Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()).await;
}

#[tokio::test]
async fn g11_a_worker_that_holds_an_output_open_changes_it_no_more_once_it_was_taken_in() {
    let module = "
import mmap, os
held = []
def handle(way, number):
    for thing in held:
        thing.seek(0)
        thing.write(b'changed!')
        thing.flush()
    path = os.environ['ATOLL_OUTPUTS'] + '/text'
    file = open(path, 'w+b')
    file.write(b'original')
    file.flush()
    if way == 'open':
        held.append(file)
    elif way == 'mapped':
        held.append(mmap.mmap(file.fileno(), 8))
        file.close()
    else:
        file.close()
    return {'pid': os.getpid()}
";
    let outputs = [("text", "file", Type::File), ("pid", "integer", Type::Integer)];
    let site = Site::start().await;
    let mut acting = Acting::at(site, "{ way: string, number: integer }", &outputs, module, &[]).await;
    for (way, stays) in [("closed", true), ("open", false), ("mapped", false)] {
        let mut pids = BTreeSet::new();
        for number in 0..2 {
            let ended = acting.outputs(&[("way", text(way)), ("number", Value::Integer(number))]).await;
            let [Value::File(file), Value::Integer(pid)] = ended.as_slice() else { panic!("{ended:?}") };
            pids.insert(*pid);
            let hex = file.object.hex();
            let object = acting.site.data().join("store/objects").join(&hex[..2]).join(&hex[2..]);
            assert_eq!(std::fs::read(object).unwrap(), b"original", "{way}");
        }
        assert_eq!(pids.len() == 1, stays, "{way}: a worker that lets go is called again");
    }
}
