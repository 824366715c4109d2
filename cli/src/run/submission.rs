//! What is sent in: the text of the workflow, its inputs, the actions that it names.

mod registered;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use atoll_model::action::{ActionKind, ActionReference, MANIFEST_NAME, MANIFEST_NAMES, Manifest};
use atoll_model::diagnostic::Diagnostic;
use atoll_model::suggestion::did_you_mean;
use atoll_model::value::{Type, from_text};
use atoll_model::workflow::{FetchedFrom, Given, HeldAt, Outside, SiteFacts, Surroundings, TakenIn, Work, Workflow};
use serde_json::{Map, Value, json};
use storage_sync_engine::action_folder::read_action;

pub(crate) use self::registered::Registered;
use super::progress;
use super::upload::{self, Purpose};
use crate::client::{Client, Finished};
use crate::failure::{Failure, SourceText};

/// A workflow file, read and checked, with what was given for its inputs.
#[derive(Debug)]
pub(crate) struct Submission {
    file_name: String,
    source: String,
    workflow: Workflow,
    inputs: BTreeMap<String, GivenInput>,
    /// Folders of the actions, by what stands after `action:`.
    actions: BTreeMap<String, PathBuf>,
    project: Option<String>,
    priority: Option<i8>,
    labels: BTreeMap<String, String>,
    no_cache: bool,
}

#[derive(Debug)]
enum GivenInput {
    Value(Value),
    TakenIn(TakenIn),
    Path(PathBuf),
}

impl Submission {
    /// Reads and checks a file by itself, with nothing given for its inputs.
    ///
    /// # Errors
    /// When it cannot be read, or is not a valid workflow.
    pub(crate) async fn read(file: &Path, registered: Registered<'_>) -> anyhow::Result<Self> {
        Self::read_with(file, BTreeMap::new(), registered).await
    }

