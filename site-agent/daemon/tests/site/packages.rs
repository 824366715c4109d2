//! Packages that actions in Python ask for, from a folder of wheels that the test makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use atoll_model::session::FailureReason;
use atoll_model::value::{Type, Value};

use crate::python::{Acting, failure};
use crate::site::Site;

/// Writes a wheel: a zip file with a module and what says what it is.
const MAKE_WHEEL: &str = r#"
import sys, zipfile
folder, name, version, code = sys.argv[1:]
info = f"{name}-{version}.dist-info/"
files = {
    f"{name}.py": code,
    info + "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
files[info + "RECORD"] = "".join(f"{path},,\n" for path in [*files, info + "RECORD"])
with zipfile.ZipFile(f"{folder}/{name}-{version}-py3-none-any.whl", "w") as wheel:
    for path, content in files.items():
        wheel.writestr(path, content)
"#;

const MODULE: &str =
    "import os, sys\nimport greet\n\ndef handle(name):\n    return {'said': greet.greet(name), 'python': sys.prefix}\n";
const OUTPUTS: [(&str, &str, Type); 2] = [("said", "string", Type::String), ("python", "string", Type::String)];

pub(crate) fn wheel(folder: &Path, name: &str, version: &str, code: &str) {
    let made = Command::new("python3").args(["-c", MAKE_WHEEL]).arg(folder).args([name, version, code]).status();
    assert!(made.unwrap().success());
}

/// A site that installs from a folder of wheels, with an action that needs `greet`.
async fn greeting(requirements: &str) -> (Acting, tempfile::TempDir) {
    let wheels = tempfile::tempdir().unwrap();
    wheel(wheels.path(), "greet", "1.0", "def greet(name):\n    return 'hello ' + name\n");
    wheel(wheels.path(), "greet", "2.0", "def greet(name):\n    return 'HELLO ' + name\n");
    let site = Site::start_with(&format!("[python]\noffline = true\nwheels = {:?}", wheels.path())).await;
    let files = [("requirements.txt", requirements)];
    (Acting::at(site, "{ name: string }", &OUTPUTS, MODULE, &files).await, wheels)
}

fn environments(site: &Site) -> Vec<PathBuf> {
    let entries = fs::read_dir(site.data().join("environments")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

fn name(text: &str) -> [(&'static str, Value); 1] {
    [("name", Value::string(text))]
}

#[tokio::test]
async fn packages_are_installed_once_for_all_who_ask_for_the_same_and_found_again() {
    let (mut acting, _wheels) = greeting("greet==1.0\n").await;
    let executions: Vec<_> = (0..20).map(|number| acting.begin(&name(&number.to_string()))).collect();
    for (number, execution) in executions.into_iter().enumerate() {
        let end = acting.site.control.finished(execution).await;
        assert_eq!(end.outputs.first(), Some(&Value::string(format!("hello {number}"))), "{:?}", end.outcome);
    }
    let made = environments(&acting.site);
    let [environment] = made.as_slice() else { panic!("{made:?}") };
    // What was not finished is used by nobody, and goes with the next start.
    let unfinished = environment.with_file_name(format!("{}-0", "1".repeat(32)));
    fs::create_dir(&unfinished).unwrap();
    acting.site.kill_agent();
    acting.site.start_agent().await;
    assert!(!unfinished.exists());
    let said = acting.outputs(&name("again")).await;
    assert_eq!(said, [Value::string("hello again"), Value::string(environment.join("env").display().to_string())]);
    assert_eq!(environments(&acting.site), made);
}

#[tokio::test]
async fn a_requirement_that_cannot_be_had_is_named_and_leaves_nothing() {
    let (mut acting, wheels) = greeting("greet==1.0\nno-such-thing==3\n").await;
    let executions: Vec<_> = (0..5).map(|number| acting.begin(&name(&number.to_string()))).collect();
    for execution in executions {
        let (reason, message) = failure(acting.site.control.finished(execution).await);
        assert_eq!(reason, FailureReason::NotExecutable);
        assert!(message.starts_with("the packages of the action cannot be installed: "), "{message}");
        assert!(message.contains("no-such-thing==3"), "{message}");
        let log = message.rsplit_once("(all of it is in ").unwrap().1.trim_end_matches(')');
        assert!(fs::read_to_string(log).unwrap().contains("no-such-thing"), "{log}");
    }
    assert_eq!(environments(&acting.site), Vec::<PathBuf>::new());
    // Another start of the agent does not remember it.
    wheel(wheels.path(), "no_such_thing", "3", "");
    acting.site.kill_agent();
    acting.site.start_agent().await;
    assert_eq!(acting.outputs(&name("now")).await[0], Value::string("hello now"));
}
