//! WfFormat, in which the WfCommons project keeps instances of workflows: since 1.5 what tasks are and how they went stand
//! apart, and files are described once; before, each task has all of it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::trace::{File, Task, Trace, TraceError};

#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    name: String,
    workflow: Workflow,
}

#[derive(Debug, Deserialize)]
struct Workflow {
    specification: Option<Specification>,
    execution: Option<Execution>,
    /// Before 1.5.
    #[serde(default, alias = "jobs")]
    tasks: Vec<WholeTask>,
    #[serde(default)]
    machines: Vec<Machine>,
}

#[derive(Debug, Deserialize)]
struct Specification {
    tasks: Vec<SpecifiedTask>,
    #[serde(default)]
    files: Vec<SpecifiedFile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecifiedTask {
    name: String,
    id: Option<String>,
    #[serde(default)]
    parents: Vec<String>,
    #[serde(default)]
    children: Vec<String>,
    #[serde(default)]
    input_files: Vec<String>,
    #[serde(default)]
    output_files: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecifiedFile {
    id: String,
    #[serde(default)]
    size_in_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Execution {
    #[serde(default)]
    tasks: Vec<ExecutedTask>,
    #[serde(default)]
    machines: Vec<Machine>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecutedTask {
    id: String,
    #[serde(default)]
    runtime_in_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Machine {
    cpu: Option<Processor>,
}

#[derive(Debug, Deserialize)]
struct Processor {
    #[serde(alias = "coreCount", alias = "count")]
    core_count: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WholeTask {
    name: String,
    id: Option<String>,
    #[serde(default, alias = "runtime")]
    runtime_in_seconds: f64,
    #[serde(default)]
    parents: Vec<String>,
    #[serde(default)]
    children: Vec<String>,
    #[serde(default)]
    files: Vec<LinkedFile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LinkedFile {
    #[serde(alias = "fileId")]
    name: String,
    #[serde(default, alias = "size")]
    size_in_bytes: u64,
    link: Link,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Link {
    Input,
    Output,
}

/// A task in either of both.
struct Described {
    name: String,
    id: String,
    seconds: f64,
    parents: Vec<String>,
    children: Vec<String>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

pub(crate) fn read(text: &str) -> Result<Trace, TraceError> {
    let Document { name, workflow } = serde_json::from_str(text).map_err(TraceError::Format)?;
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    let mut machines = workflow.machines;
    let tasks = match workflow.specification {
        Some(specification) => {
            sizes.extend(specification.files.into_iter().map(|file| (file.id, file.size_in_bytes)));
            let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
            if let Some(execution) = workflow.execution {
                machines.extend(execution.machines);
                seconds.extend(execution.tasks.into_iter().map(|task| (task.id, task.runtime_in_seconds)));
            }
            specification.tasks.into_iter().map(|task| task.described(&seconds)).collect()
        }
        None => workflow.tasks.into_iter().map(|task| task.described(&mut sizes)).collect(),
    };
    let processors = machines.iter().filter_map(|machine| machine.cpu.as_ref()?.core_count).max();
    assemble(name, tasks, &sizes, processors)
}

impl SpecifiedTask {
    fn described(self, seconds: &BTreeMap<String, f64>) -> Described {
        let id = self.id.unwrap_or_else(|| self.name.clone());
        Described {
            seconds: seconds.get(&id).copied().unwrap_or(0.0),
            name: self.name,
            id,
            parents: self.parents,
            children: self.children,
            inputs: self.input_files,
            outputs: self.output_files,
        }
    }
}

impl WholeTask {
    fn described(self, sizes: &mut BTreeMap<String, u64>) -> Described {
        let linked = |link| self.files.iter().filter(move |file| file.link == link).map(|file| file.name.clone());
        let (inputs, outputs) = (linked(Link::Input).collect(), linked(Link::Output).collect());
        sizes.extend(self.files.iter().map(|file| (file.name.clone(), file.size_in_bytes)));
        Described {
            id: self.id.unwrap_or_else(|| self.name.clone()),
            name: self.name,
            seconds: self.runtime_in_seconds,
            parents: self.parents,
            children: self.children,
            inputs,
            outputs,
        }
    }
}

fn assemble(
    name: String,
    described: Vec<Described>,
    sizes: &BTreeMap<String, u64>,
    processors: Option<u32>,
) -> Result<Trace, TraceError> {
    let numbers = Numbers::new(&described)?;
    let mut files: Vec<File> = Vec::new();
    let mut file_numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for (file, bytes) in sizes {
        file_numbers.insert(file, files.len());
        files.push(File { bytes: *bytes, maker: None });
    }
    let file = |task: &Described, name: &String| {
        let unknown = || TraceError::Unknown { task: task.name.clone(), what: "file", name: name.clone() };
        file_numbers.get(name.as_str()).copied().ok_or_else(unknown)
    };
    for (number, task) in described.iter().enumerate() {
        for output in &task.outputs {
            // Of those that write the same file the first is its maker; the others are taken to add to it.
            files[file(task, output)?].maker.get_or_insert(number);
        }
    }
    let mut tasks = Vec::new();
    for (number, task) in described.iter().enumerate() {
        let mut reads = Vec::new();
        for input in &task.inputs {
            reads.push(file(task, input)?);
        }
        reads.sort_unstable();
        reads.dedup();
        let mut needs: Vec<usize> = reads.iter().filter_map(|file| files[*file].maker).collect();
        for parent in &task.parents {
            needs.push(numbers.of(task, parent)?);
        }
        needs.retain(|need| *need != number);
        if !task.seconds.is_finite() || task.seconds < 0.0 {
            return Err(TraceError::RunTime(task.name.clone()));
        }
        tasks.push(Task { name: task.id.clone(), seconds: task.seconds, needs, reads });
    }
    for (number, task) in described.iter().enumerate() {
        for child in &task.children {
            tasks[numbers.of(task, child)?].needs.push(number);
        }
    }
    for task in &mut tasks {
        task.needs.sort_unstable();
        task.needs.dedup();
    }
    Ok(Trace { name, tasks, files, processors })
}

/// Tasks by what others call them: their ids, or, before 1.5, their names.
struct Numbers<'a> {
    by_id: BTreeMap<&'a str, usize>,
    by_name: BTreeMap<&'a str, usize>,
}

impl<'a> Numbers<'a> {
    fn new(tasks: &'a [Described]) -> Result<Self, TraceError> {
        let mut numbers = Self { by_id: BTreeMap::new(), by_name: BTreeMap::new() };
        for (number, task) in tasks.iter().enumerate() {
            numbers.by_name.insert(&task.name, number);
            if numbers.by_id.insert(&task.id, number).is_some() {
                return Err(TraceError::Twice(task.id.clone()));
            }
        }
        Ok(numbers)
    }

    fn of(&self, task: &Described, name: &str) -> Result<usize, TraceError> {
        let found = self.by_id.get(name).or_else(|| self.by_name.get(name)).copied();
        let unknown = || TraceError::Unknown { task: task.name.clone(), what: "task", name: name.to_owned() };
        found.ok_or_else(unknown)
    }
}
