//! What was recorded of one traversal of a workflow.

use std::collections::BTreeMap;

use control_plane_core::look_ahead::{Graph, Item, Links, Site, SiteSet, Unit};

/// Tasks of a trace: each becomes a step.
const TASKS_MAX: usize = u16::MAX as usize;

#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub name: String,
    pub tasks: Vec<Task>,
    pub files: Vec<File>,
    /// Processors of the machines that it was recorded on, if it says.
    pub processors: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub name: String,
    pub seconds: f64,
    /// Tasks that end before it begins: the makers of what it reads, and others.
    pub needs: Vec<usize>,
    pub reads: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub bytes: u64,
    /// Nothing for what was there before.
    pub maker: Option<usize>,
}

/// Why a text is no trace that can be carried out.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("it is not a WfFormat document")]
    Format(#[source] serde_json::Error),
    #[error("it has no tasks")]
    Empty,
    #[error("it has {0} tasks; a workflow has {TASKS_MAX} steps at most")]
    TooLarge(usize),
    #[error("task {task} names {what} {name}, which it does not describe")]
    Unknown { task: String, what: &'static str, name: String },
    #[error("task {0} is described twice")]
    Twice(String),
    #[error("task {0} has a run time that is no time")]
    RunTime(String),
    #[error("its tasks wait for one another in a circle, {0} among them")]
    Circle(String),
}

impl Trace {
    /// Reads a WfCommons instance, of any version of the format from 1.2 on.
    ///
    /// # Errors
    /// When it is none, or what it describes cannot be carried out.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let trace = crate::wfformat::read(text)?;
        if trace.tasks.is_empty() {
            return Err(TraceError::Empty);
        }
        if trace.tasks.len() > TASKS_MAX {
            return Err(TraceError::TooLarge(trace.tasks.len()));
        }
        match trace.in_circle() {
            Some(task) => Err(TraceError::Circle(trace.tasks[task].name.clone())),
            None => Ok(trace),
        }
    }

    fn in_circle(&self) -> Option<usize> {
        let mut left: Vec<usize> = self.tasks.iter().map(|task| task.needs.len()).collect();
        let mut successors = vec![Vec::new(); self.tasks.len()];
        for (number, task) in self.tasks.iter().enumerate() {
            task.needs.iter().for_each(|need| successors[*need].push(number));
        }
        let mut free: Vec<usize> = (0..left.len()).filter(|task| left[*task] == 0).collect();
        while let Some(task) = free.pop() {
            for successor in &successors[task] {
                left[*successor] -= 1;
                if left[*successor] == 0 {
                    free.push(*successor);
                }
            }
        }
        left.iter().position(|left| *left > 0)
    }

    /// Bytes of all files that its tasks made.
    pub fn produced_bytes(&self) -> u64 {
        self.files.iter().filter(|file| file.maker.is_some()).map(|file| file.bytes).sum()
    }

    pub fn task_seconds(&self) -> f64 {
        self.tasks.iter().map(|task| task.seconds).sum()
    }

    /// Its tasks and the files that they hand to one another, on sites that are alike.
    pub fn graph(&self, sites: usize, cpu_millis: u32, links: Links) -> Graph {
        let unit = |task: &Task| Unit {
            micros: (task.seconds * 1e6) as u64,
            cpu_millis: 1_000,
            sites: SiteSet::all(sites),
            needs: task.needs.iter().map(|need| *need as u32).collect(),
        };
        let items = self.handed_on().into_iter().map(|(file, readers)| Item {
            maker: self.files[file].maker.map(|maker| maker as u32),
            at: SiteSet::NONE,
            readers: readers.into_iter().map(|reader| reader as u32).collect(),
            bytes: self.files[file].bytes,
        });
        Graph {
            units: self.tasks.iter().map(unit).collect(),
            items: items.collect(),
            sites: vec![Site { cpu_millis, spent_micros: 0, busy_micros: 0 }; sites],
            links,
        }
    }

    /// Files that a task made and others read, with their readers, ascending.
    pub(crate) fn handed_on(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, task) in self.tasks.iter().enumerate() {
            for file in &task.reads {
                if self.files[*file].maker.is_some_and(|maker| maker != number) {
                    readers.entry(*file).or_default().push(number);
                }
            }
        }
        readers
    }
}
