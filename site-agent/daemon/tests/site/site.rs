//! A site: the data directory of an agent, its process, and a scratch folder where executions leave traces outside of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use atoll_model::elements::ElementSet;
use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
use atoll_model::resources::Resources;
use atoll_model::session::{
    Binding, Dispatch, DispatchElements, Origin, Requester, SiteCommand, StepTemplate, TemplateOutput, TemplateWork,
};
use atoll_model::value::Type;
use atoll_model::workflow::{OnDisconnect, StartMode};
use rustix::process::{Pid, Signal, kill_process};
use site_agent_daemon::Config;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::authority;
use crate::control::{Control, PATIENCE};

const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(5);

pub(crate) struct Site {
    pub(crate) control: Control,
    folder: TempDir,
    data: PathBuf,
    /// Where executions work, if not in the data directory.
    work: Option<PathBuf>,
    agent: Option<Child>,
    run_id: RunId,
    steps: u16,
    /// Who asks for what runs from now on.
    pub(crate) asked_by: Option<Requester>,
}

impl Site {
    /// A site whose agent runs.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// … with more lines in its configuration.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("atoll-site-").tempdir().unwrap();
        let data = folder.path().join("data");
        Self::start_in(folder, data, settings).await
    }

    /// A site whose executions work in another directory.
    pub(crate) async fn start_apart(work: PathBuf) -> Self {
        let mut site = Self::start_with(&format!("work_dir = {work:?}")).await;
        site.work = Some(work);
        site
    }

    pub(crate) async fn start_in(folder: TempDir, data: PathBuf, settings: &str) -> Self {
        fs::create_dir_all(&data).unwrap();
        fs::create_dir(folder.path().join("scratch")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tls = authority::join(&data, &url);
        let config = format!("data_dir = {data:?}\ncpus = 4\n{settings}\n");
        fs::write(folder.path().join("agent.toml"), config).unwrap();
        // Strays are told by their execution: no other test on this machine may run one of the same name.
        let run_id = RunId::from_bits(uuid::Uuid::now_v7().as_u128());
        let control = Control::start(listener, tls);
        let mut site = Self { control, folder, data, work: None, agent: None, run_id, steps: 0, asked_by: None };
        site.start_agent().await;
        site
    }

    /// Lets every account of the machine come to the site and write to its scratch folder, and this person ask for what runs.
    pub(crate) fn open_to_all(&mut self, project: &str, person: &str) {
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(self.folder.path(), 0o711);
        set(&self.scratch(), 0o1777);
        self.asked_by = Some(Requester { project: project.to_owned(), person: person.to_owned() });
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch")
    }

    /// Writes the agent's configuration anew, for its next start.
    pub(crate) fn configure(&mut self, work: Option<PathBuf>) {
        let settings = work.as_ref().map(|work| format!("work_dir = {work:?}")).unwrap_or_default();
        let config = format!("data_dir = {:?}\ncpus = 4\n{settings}\n", self.data);
        fs::write(self.folder.path().join("agent.toml"), config).unwrap();
        self.work = work;
    }

    pub(crate) fn agent_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_site-agent-under-test"));
        command.arg("run").arg(self.folder.path().join("agent.toml")).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts the agent, and waits until it is in session.
    pub(crate) async fn start_agent(&mut self) {
        assert!(self.agent.is_none());
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("agent.log")).unwrap();
        let sessions = self.control.look(|state| state.inventories.len());
        let agent = self.agent_command().stderr(log).spawn().unwrap();
        fs::write(self.scratch().join("agent.pid"), agent.id().to_string()).unwrap();
        self.agent = Some(agent);
        let agreed = |state: &crate::control::State| (state.inventories.len() > sessions).then_some(());
        self.control.until("a session", agreed).await;
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap()
    }

    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// For an agent that an execution has killed.
    pub(crate) fn agent_was_killed(&mut self) {
        let status = self.agent.take().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{}", self.agent_log());
    }

    pub(crate) async fn stop_agent(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().unwrap();
        kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
        tokio::task::spawn_blocking(move || agent.wait().unwrap()).await.unwrap()
    }

    /// A step that runs a script, in which `@` stands for the scratch folder.
    pub(crate) fn step(&mut self, script: &str) -> StepTemplate {
        self.steps += 1;
        let script = script.replace('@', self.scratch().to_str().unwrap());
        StepTemplate {
            run: self.run_id,
            step: StepIndex(self.steps - 1),
            step_name: format!("step{}", self.steps - 1),
            workflow: "test".to_owned(),
            work: TemplateWork::Script(script),
            resources: Resources { cpu_millis: 500, ..Resources::default() },
            outputs: Vec::new(),
            bindings: Vec::new(),
            environment: Vec::new(),
            start: StartMode::AtLeastOnce,
            on_disconnect: OnDisconnect::Finish,
            priority: 0,
            origin: Origin { traceparent: None, requester: self.asked_by.clone() },
        }
    }

    pub(crate) fn run_step(&self, template: StepTemplate) -> ExecutionId {
        self.run_elements(template, 1)[0]
    }

    pub(crate) fn run_elements(&self, template: StepTemplate, count: u32) -> Vec<ExecutionId> {
        let elements = DispatchElements::Plain(ElementSet::from_range(0..count));
        self.dispatch(template, elements);
        (0..count).map(|element| ExecutionId { run: self.run_id, step: StepIndex(self.steps - 1), element }).collect()
    }

    /// One execution of a step with these inputs, on the outputs of others if need be.
    pub(crate) fn run_bound(&self, template: StepTemplate, bindings: Vec<Binding>) -> ExecutionId {
        let step = template.step;
        self.dispatch(template, DispatchElements::Bound(vec![(0, bindings)]));
        ExecutionId { run: self.run_id, step, element: 0 }
    }

    fn dispatch(&self, template: StepTemplate, elements: DispatchElements) {
        let dispatch = Dispatch {
            run: self.run_id,
            step: template.step,
            attempt: Attempt::FIRST,
            elements,
            fragment: true,
            start_by: None,
        };
        self.control.order(vec![SiteCommand::Prepare(Box::new(template)), SiteCommand::Dispatch(dispatch)]);
    }

    /// Runs a script as a step of its own.
    pub(crate) fn run(&mut self, script: &str) -> ExecutionId {
        let step = self.step(script);
        self.run_step(step)
    }

    pub(crate) fn cancel(&self, execution: ExecutionId) {
        let ExecutionId { run, step, element } = execution;
        let elements = ElementSet::from_range(element..element + 1);
        self.control.order(vec![SiteCommand::Cancel { run, step, elements, reason: "asked for".to_owned() }]);
    }

    /// What an execution has written to a file of the scratch folder, once there is anything.
    pub(crate) async fn trace(&self, name: &str) -> String {
        let path = self.scratch().join(name);
        eventually(name, || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))).await
    }

    /// The number of a process that an execution has written to a file.
    pub(crate) async fn traced_pid(&self, name: &str) -> Pid {
        Pid::from_raw(self.trace(name).await.trim().parse().unwrap()).unwrap()
    }

    /// Lets an execution go on that waits for this file.
    pub(crate) fn open_gate(&self, name: &str) {
        fs::write(self.scratch().join(name), "").unwrap();
    }

    /// The shims of this site that live.
    pub(crate) fn shims(&self) -> Vec<Pid> {
        let slots = format!("\"slot\":\"{}/slots/", self.data.display());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
        pids.filter(|pid| command_line(*pid).contains(&slots)).collect()
    }

    /// The folders of the slots.
    pub(crate) fn slots(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.data.join("slots")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}", self.control.look(crate::control::State::summary));
        }
        if self.agent.is_some() {
            self.kill_agent();
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.agent_log());
        }
        let config = Config { work_dir: self.work.clone(), ..Config::for_data_dir(self.data.clone()) };
        site_agent_daemon::stop_work(&config).unwrap();
    }
}

pub(crate) fn output(name: &str, r#type: Type) -> TemplateOutput {
    TemplateOutput { name: name.to_owned(), r#type, optional: false, listed: false }
}

fn command_line(pid: Pid) -> String {
    let text = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&text).replace('\0', " ")
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until a look at the machine finds something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not happen");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(crate) async fn gone(what: &str, pid: Pid) {
    eventually(&format!("the end of {what}"), || (!is_alive(pid)).then_some(())).await;
}