    /// Reads and checks a file together with what was given for its inputs.
    ///
    /// # Errors
    /// When anything about them is wrong.
    pub(crate) async fn prepare(file: &Path, inputs: &[String], registered: Registered<'_>) -> anyhow::Result<Self> {
        let mut given = BTreeMap::new();
        for input in inputs {
            let (name, value) = input
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("-i {input}: an input is NAME=VALUE, or NAME=@PATH")))?;
            given.insert(name.to_owned(), value.to_owned());
        }
        let submission = Self::read_with(file, given, registered).await?;
        submission.check_required()?;
        Ok(submission)
    }

    async fn read_with(
        file: &Path,
        given: BTreeMap<String, String>,
        registered: Registered<'_>,
    ) -> anyhow::Result<Self> {
        let text = match registered.deployed(file).await? {
            Some(source) => WorkflowText { source, ..WorkflowText::named(file)? },
            None => WorkflowText::open(file)?,
        };
        let mut pushed = BTreeMap::new();
        let (workflow, actions) = loop {
            match text.parse(&given, &pushed)? {
                Parsed::Whole(workflow, actions) => break (*workflow, actions),
                Parsed::Lacks(references) => {
                    for reference in references {
                        let action = registered.find(&reference).await?;
                        pushed.insert(reference, action);
                    }
                }
            }
        };
        let WorkflowText { file_name, folder, source, .. } = text;
        let mut inputs = given
            .iter()
            .map(|(name, text)| Ok((name.clone(), given_input(&workflow, name, text)?)))
            .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
        hold_where_the_file_is(&workflow, &folder, &mut inputs);
        Ok(Self {
            file_name,
            source,
            workflow,
            inputs,
            actions,
            project: None,
            priority: None,
            labels: BTreeMap::new(),
            no_cache: false,
        })
    }

    /// The same, but all is made anew if `no_cache` is set.
    pub(crate) fn without_cache(self, no_cache: bool) -> Self {
        Self { no_cache, ..self }
    }

    /// The same with what the run is to be found by, each label as `KEY=VALUE`.
    ///
    /// # Errors
    /// When a label is written otherwise.
    pub(crate) fn tagged(
        mut self,
        project: Option<String>,
        priority: Option<i8>,
        labels: &[String],
    ) -> anyhow::Result<Self> {
        (self.project, self.priority) = (project, priority);
        for label in labels {
            let (key, value) = label
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("--label {label}: a label is KEY=VALUE")))?;
            self.labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(self)
    }

    fn check_required(&self) -> anyhow::Result<()> {
        let missing = self.workflow.inputs.iter().find(|(name, input)| {
            input.default.is_none() && input.imported_by.is_none() && !self.inputs.contains_key(*name)
        });
        match missing {
            Some((name, _)) => {
                Err(Failure::Usage(format!("the input {name} has no default: give it with -i {name}=…")).into())
            }
            None => Ok(()),
        }
    }

    /// Checks the workflow against the sites of a server.
    ///
    /// # Errors
    /// When no site can do what it asks for.
    pub(crate) async fn check_against(&self, client: &Client) -> anyhow::Result<()> {
        let document = client.get("/sites").await?;
        let sites = document["sites"].as_array().context("the answer has no sites")?;
        let facts = sites.iter().map(site_facts).collect::<anyhow::Result<Vec<_>>>()?;
        let diagnostics = atoll_model::workflow::check_sites(&self.workflow, &self.file_name, &facts);
        if diagnostics.is_empty() {
            return Ok(());
        }
        Err(invalid(diagnostics, &self.file_name, &self.source).into())
    }

    /// Sends it in; the server's answer.
    ///
    /// # Errors
    /// When a file cannot be sent, or the server refuses.
    pub(crate) async fn send(&self, client: &Client) -> anyhow::Result<Value> {
        let body = self.body(client).await?;
        let submitted = client.submit(&body).await.map_err(|error| self.with_source(error))?;
        for warning in submitted["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            eprintln!("warning: {warning}");
        }
        Ok(submitted)
    }

    /// Deploys it.
    ///
    /// # Errors
    /// When an action of it is a folder here, or the server refuses.
    pub(crate) async fn deploy(&self, client: &Client, project: &str) -> anyhow::Result<Value> {
        if let Some(folder) = self.actions.keys().next() {
            let reason = format!(
                "{} names the action {folder}, a folder: what is deployed runs for long, and on its own. Push it with \
                 `atoll action push {folder}`, and name it as NAME@VERSION",
                self.file_name
            );
            return Err(Failure::Usage(reason).into());
        }
        let body = json!({ "source": self.source, "file_name": self.file_name });
        let path = format!("/projects/{}/workflows", crate::client::segment(project));
        client.post(&path, &body).await.map_err(|error| self.with_source(error))
    }

    /// What placement would do with it.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn plan(&self, client: &Client) -> anyhow::Result<Value> {
        let body = self.body(client).await?;
        client.post("/plan", &body).await.map_err(|error| self.with_source(error))
    }

    /// Sends it in, shows how it goes, waits for its end.
    ///
    /// # Errors
    /// When it is refused, or the server stays away.
    pub(crate) async fn send_and_follow(&self, client: &Client) -> anyhow::Result<Finished> {
        let submitted = self.send(client).await?;
        let run = submitted["run"].as_str().context("the answer names no run")?;
        let mut progress = progress::Progress::new(run);
        let finished = client.follow(run, |event| progress.show(event)).await?;
        progress.end();
        Ok(finished)
    }

    async fn body(&self, client: &Client) -> anyhow::Result<Value> {
        let rules = self.workflow.placement.iter().map(|rule| &rule.said);
        let encrypted = rules.filter(|rule| rule.encrypt.is_some()).any(|rule| rule.matches.may_be_an_input());
        let purpose = Purpose { project: self.project.as_deref(), encrypted };
        let mut inputs = Map::new();
        for (name, given) in &self.inputs {
            let value = match given {
                GivenInput::Value(value) => value.clone(),
                GivenInput::TakenIn(from) => serde_json::to_value(from)?,
                GivenInput::Path(path) => upload::send(client, path, &purpose).await?,
            };
            inputs.insert(name.clone(), value);
        }
        let mut actions = Map::new();
        for (reference, folder) in &self.actions {
            let invalid = |diagnostics| Failure::Invalid { diagnostics, source_text: None };
            let (_, manifest) = read_action(folder, folder).map_err(invalid)?;
            let sent = upload::send_bundle(client, folder, &purpose).await?;
            actions.insert(
                reference.clone(),
                json!({ "manifest": manifest, "object": sent["object"], "bytes": sent["bytes"] }),
            );
        }
        let mut body =
            json!({ "source": self.source, "file_name": self.file_name, "inputs": inputs, "actions": actions });
        if let Some(priority) = self.priority {
            body["priority"] = json!(priority);
        }
        if self.no_cache {
            body["no_cache"] = json!(true);
        }
        if let Some(project) = &self.project {
            body["project"] = json!(project);
        }
        if !self.labels.is_empty() {
            body["labels"] = json!(self.labels);
        }
        Ok(body)
    }

    /// The server saw the same text: its diagnostics are shown in it.
    fn with_source(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<Failure>() {
            Ok(Failure::Invalid { diagnostics, .. }) => invalid(diagnostics, &self.file_name, &self.source).into(),
            Ok(other) => other.into(),
            Err(error) => error,
        }
    }
}

