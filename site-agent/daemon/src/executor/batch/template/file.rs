//! The file of a template: what its keys are, and what is wrong with one.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use super::fill::Pattern;
use super::rows::{Cut, Field, Means, Reading, State};

/// What stands for names in a job's text, and in the command that submits it.
pub(super) const OF_JOB: [&str; 21] = [
    "name",
    "token",
    "said",
    "cpus",
    "memory_mib",
    "seconds",
    "minutes",
    "time",
    "queue",
    "account",
    "gpus",
    "gpu_kind",
    "option",
    "resource",
    "amount",
    "run",
    "program",
    "arguments",
    "user",
    "text",
    "file",
];
/// Those of which there are several.
pub(super) const SEVERAL: [&str; 4] = ["option", "resource", "amount", "job"];
const OF_LIST: [&str; 2] = ["job", "user"];
const OF_ONE: [&str; 3] = ["job", "name", "user"];

/// Why a template is none.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("{path} cannot be read", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin} is not a template of a batch system")]
    Parse { origin: String, source: toml::de::Error },
    #[error("{origin}: {key}: {message}")]
    Key { origin: String, key: String, message: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub title: String,
    #[serde(default)]
    pub environment: Vec<String>,
    pub number: String,
    #[serde(default)]
    pub variables: Vec<String>,
    pub job: JobPart,
    pub submit: SubmitPart,
    pub find: Option<FindPart>,
    pub list: ListPart,
    pub cancel: CancelPart,
    pub doctor: DoctorPart,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobPart {
    pub text: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitPart {
    pub command: Vec<String>,
    pub job: String,
    #[serde(default)]
    pub later: Vec<String>,
    #[serde(default)]
    pub unclear: Vec<String>,
    pub refused: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FindPart {
    pub command: Vec<String>,
    pub job: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListPart {
    pub command: Vec<String>,
    #[serde(default)]
    pub unknown: Vec<String>,
    pub join: Option<String>,
    pub separator: Option<String>,
    pub columns: Option<Vec<Field>>,
    pub record: Option<String>,
    pub fields: Option<Fields>,
    pub states: Vec<StatePart>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fields {
    pub job: String,
    pub name: String,
    pub state: String,
    pub code: Option<String>,
    pub reason: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatePart {
    pub state: String,
    pub code: Option<String>,
    pub reason: Option<String>,
    pub means: Means,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelPart {
    pub command: Vec<String>,
    #[serde(default)]
    pub gone: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DoctorPart {
    pub programs: Vec<String>,
    pub command: Vec<String>,
}

/// What a template says, ready for use.
#[derive(Debug)]
pub(super) struct Rules {
    pub job: Vec<Pattern>,
    pub submit: Vec<Pattern>,
    pub number: Regex,
    pub later: Vec<Regex>,
    pub unclear: Vec<Regex>,
    pub refused: Vec<Regex>,
    pub find: Option<(Vec<Pattern>, Regex)>,
    pub list: Vec<Pattern>,
    pub unknown: Vec<Regex>,
    pub reading: Reading,
    pub cancel: Vec<Pattern>,
    pub gone: Vec<Regex>,
}

/// Names the key of what is wrong.
type Wrong = (String, String);

impl File {
    pub(super) fn parse(origin: &str, text: &str) -> Result<(Self, Rules), TemplateError> {
        let file: Self =
            toml::from_str(text).map_err(|source| TemplateError::Parse { origin: origin.to_owned(), source })?;
        let rules =
            file.rules().map_err(|(key, message)| TemplateError::Key { origin: origin.to_owned(), key, message })?;
        Ok((file, rules))
    }

    fn rules(&self) -> Result<Rules, Wrong> {
        let blank =
            [("title", &self.title), ("number", &self.number)].into_iter().find(|(_, text)| text.trim().is_empty());
        if let Some((key, _)) = blank {
            return Err((key.to_owned(), "it is empty".to_owned()));
        }
        if self.doctor.programs.is_empty() {
            return Err(("doctor.programs".to_owned(), "name the programs of the system".to_owned()));
        }
        let find = self.find.as_ref().map(|find| -> Result<_, Wrong> {
            let words = words("find.command", &find.command, &OF_ONE)?;
            needs("find.command", &words, "name")?;
            Ok((words, number("find.job", &find.job)?))
        });
        let cancel = words("cancel.command", &self.cancel.command, &OF_ONE)?;
        needs("cancel.command", &cancel, "job")?;
        words("doctor.command", &self.doctor.command, &[])?;
        Ok(Rules {
            job: self.text()?,
            submit: words("submit.command", &self.submit.command, &OF_JOB)?,
            number: number("submit.job", &self.submit.job)?,
            later: regexes("submit.later", &self.submit.later)?,
            unclear: regexes("submit.unclear", &self.submit.unclear)?,
            refused: regexes("submit.refused", &self.submit.refused)?,
            find: find.transpose()?,
            list: words("list.command", &self.list.command, &OF_LIST)?,
            unknown: regexes("list.unknown", &self.list.unknown)?,
            reading: self.list.reading()?,
            cancel,
            gone: regexes("cancel.gone", &self.cancel.gone)?,
        })
    }

    /// The lines of a job, one of which runs what is to be run.
    fn text(&self) -> Result<Vec<Pattern>, Wrong> {
        // It is filled before the command that it may be a word of.
        let known: Vec<&'static str> = OF_JOB.into_iter().filter(|name| !["text", "file"].contains(name)).collect();
        let text = self.job.text.strip_suffix('\n').unwrap_or(&self.job.text);
        let lines = text.split('\n').map(|line| pattern("job.text", line, &known)).collect::<Result<Vec<_>, _>>()?;
        let has = |name: &str| lines.iter().any(|line| line.names().contains(name));
        if !(has("run") || has("program") && has("arguments")) {
            let message = "nothing in it runs anything: a line with {run}, or with {program} and {arguments}";
            return Err(("job.text".to_owned(), message.to_owned()));
        }
        Ok(lines)
    }
}

impl ListPart {
    fn reading(&self) -> Result<Reading, Wrong> {
        let wrong = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        let cut = match (&self.separator, &self.columns, &self.fields) {
            (Some(separator), Some(columns), None) => {
                let wanted = [Field::Job, Field::Name, Field::State];
                if separator.is_empty() || !wanted.iter().all(|field| columns.contains(field)) {
                    return wrong(
                        "list.columns",
                        "they are job, name and state at least, with a separator between them",
                    );
                }
                Cut::Columns { separator: separator.clone(), columns: columns.clone() }
            }
            (None, None, Some(fields)) => {
                let begin = self.record.as_ref().map(|begin| regex("list.record", begin)).transpose()?;
                Cut::Records { begin, fields: fields.regexes()? }
            }
            _ => return wrong("list", "it says how rows are read: either separator and columns, or fields"),
        };
        if self.states.is_empty() {
            return wrong("list.states", "it says of no state what it means");
        }
        let states = self.states.iter().enumerate().map(|(at, part)| part.state(&format!("list.states[{at}]")));
        let join = self.join.as_ref().map(|join| regex("list.join", join)).transpose()?;
        Ok(Reading { join, cut, states: states.collect::<Result<_, _>>()? })
    }
}

impl Fields {
    fn regexes(&self) -> Result<Vec<(Field, Regex)>, Wrong> {
        let said = [
            (Field::Job, "list.fields.job", Some(&self.job)),
            (Field::Name, "list.fields.name", Some(&self.name)),
            (Field::State, "list.fields.state", Some(&self.state)),
            (Field::Code, "list.fields.code", self.code.as_ref()),
            (Field::Reason, "list.fields.reason", self.reason.as_ref()),
        ];
        let said = said.into_iter().filter_map(|(field, key, text)| Some((field, key, text?)));
        said.map(|(field, key, text)| Ok((field, number(key, text)?))).collect()
    }
}

impl StatePart {
    /// Each has to fit the whole word.
    fn state(&self, key: &str) -> Result<State, Wrong> {
        let whole = |text: &String| regex(key, &format!("^(?:{text})$"));
        Ok(State {
            state: whole(&self.state)?,
            code: self.code.as_ref().map(whole).transpose()?,
            reason: self.reason.as_ref().map(whole).transpose()?,
            means: self.means.into(),
        })
    }
}

fn words(key: &str, command: &[String], known: &[&'static str]) -> Result<Vec<Pattern>, Wrong> {
    if command.first().is_none_or(|program| program.is_empty() || program.contains('{')) {
        return Err((key.to_owned(), "its first word is the program".to_owned()));
    }
    command.iter().map(|word| pattern(key, word, known)).collect()
}

fn pattern(key: &str, text: &str, known: &[&'static str]) -> Result<Pattern, Wrong> {
    Pattern::new(text, known).map_err(|name| {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        (key.to_owned(), format!("there is no value {{{name}}} here; there are: {known}"))
    })
}

fn needs(key: &str, words: &[Pattern], name: &str) -> Result<(), Wrong> {
    if words.iter().any(|word| word.names().contains(name)) {
        return Ok(());
    }
    Err((key.to_owned(), format!("none of its words has {{{name}}}")))
}

fn regexes(key: &str, texts: &[String]) -> Result<Vec<Regex>, Wrong> {
    texts.iter().map(|text| regex(key, text)).collect()
}

/// One whose first group is what is looked for.
fn number(key: &str, text: &str) -> Result<Regex, Wrong> {
    let found = regex(key, text)?;
    if found.captures_len() < 2 {
        return Err((key.to_owned(), format!("{text:?} has no group: what is looked for stands in parentheses")));
    }
    Ok(found)
}

fn regex(key: &str, text: &str) -> Result<Regex, Wrong> {
    Regex::new(text).map_err(|error| (key.to_owned(), error.to_string()))
}

pub(super) fn read(path: &Path) -> Result<String, TemplateError> {
    std::fs::read_to_string(path).map_err(|source| TemplateError::Read { path: path.to_owned(), source })
}
