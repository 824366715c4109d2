//! What a list says of jobs, row by row.

use regex::Regex;

use crate::executor::batch::system::{Over, Row, Standing};

/// How an answer is read.
#[derive(Debug)]
pub(super) struct Reading {
    /// What is taken out of the answer before it is read.
    pub join: Option<Regex>,
    pub cut: Cut,
    pub states: Vec<State>,
}

/// How an answer becomes rows, and these fields.
#[derive(Debug)]
pub(super) enum Cut {
    Columns { separator: String, columns: Vec<Field> },
    Records { begin: Option<Regex>, fields: Vec<(Field, Regex)> },
}

/// What is known of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Field {
    /// The system's number for it.
    Job,
    /// The name that it was submitted with.
    Name,
    State,
    /// Its exit code, or a number that stands for the reason.
    Code,
    /// For people. What stands for none is left out.
    Reason,
}

/// What a state means. The first that fits counts; what none fits is not over.
#[derive(Debug)]
pub(super) struct State {
    pub state: Regex,
    pub code: Option<Regex>,
    pub reason: Option<Regex>,
    pub means: Standing,
}

/// The fields of one row.
#[derive(Debug, Default)]
struct Found {
    job: String,
    name: String,
    state: String,
    code: String,
    reason: String,
}

/// What systems write where there is nothing.
const NOTHING: [&str; 4] = ["-", "undefined", "None", "none"];

impl Reading {
    /// Rows that are of no job of Atoll are left out.
    pub(super) fn read(&self, text: &str) -> Vec<Row> {
        let text = self.join.as_ref().map_or_else(|| text.into(), |join| join.replace_all(text, ""));
        let found: Vec<Found> = match &self.cut {
            Cut::Columns { separator, columns } => text
                .lines()
                .map(|line| {
                    let mut found = Found::default();
                    let words = line.trim_matches(' ').splitn(columns.len(), separator.as_str());
                    columns.iter().zip(words).for_each(|(field, word)| found.take(*field, word));
                    found
                })
                .collect(),
            Cut::Records { begin, fields } => records(&text, begin.as_ref())
                .into_iter()
                .map(|record| {
                    let mut found = Found::default();
                    for (field, regex) in fields {
                        if let Some(word) = regex.captures(record).and_then(|groups| groups.get(1)) {
                            found.take(*field, word.as_str());
                        }
                    }
                    found
                })
                .collect(),
        };
        found.into_iter().filter_map(|found| self.row(found)).collect()
    }

    fn row(&self, found: Found) -> Option<Row> {
        let token = found.name.strip_prefix("atoll.").and_then(|name| name.rsplit_once('.'))?.1.to_owned();
        if found.job.is_empty() || found.state.is_empty() {
            return None;
        }
        let standing =
            self.states.iter().find(|state| state.fits(&found)).map_or(Standing::Running, |state| state.means);
        let code = if found.code.is_empty() { String::new() } else { format!(", code {}", found.code) };
        let why = if found.reason.is_empty() { String::new() } else { format!(" ({})", found.reason) };
        Some(Row { job: found.job, index: 0, standing, words: format!("{}{code}{why}", found.state), token })
    }
}

/// The parts of a text that begin like this; its lines if nothing is said.
fn records<'a>(text: &'a str, begin: Option<&Regex>) -> Vec<&'a str> {
    let Some(begin) = begin else { return text.lines().collect() };
    let starts: Vec<usize> = begin.find_iter(text).map(|found| found.start()).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| &text[*start..end]).collect()
}

impl Found {
    fn take(&mut self, field: Field, word: &str) {
        let word = word.trim();
        if NOTHING.contains(&word) {
            return;
        }
        match field {
            Field::Job => self.job = word.to_owned(),
            Field::Name => self.name = word.to_owned(),
            Field::State => self.state = word.to_owned(),
            Field::Code => self.code = word.to_owned(),
            Field::Reason if self.reason.is_empty() => self.reason = word.to_owned(),
            Field::Reason if word.is_empty() => {}
            Field::Reason => self.reason = format!("{}; {word}", self.reason),
        }
    }
}

impl State {
    fn fits(&self, found: &Found) -> bool {
        let fits = |wanted: &Option<Regex>, word: &str| wanted.as_ref().is_none_or(|wanted| wanted.is_match(word));
        self.state.is_match(&found.state) && fits(&self.code, &found.code) && fits(&self.reason, &found.reason)
    }
}

/// What a template calls it where a job stands.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Means {
    Waiting,
    Stuck,
    Running,
    TimedOut,
    OutOfMemory,
    Cancelled,
    Lost,
    Ended,
}

impl From<Means> for Standing {
    fn from(means: Means) -> Self {
        match means {
            Means::Waiting => Self::Waiting,
            Means::Stuck => Self::Stuck,
            Means::Running => Self::Running,
            Means::TimedOut => Self::Over(Over::TimedOut),
            Means::OutOfMemory => Self::Over(Over::OutOfMemory),
            Means::Cancelled => Self::Over(Over::Cancelled),
            Means::Lost => Self::Over(Over::Lost),
            Means::Ended => Self::Over(Over::Ended),
        }
    }
}