/// The text of a workflow file, and where it stands.
struct WorkflowText {
    file_name: String,
    folder: PathBuf,
    /// The folder as the person named it.
    shown: PathBuf,
    source: String,
}

/// What a workflow file says, or the actions that have to be looked up to tell.
enum Parsed {
    Whole(Box<Workflow>, BTreeMap<String, PathBuf>),
    Lacks(BTreeSet<String>),
}

impl WorkflowText {
    fn open(file: &Path) -> anyhow::Result<Self> {
        let source = std::fs::read_to_string(file)
            .map_err(|error| Failure::Usage(format!("cannot read the workflow {}: {error}", file.display())))?;
        Ok(Self { source, ..Self::named(file)? })
    }

    /// Of this name, and without a text.
    fn named(file: &Path) -> anyhow::Result<Self> {
        let shown = file.parent().unwrap_or(Path::new("")).to_owned();
        let folder = std::path::absolute(if shown.as_os_str().is_empty() { Path::new(".") } else { &shown })?;
        Ok(Self { file_name: file.display().to_string(), folder, shown, source: String::new() })
    }

    fn parse(&self, given: &BTreeMap<String, String>, pushed: &Pushed) -> anyhow::Result<Parsed> {
        let (folder, shown) = (self.folder.clone(), self.shown.clone());
        let (actions, broken, missing) = (RefCell::default(), RefCell::default(), RefCell::default());
        let surroundings = Folder { folder, shown, given, pushed, missing, actions, broken };
        let parsed = atoll_model::workflow::parse(&self.file_name, &self.source, &surroundings);
        let missing = surroundings.missing.take();
        if !missing.is_empty() {
            return Ok(Parsed::Lacks(missing));
        }
        let workflow = parsed.map_err(|mut diagnostics| {
            diagnostics.extend(surroundings.broken.take());
            invalid(diagnostics, &self.file_name, &self.source)
        })?;
        Ok(Parsed::Whole(Box::new(workflow), surroundings.actions.into_inner()))
    }
}

fn invalid(diagnostics: Vec<Diagnostic>, file: &str, text: &str) -> Failure {
    let source = SourceText { file: file.to_owned(), text: text.to_owned() };
    Failure::Invalid { diagnostics, source_text: Some(source) }
}

/// Actions that were looked up, or why there are none, by what stands after `action:`.
type Pushed = BTreeMap<String, Result<Manifest, String>>;

