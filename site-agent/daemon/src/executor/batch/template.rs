//! Batch systems that a template describes: their commands, what their answers mean, what a job says to them.

mod file;
mod fill;
mod rows;

use std::io;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use regex::Regex;

pub use self::file::TemplateError;
use self::file::{File, Rules, SEVERAL};
use self::fill::{Pattern, Values};
use super::calls::{Programs, complaint};
use super::system::{
    BatchSystem, Becomes, Limits, NewJob, NotSubmitted, Request, Row, SHIM_BYTES, Sought, TIME_MARGIN, quoted, words,
};
use crate::config::BatchSettings;
use crate::shim::job::evidence::OfJob;

/// How a batch system is spoken to.
#[derive(Debug)]
pub struct Template {
    origin: String,
    source: String,
    file: File,
    rules: Rules,
}

/// Templates of the same words are the same.
impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        (&self.origin, &self.source) == (&other.origin, &other.source)
    }
}

impl Template {
    /// # Errors
    /// When it cannot be read, or says something that means nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, TemplateError> {
        Self::parse(path.display().to_string(), file::read(path)?)
    }

    /// Those that come with the agent, each by the name of its executor.
    pub const NAMES: [&str; 4] = ["pbs", "lsf", "flux", "htcondor"];

    /// What one says that comes with the agent.
    pub fn text(name: &str) -> Option<&'static str> {
        match name {
            "pbs" => Some(include_str!("../../../batch/pbs.toml")),
            "lsf" => Some(include_str!("../../../batch/lsf.toml")),
            "flux" => Some(include_str!("../../../batch/flux.toml")),
            "htcondor" => Some(include_str!("../../../batch/htcondor.toml")),
            _ => None,
        }
    }

    /// One that comes with the agent. Tests see to it that it is not wrong.
    pub(crate) fn shipped(name: &str) -> Option<Result<Self, TemplateError>> {
        Self::text(name).map(|text| Self::parse(format!("the template {name}.toml"), text.to_owned()))
    }

    fn parse(origin: String, source: String) -> Result<Self, TemplateError> {
        let (file, rules) = File::parse(&origin, &source)?;
        Ok(Self { origin, source, file, rules })
    }

    pub(crate) fn title(&self) -> &str {
        &self.file.title
    }

    /// The programs that have to be there.
    pub(crate) fn programs(&self) -> &[String] {
        &self.file.doctor.programs
    }

    /// What fails where the system does not answer.
    pub(crate) fn alive(&self) -> &[String] {
        &self.file.doctor.command
    }
}

/// A batch system, as its site's administrator has it used.
#[derive(Debug)]
pub(super) struct Templated {
    settings: BatchSettings,
    programs: Programs,
    user: String,
}

impl Templated {
    pub(super) fn new(settings: BatchSettings) -> Self {
        let programs = Programs::new(settings.commands.as_deref(), &settings.template.file.environment);
        let of_environment = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
        let user = of_environment.unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string());
        Self { settings, programs, user }
    }

    fn rules(&self) -> &Rules {
        &self.settings.template.rules
    }

    fn values(&self, job: &NewJob<'_>) -> Values {
        let NewJob { folder, token, batch, common, .. } = *job;
        let mut values = Values::default();
        values.set("user", self.user.as_str());
        values.set("name", batch.name.as_str());
        values.set("token", token);
        values.set("said", folder.said().join(format!("{token}.0")).display().to_string());
        values.set("cpus", common.cpu_millis.unwrap_or(1_000).div_ceil(1_000).max(1).to_string());
        if let Some(bytes) = common.memory_bytes {
            values.set("memory_mib", bytes.saturating_add(SHIM_BYTES).div_ceil(1 << 20).to_string());
        }
        if let Some(time) = common.time {
            let seconds = time.saturating_add(TIME_MARGIN).as_millis().div_ceil(1_000);
            values.set("seconds", seconds.to_string());
            values.set("minutes", seconds.div_ceil(60).to_string());
            values.set("time", format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60));
        }
        let said = [("queue", &self.settings.queue), ("account", &self.settings.account)];
        said.into_iter().for_each(|(name, value)| value.iter().for_each(|value| values.set(name, value.as_str())));
        if batch.asked.gpus > 0 {
            values.set("gpus", batch.asked.gpus.to_string());
            batch.asked.gpu_kind.iter().for_each(|kind| values.set("gpu_kind", kind.as_str()));
        }
        for (name, count) in &batch.asked.named {
            values.add([("resource", name.clone()), ("amount", count.to_string())]);
        }
        self.settings.options.iter().for_each(|option| values.add([("option", option.clone())]));
        // There is one of them: its place in the batch is the first.
        let place = matches!(job.becomes, Becomes::Shim(_)).then(|| "0".to_owned());
        let words: Vec<String> = words(job).into_iter().chain(place).collect();
        values.set("run", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        let (program, arguments) = words.split_first().expect("the program is a word of it");
        values.set("program", program.as_str());
        let arguments: Vec<String> =
            arguments.iter().map(|word| format!("'{}'", word.replace('\'', "''").replace('"', "\"\""))).collect();
        values.set("arguments", arguments.join(" "));
        values
    }

    /// The numbers of what was, perhaps, submitted under a name.
    fn find(&self, name: &str) -> Result<Vec<String>, String> {
        let Some((words, number)) = &self.rules().find else { return Ok(Vec::new()) };
        let text = self.programs.said(&filled(words, &self.of_name(name)))?;
        Ok(number.captures_iter(&text).filter_map(|found| Some(found.get(1)?.as_str().to_owned())).collect())
    }

    fn of_name(&self, name: &str) -> Values {
        let mut values = Values::default();
        values.set("name", name);
        values.set("user", self.user.as_str());
        values
    }

    /// Whether there may be a job although its submission failed, and whether there ever will be one.
    fn judged(&self, why: String) -> NotSubmitted {
        let rules = self.rules();
        if is_any(&rules.later, &why) {
            NotSubmitted::Later(why)
        } else if is_any(&rules.unclear, &why) || !is_any(&rules.refused, &why) {
            NotSubmitted::Unclear(why)
        } else {
            NotSubmitted::Refused(why)
        }
    }
}