/// The folder of a workflow file: actions are folders in it, or were pushed.
struct Folder<'a> {
    folder: PathBuf,
    /// The same as the person named it.
    shown: PathBuf,
    given: &'a BTreeMap<String, String>,
    pushed: &'a Pushed,
    /// Pushed actions that were asked for and are not among these.
    missing: RefCell<BTreeSet<String>>,
    actions: RefCell<BTreeMap<String, PathBuf>>,
    /// What is wrong with manifests.
    broken: RefCell<Vec<Diagnostic>>,
}

impl Folder<'_> {
    fn find(&self, reference: &str) -> Result<Manifest, String> {
        if ActionReference::is_meant_by(reference) {
            return self.pushed.get(reference).cloned().unwrap_or_else(|| {
                self.missing.borrow_mut().insert(reference.to_owned());
                Err(format!("{reference} was not looked up yet"))
            });
        }
        let [folder, shown] = [&self.folder, &self.shown].map(|at| PathBuf::from_iter(at.join(reference).components()));
        if !MANIFEST_NAMES.iter().any(|name| folder.join(name).exists()) {
            let missing = shown.join(MANIFEST_NAME);
            return Err(format!("there is no action `{reference}`: there is no {}", missing.display()));
        }
        let (manifest, _) = read_action(&folder, &shown).map_err(|diagnostics| {
            let (count, file) = (diagnostics.len(), diagnostics.first().map(|first| first.file.clone()));
            let mut broken = self.broken.borrow_mut();
            for diagnostic in diagnostics {
                if !broken.contains(&diagnostic) {
                    broken.push(diagnostic);
                }
            }
            let errors = if count == 1 { "an error".to_owned() } else { format!("{count} errors") };
            format!("the action `{reference}` has {errors}: {}", file.unwrap_or_default())
        })?;
        self.actions.borrow_mut().insert(reference.to_owned(), folder);
        Ok(manifest)
    }
}

impl Surroundings for Folder<'_> {
    fn action(&self, reference: &str) -> Result<Work, String> {
        Ok(self.find(reference)?.of_kind(ActionKind::Processor)?.into_work(None, 0))
    }

    fn source(&self, reference: &str) -> Result<Work, String> {
        Ok(self.find(reference)?.of_kind(ActionKind::Source)?.into_work(None, 0))
    }

    fn service(&self, reference: &str) -> Result<Work, String> {
        Ok(self.find(reference)?.of_kind(ActionKind::Service)?.into_work(None, 0))
    }

    fn given(&self, input: &str) -> Given {
        let given = |text: &String| text.strip_prefix('@').and_then(taken_in).map_or(Given::Value, Given::TakenIn);
        self.given.get(input).map_or(Given::Nothing, given)
    }
}