impl BatchSystem for Templated {
    fn title(&self) -> &str {
        self.settings.template.title()
    }

    fn place(&self) -> String {
        self.settings.place()
    }

    fn limits(&self) -> Limits {
        Limits {
            poll: Duration::from_secs(self.settings.poll_seconds),
            jobs_max: self.settings.jobs_max as usize,
            together_max: 1,
            forgotten_after: Duration::from_secs(self.settings.forgotten_seconds),
        }
    }

    fn of_job(&self) -> OfJob {
        let file = &self.settings.template.file;
        OfJob { number: file.number.clone(), passed: file.variables.clone() }
    }

    fn request(&self, job: &NewJob<'_>) -> Request {
        let (rules, mut values) = (self.rules(), self.values(job));
        let input = filled(&rules.job, &values).join("\n") + "\n";
        let file = job.folder.script(job.token);
        values.set("text", input.as_str());
        values.set("file", file.display().to_string());
        let has = |name: &str| rules.submit.iter().any(|word| word.names().contains(name));
        Request { words: filled(&rules.submit, &values), input, file: has("file").then_some(file) }
    }

    fn number(&self, number: &str, _index: usize, _count: usize) -> String {
        number.to_owned()
    }

    fn submit(&self, request: &Request) -> Result<String, NotSubmitted> {
        let written = request.file.as_ref().map(|file| std::fs::write(file, &request.input)).transpose();
        written.map_err(|error| NotSubmitted::Later(format!("the job cannot be written: {error}")))?;
        let output = match self.programs.ask(&request.words, &request.input) {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(NotSubmitted::Unclear(error.to_string()));
            }
            Err(error) => return Err(NotSubmitted::Later(error.to_string())),
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let number = self.rules().number.captures(&said).and_then(|found| found.get(1));
        match (output.status.success(), number) {
            (true, Some(number)) => Ok(number.as_str().to_owned()),
            (true, None) => {
                Err(NotSubmitted::Unclear(format!("its answer has no number of a job: {:?}", all(&output))))
            }
            (false, _) => Err(self.judged(all(&output))),
        }
    }

    fn cancel(&self, jobs: &[String], name: &str) -> Result<(), String> {
        let mut values = self.of_name(name);
        for job in jobs {
            values.several.clear();
            values.add([("job", job.clone())]);
            let result = self.programs.said(&filled(&self.rules().cancel, &values)).map(drop);
            result.or_else(|why| if is_any(&self.rules().gone, &why) { Ok(()) } else { Err(why) })?;
        }
        Ok(())
    }

    fn list(&self, sought: &[Sought]) -> Result<Vec<Row>, String> {
        let rules = self.rules();
        let mut values = self.of_name("");
        for one in sought {
            let jobs = one.job.clone().map_or_else(|| self.find(&one.name), |job| Ok(vec![job]))?;
            jobs.into_iter().for_each(|job| values.add([("job", job)]));
        }
        let by_number = rules.list.iter().any(|word| word.names().contains("job"));
        if by_number && values.several.is_empty() {
            return Ok(Vec::new());
        }
        let output = self.programs.ask(&filled(&rules.list, &values), "").map_err(|error| error.to_string())?;
        let complaints = complaint(&output);
        let unknown_only = complaints.split("; ").any(|line| is_any(&rules.unknown, line));
        if !output.status.success() && !unknown_only {
            return Err(complaints);
        }
        Ok(rules.reading.read(&String::from_utf8_lossy(&output.stdout)))
    }
}

fn filled(patterns: &[Pattern], values: &Values) -> Vec<String> {
    patterns.iter().flat_map(|pattern| pattern.fill(values, &SEVERAL)).collect()
}

fn is_any(known: &[Regex], text: &str) -> bool {
    known.iter().any(|regex| regex.is_match(text))
}

/// All that a command said: some complain where others answer.
fn all(output: &Output) -> String {
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), complaint(output));
    let said = said.trim().replace('\n', "; ");
    if said.is_empty() || complained.contains(&said) { complained } else { format!("{complained}; {said}") }
}

#[cfg(test)]
mod tests;