/// What was given for one input: a value; `@PATH`, which is sent in; `@SITE:/PATH`, which the site holds; or `@URL` and
/// `@SITE:URL`, which a site fetches.
fn given_input(workflow: &Workflow, name: &str, text: &str) -> anyhow::Result<GivenInput> {
    let usage = |message: String| anyhow::Error::from(Failure::Usage(message));
    let Some(input) = workflow.inputs.get(name) else {
        let known = workflow.inputs.keys().map(String::as_str);
        let help = did_you_mean(name, known).unwrap_or_else(|| "it has none".to_owned());
        return Err(usage(format!("the workflow has no input {name}: {help}")));
    };
    let wants_path = matches!(input.r#type, Type::File | Type::Directory);
    match (wants_path, text.strip_prefix('@')) {
        (true, Some(path)) => {
            given_path(path, &input.r#type).map_err(|error| usage(format!("-i {name}={text}: {error}")))
        }
        (true, None) => Err(usage(format!("-i {name}={text}: {} is given as {name}=@PATH", input.r#type))),
        (false, Some(_)) if input.r#type != Type::String => {
            Err(usage(format!("-i {name}={text}: the input is {}, so it is not given as a path", input.r#type)))
        }
        (false, Some(_) | None) => {
            let value =
                from_text(text, &input.r#type).map_err(|mismatch| usage(format!("-i {name}={text}: {mismatch}")))?;
            Ok(GivenInput::Value(value.to_json()))
        }
    }
}

fn given_path(path: &str, r#type: &Type) -> Result<GivenInput, String> {
    if let Some(from) = taken_in(path) {
        return Ok(GivenInput::TakenIn(from));
    }
    let path = PathBuf::from(path);
    let metadata = std::fs::metadata(&path).map_err(|error| error.to_string())?;
    match (metadata.is_dir(), *r#type == Type::Directory) {
        (true, false) => Err("the input is a file, and this is a directory".to_owned()),
        (false, true) => Err("the input is a directory, and this is not one".to_owned()),
        (true, true) | (false, false) => Ok(GivenInput::Path(path)),
    }
}

/// `URL`, `SITE:URL` or `SITE:/PATH`, unless there is a file of that very name here.
pub(crate) fn taken_in(text: &str) -> Option<TakenIn> {
    if Path::new(text).exists() {
        return None;
    }
    if let Ok(url) = text.parse() {
        return Some(TakenIn::Fetched(FetchedFrom { url, site: None }));
    }
    let (site, from) = text.split_once(':')?;
    let site = site.parse().ok()?;
    if let Ok(url) = from.parse() {
        return Some(TakenIn::Fetched(FetchedFrom { url, site: Some(site) }));
    }
    from.starts_with('/').then(|| TakenIn::Held(HeldAt { site, path: from.to_owned() }))
}

/// A default that a site holds at a relative path is meant relative to the workflow file.
fn hold_where_the_file_is(workflow: &Workflow, folder: &Path, inputs: &mut BTreeMap<String, GivenInput>) {
    for (name, input) in &workflow.inputs {
        let Some(step) = input.imported_by.map(|index| workflow.step(index)) else { continue };
        let Work::Import { source: Outside::Path(path), .. } = &step.work else { continue };
        // One that was given is absolute.
        if !Path::new(path).is_absolute()
            && let Some(site) = step.site.names.first()
        {
            let held = HeldAt { site: site.clone(), path: folder.join(path).display().to_string() };
            inputs.insert(name.clone(), GivenInput::TakenIn(TakenIn::Held(held)));
        }
    }
}

/// Numbers by name, so many times as much.
fn amounts(document: &Value, times: f64) -> BTreeMap<String, u32> {
    let entries = document.as_object().into_iter().flatten();
    entries.map(|(name, amount)| (name.clone(), (amount.as_f64().unwrap_or(0.0) * times).round() as u32)).collect()
}

fn site_facts(document: &Value) -> anyhow::Result<SiteFacts> {
    let name = document["site"].as_str().context("a site without a name")?.parse()?;
    let labels = document["labels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    let capacity = &document["capacity"];
    let memory_bytes = capacity["memory_bytes"].as_u64().unwrap_or(0);
    let capacity = (memory_bytes > 0).then(|| atoll_model::resources::Capacity {
        cpu_millis: (capacity["cpus"].as_f64().unwrap_or(0.0) * 1_000.0).round() as u32,
        memory_bytes,
        disk_free_bytes: capacity["disk_free_bytes"].as_u64().unwrap_or(0),
        gpus: amounts(&capacity["gpus"], 1.0),
        named: amounts(&capacity["named"], 1_000.0),
    });
    // The server, which knows them, looks at what only some of them give.
    Ok(SiteFacts { name, labels, capacity, runtimes: Vec::new() })
}

/// Says at once if a program that the workflow requires is missing on this machine, where all its sites will be. What names
/// actions that were pushed is looked at when there is a server to ask.
///
/// # Errors
/// When one is missing, or the file is invalid.
pub(crate) fn check_requirements_here(file: &Path) -> anyhow::Result<()> {
    let Parsed::Whole(workflow, _) = WorkflowText::open(file)?.parse(&BTreeMap::new(), &BTreeMap::new())? else {
        return Ok(());
    };
    for program in &workflow.requires {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
        if !found {
            return Err(Failure::Failed(format!(
                "{} needs {program}, and there is none in PATH: install it first",
                file.display()
            ))
            .into());
        }
    }
    Ok(())
}
