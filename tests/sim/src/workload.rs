//! Workflows that a seed thinks of, and what their executions do.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use atoll_model::action::ActionReference;
use atoll_model::id::{Attempt, ExecutionId, ObjectId, StepIndex};
use atoll_model::session::TemplateOutput;
use atoll_model::value::{FileName, FileRef, ObjectKind, ObjectRef, Type, Value};
use atoll_model::workflow::{Action, ActionInput, Output, Surroundings, Work, Workflow, parse};
use site_agent_core::event::ExitKind;

use crate::rng::{Rng, mix};
use crate::scenario::{Pace, Scenario};

/// A workflow, and what is known of it beforehand.
#[derive(Debug, Clone)]
pub struct Drawn {
    pub source: String,
    pub workflow: Workflow,
    /// Steps whose outputs are confined, directly or because they read what is.
    pub confined: BTreeSet<StepIndex>,
    /// The sites where these may be.
    pub confined_to: BTreeSet<String>,
    pub has_input: bool,
    /// The step whose outputs go to the bucket at once.
    pub eager: Option<StepIndex>,
    /// What has to be pushed before.
    pub actions: BTreeSet<u64>,
}

impl Drawn {
    /// A workflow that a test brings along.
    pub(crate) fn given(source: String, workflow: Workflow) -> Self {
        let (confined, confined_to, actions) = Default::default();
        Self { source, workflow, confined, confined_to, has_input: false, eager: None, actions }
    }
}

/// What labels of sites say, by turns.
pub(crate) const ZONES: [&str; 2] = ["north", "south"];

/// Actions that are pushed by their numbers: of an even one the outputs are values.
struct Pushed;

impl Surroundings for Pushed {
    fn action(&self, reference: &str) -> Result<Work, String> {
        let reference = reference.parse::<ActionReference>().map_err(|error| error.to_string())?;
        let number = reference.name.trim_start_matches("tool-");
        let number = number.parse::<u64>().map_err(|error| error.to_string())?;
        let output = |r#type| Output { r#type, optional: false, listed: false, place: Default::default() };
        let file = (!has_values_only(number)).then(|| ("out", output(Type::File)));
        let values = [("n", output(Type::Integer)), ("list", output(Type::List(None)))];
        let outputs = file.into_iter().chain(values).map(|(name, output)| (name.to_owned(), output));
        let input = |name: &str| (name.to_owned(), ActionInput { r#type: Type::Any, default: Some(Value::Null) });
        let bundle = bundle(number);
        Ok(Work::Action(Action {
            name: reference.name,
            version: reference.version,
            bundle: Some(bundle.id),
            bundle_bytes: bundle.bytes,
            command: vec!["tool".to_owned()],
            inputs: ["a0", "a1", "more", "item", "text", "data"].iter().map(|name| input(name)).collect(),
            outputs: outputs.collect(),
            resources: None,
        }))
    }
}

fn has_values_only(action: u64) -> bool {
    action.is_multiple_of(2)
}

/// Under which an action is pushed.
pub(crate) fn reference(action: u64) -> ActionReference {
    ActionReference { name: format!("tool-{action}"), version: "1".to_owned() }
}

pub(crate) fn bundle(action: u64) -> ObjectRef {
    object(mix(&[action, 0xB0_7D]), ObjectKind::Tree)
}

/// Reads a workflow that a test brings along.
pub fn read(source: &str) -> Workflow {
    match parse("sim.yaml", source, &Pushed) {
        Ok(workflow) => workflow,
        Err(diagnostics) => {
            let text: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
            panic!("{source}\n{}", text.join("\n"))
        }
    }
}

/// Draws a workflow for the sites of a scenario.
pub fn draw(rng: &mut Rng, scenario: &Scenario) -> Drawn {
    let mut draft = Draft::begin(rng, scenario);
    for step in 0..draft.steps {
        draft.step(step);
    }
    draft.finish()
}

/// A workflow that is being drawn.
struct Draft<'a> {
    rng: &'a mut Rng,
    /// What is drawn apart shifts nothing of the rest.
    apart: Rng,
    /// The same, of what may be taken from others.
    caching: Rng,
    /// The same, of what makes no files.
    plain: Rng,
    /// The same, of what was pushed.
    acting: Rng,
    /// The same, of memory that grows.
    growing: Rng,
    scenario: &'a Scenario,
    steps: usize,
    has_input: bool,
    text: String,
    /// The step whose outputs are confined, and where to.
    confine: Option<usize>,
    confined_to: usize,
    also_to: Option<usize>,
    eager: Option<usize>,
    fans: Vec<bool>,
    null: Vec<bool>,
    /// Steps that make no files.
    fileless: BTreeSet<usize>,
    confined: BTreeSet<usize>,
    actions: BTreeSet<u64>,
}

impl<'a> Draft<'a> {
    fn begin(rng: &'a mut Rng, scenario: &'a Scenario) -> Self {
        let sites = scenario.sites;
        let steps = rng.between(1, 7) as usize;
        let has_input = rng.chance(300);
        let apart = Rng::new(rng.clone().next());
        let mut text = String::from("workflow: drawn\n");
        if scenario.limits {
            writeln!(text, "priority: {}", rng.between(0, 4) as i64 - 2).expect("text grows");
            if rng.chance(500) {
                let (executions, runs) = (rng.between(1, 5), rng.between(1, 3));
                writeln!(text, "concurrency: {{ executions: {executions}, runs: {runs} }}").expect("text grows");
            }
        }
        if has_input {
            text.push_str("inputs:\n  data: { type: file }\n");
        }
        text.push_str("steps:\n");
        let confine = rng.chance(250).then(|| rng.below(steps as u64) as usize);
        let confined_to = rng.below(sites as u64) as usize;
        let also_to = (rng.chance(500) && sites > 1).then(|| (confined_to + 1) % sites);
        let eager = rng.chance(400).then(|| rng.below(steps as u64) as usize);
        let (fans, null, fileless, confined, actions) = Default::default();
        Self {
            rng,
            caching: Rng::new(mix(&[apart.clone().next(), 0xCAC4E])),
            plain: Rng::new(mix(&[apart.clone().next(), 0xB1A1])),
            acting: Rng::new(mix(&[apart.clone().next(), 0xAC7104])),
            growing: Rng::new(mix(&[apart.clone().next(), 0x6208])),
            apart,
            scenario,
            steps,
            has_input,
            text,
            confine,
            confined_to,
            also_to,
            eager,
            fans,
            null,
            fileless,
            confined,
            actions,
        }
    }

    fn line(&mut self, line: &str) {
        writeln!(self.text, "{line}").expect("text grows");
    }

    fn step(&mut self, step: usize) {
        self.line(&format!("  s{step}:"));
        let reads = self.reads(step);
        let is_null = self.rng.chance(80);
        self.null.push(is_null);
        self.fan_out(&reads);
        if self.scenario.limits && self.rng.chance(400) {
            let most = self.rng.between(1, 4);
            self.line(&format!("    max_parallel: {most}"));
        }
        if is_null {
            self.line("    executor: null");
            if let Some(earlier) = reads.first() {
                self.line(&format!("    after: [s{earlier}]"));
            }
            return;
        }
        let inherits = self.confine == Some(step) || reads.iter().any(|earlier| self.confined.contains(earlier));
        if inherits {
            self.confined.insert(step);
        }
        // What reads what was made anew finds nothing: it begins with the first steps.
        let cached = self.scenario.caches && self.caching.chance(if reads.is_empty() { 900 } else { 400 });
        if self.scenario.plain && self.plain.chance(400) {
            self.fileless.insert(step);
        }
        self.work(step, &reads, cached);
        self.place(step, inherits);
        self.manner(cached);
    }

    /// The steps before it that it reads.
    fn reads(&mut self, step: usize) -> BTreeSet<usize> {
        let candidates: Vec<usize> = (0..step).filter(|earlier| !self.null[*earlier]).collect();
        let mut reads = BTreeSet::new();
        for _ in 0..self.rng.between(u64::from(self.rng.clone().chance(800)), 2) {
            if !candidates.is_empty() {
                let last = candidates[candidates.len() - 1];
                reads.insert(if self.rng.chance(600) { last } else { *self.rng.pick(&candidates) });
            }
        }
        reads
    }

    fn fan_out(&mut self, reads: &BTreeSet<usize>) {
        let fan_max = match () {
            () if self.scenario.is_fleet() => 60,
            () if self.scenario.pressed => 24,
            () => 9,
        };
        let fan = self.rng.chance(if self.scenario.pressed { 600 } else { 300 });
        self.fans.push(fan);
        let single = reads.iter().copied().find(|earlier| !self.fans[*earlier]);
        let fan_of = single.filter(|_| self.rng.chance(500));
        match (fan, fan_of) {
            (true, Some(earlier)) => self.line(&format!("    foreach: ${{{{ steps.s{earlier}.outputs.list }}}}")),
            (true, None) => {
                let count = self.rng.between(0, fan_max);
                let items: Vec<String> = (0..count).map(|item| item.to_string()).collect();
                self.line(&format!("    foreach: [{}]", items.join(", ")));
            }
            (false, _) => {}
        }
    }

    /// What it does, with what, and when.
    fn work(&mut self, step: usize, reads: &BTreeSet<usize>, cached: bool) {
        // A script of its own, so that what cuts off one step puts no other in quarantine.
        let own = self.rng.next();
        if self.scenario.actions && !cached && self.acting.chance(500) {
            let action = own & !1 | u64::from(!self.fileless.contains(&step));
            self.actions.insert(action);
            self.line(&format!("    action: {}", reference(action)));
        } else {
            let work = if cached { format!("one of a few: {}", self.caching.below(6)) } else { format!("work {own}") };
            self.line(&format!("    run: \"{work}\""));
            let file = if self.fileless.contains(&step) { "" } else { "out: file, " };
            self.line(&format!("    outputs: {{ {file}n: integer, list: list }}"));
        }
        let mut with = Vec::new();
        for (place, earlier) in reads.iter().enumerate() {
            let output = if self.rng.chance(800) && !self.fileless.contains(earlier) { "out" } else { "n" };
            with.push(format!("a{place}: \"${{{{ steps.s{earlier}.outputs.{output} }}}}\""));
        }
        let single = reads.iter().copied().find(|earlier| !self.fans[*earlier]);
        if let Some(earlier) = single
            && self.apart.chance(300)
        {
            with.push(format!("more: \"${{{{ steps.s{earlier}.outputs.n + 1 }}}}\""));
        }
        if self.fans.last() == Some(&true) && self.apart.chance(600) {
            with.push("item: \"${{ item }}\", text: \"no ${{ index }}\"".to_owned());
        }
        if self.has_input && self.rng.chance(500) {
            with.push("data: \"${{ inputs.data }}\"".to_owned());
        }
        if !with.is_empty() {
            self.line(&format!("    with: {{ {} }}", with.join(", ")));
        }
        if let Some(earlier) = single
            && self.rng.chance(100)
        {
            self.line(&format!("    when: ${{{{ steps.s{earlier}.outputs.n > 20 }}}}"));
        } else if let Some(earlier) = reads.iter().find(|earlier| self.fans[**earlier])
            && self.apart.chance(150)
        {
            // Of a list that may be empty it has no value now and then.
            let condition = if self.apart.chance(100) { "n[0] >= 0" } else { "n.exists(n, n > 20)" };
            self.line(&format!("    when: ${{{{ steps.s{earlier}.outputs.{condition} }}}}"));
        }
    }

    fn place(&mut self, step: usize, inherits: bool) {
        let sites = self.scenario.sites;
        // Who reads what is confined need not say where; if there are several places for it, only the last step does not,
        // for what is made at different ones is never together.
        let says_where = self.also_to.is_some() && (self.confine == Some(step) || step + 1 < self.steps);
        if inherits && (says_where || self.rng.chance(500)) {
            self.line(&format!("    site: s{}", self.confined_to));
        } else if !inherits && self.rng.chance(if self.scenario.long { 150 } else { 400 }) {
            let site = self.rng.below(sites as u64);
            self.line(&format!("    site: s{site}"));
        } else if !inherits && sites > 1 && self.rng.chance(100) {
            let zone = ZONES[self.rng.below(2) as usize];
            self.line(&format!("    site: {{ labels: {{ zone: {zone} }} }}"));
        }
    }

    fn manner(&mut self, cached: bool) {
        if cached {
            let minutes = self.caching.spread(1, 1_000);
            self.line(&format!("    cache: {}m", minutes.as_micros()));
        }
        let mut resources = Vec::new();
        if self.rng.chance(700) {
            let other = self.rng.chance(300);
            let attempts = self.rng.between(2, 4);
            let grows = self.growing.chance(250);
            let growth = if grows { ", memory: 2x" } else { "" };
            self.line(&format!("    retry: {{ attempts: {attempts}, backoff: 1s, other_site: {other}{growth} }}"));
            // A site has 8 GiB: of some there is too little for a further attempt.
            resources.extend(grows.then(|| format!("memory: {}GiB", self.growing.between(1, 3))));
        }
        if self.rng.chance(200) {
            resources.push("cpu: 2".to_owned());
        }
        if !resources.is_empty() {
            self.line(&format!("    resources: {{ {} }}", resources.join(", ")));
        }
        let at_most_once = self.scenario.at_most_once && self.rng.chance(if self.scenario.long { 400 } else { 120 });
        if at_most_once && !cached {
            self.line("    start: at-most-once");
        }
        if self.rng.chance(100) {
            self.line("    on_disconnect: stop");
        }
    }

    /// Perhaps one file is published, at a site where it may be and can get to.
    fn published(&mut self) -> Option<String> {
        let (confined, also_to) = (&self.confined, self.also_to);
        let may_be = |step: &usize| !confined.contains(step) || also_to.is_none();
        let has_file = |step: &usize| !self.null[*step] && !self.fileless.contains(step);
        let single = (0..self.steps).filter(|step| has_file(step) && !self.fans[*step]).filter(may_be);
        let candidates: Vec<usize> = single.collect();
        if candidates.is_empty() || !self.apart.chance(250) {
            return None;
        }
        let step = *self.apart.pick(&candidates);
        let anywhere = self.apart.below(self.scenario.sites as u64) as usize;
        let site = if self.confined.contains(&step) { self.confined_to } else { anywhere };
        let value = format!("${{{{ steps.s{step}.outputs.out }}}}");
        Some(format!("  file: {{ value: \"{value}\", publish: {{ site: s{site}, path: /published }} }}"))
    }

    fn finish(mut self) -> Drawn {
        let last = (0..self.steps).rfind(|step| !self.null[*step]);
        let result = last.filter(|_| self.rng.chance(500));
        let result = result.map(|last| format!("  result: ${{{{ steps.s{last}.outputs.n }}}}"));
        let outputs: Vec<String> = result.into_iter().chain(self.published()).collect();
        if !outputs.is_empty() {
            self.line(&format!("outputs:\n{}", outputs.join("\n")));
        }
        let confine = self.confine.filter(|step| !self.null[*step]);
        let eager = self.eager.filter(|step| !self.null[*step] && !self.confined.contains(step));
        if confine.is_some() || eager.is_some() {
            self.line("placement:");
        }
        if let Some(step) = confine {
            let also = self.also_to.map_or_else(String::new, |also| format!(", s{also}"));
            let to = self.confined_to;
            self.line(&format!("  - match: {{ step: s{step} }}\n    confine: [s{to}{also}]"));
        }
        if let Some(step) = eager {
            self.line(&format!("  - match: {{ step: s{step} }}\n    push: eager"));
        }
        let workflow = read(&self.text);
        let index = |step: usize| workflow.steps.iter().find(|known| known.name == format!("s{step}")).map(|s| s.index);
        let confined = self.confined.into_iter().filter_map(index).collect();
        let eager = eager.and_then(index);
        let sites = std::iter::once(self.confined_to).chain(self.also_to);
        let confined_to = sites.map(|site| format!("s{site}")).collect();
        let (source, has_input, actions) = (self.text, self.has_input, self.actions);
        Drawn { source, workflow, confined, confined_to, has_input, eager, actions }
    }
}

/// What an attempt does: decided by what it is, so that it does the same wherever and whenever it runs.
#[derive(Debug, Clone)]
pub struct Behaviour {
    pub lasts: Duration,
    pub exit: ExitKind,
    /// Whether its outputs cannot be taken in.
    pub spoils: bool,
}

pub fn behaviour(seed: u64, execution: ExecutionId, attempt: Attempt, pace: Pace) -> Behaviour {
    let step = mix(&[seed, execution.run.bits() as u64, u64::from(execution.step.0)]);
    let mut rng = Rng::new(mix(&[step, u64::from(execution.element), u64::from(attempt.0)]));
    let mut of_step = Rng::new(step);
    let lasts = match of_step.below(4) {
        _ if pace == Pace::Handover => rng.micros(1_500_000_000, 2_400_000_000),
        1 | 3 if pace == Pace::Long => rng.spread(60_000_000, 1_500_000_000),
        1..4 if pace == Pace::Pressed => rng.micros(1_000_000, 20_000_000),
        0 => rng.micros(500, 15_000),
        1 => rng.micros(10_000, 500_000),
        2 if of_step.chance(if pace == Pace::Long { 700 } else { 100 }) => rng.spread(60_000_000, 1_500_000_000),
        2 => rng.spread(1_000, 30_000_000),
        _ => rng.micros(100_000, 3_000_000),
    };
    let fails = of_step.chance(match pace {
        Pace::Long => 300,
        Pace::Handover => 0,
        Pace::Mixed | Pace::Pressed => 120,
    });
    let always = of_step.chance(200);
    let fails = fails && (always || (attempt.0 <= 2 && rng.chance(600)));
    let exit = match rng.below(5) {
        _ if !fails => ExitKind::Code(0),
        0 => ExitKind::Signal(9),
        1 => ExitKind::TimedOut,
        2 => ExitKind::OutOfMemory,
        _ => ExitKind::Code(1),
    };
    Behaviour { lasts, exit, spoils: !fails && rng.chance(15) }
}

/// What is made in a world.
#[derive(Debug, Clone, Copy)]
pub struct Making {
    pub seed: u64,
    /// Some make the same as others.
    pub shared: bool,
    /// Megabytes instead of bytes.
    pub large: bool,
}

/// What an attempt leaves behind for one of its outputs.
pub fn output(making: Making, execution: ExecutionId, attempt: Attempt, output: &TemplateOutput) -> Value {
    let Making { seed, shared, large } = making;
    let name = output.name.bytes().fold(0, |hash, byte| mix(&[hash, u64::from(byte)]));
    let run = execution.run.bits() as u64;
    let numbers = [seed, run, u64::from(execution.step.0), u64::from(execution.element), name];
    let number = mix(&numbers);
    match output.r#type {
        Type::File => {
            // Every fourth execution makes something else each time.
            let again = if number.is_multiple_of(4) { u64::from(attempt.0) } else { 0 };
            let content =
                if shared && number.is_multiple_of(5) { mix(&[seed, number / 5 % 3]) } else { mix(&[number, again]) };
            let object = object(content, ObjectKind::File);
            let name = FileName::new(b"out").expect("a name");
            let bytes = if large { object.bytes << 20 } else { object.bytes };
            Value::File(FileRef { object: object.id, bytes, name, executable: false })
        }
        Type::Integer => Value::Integer((number % 100) as i64),
        Type::List(_) => Value::list((0..number % 6).map(|item| Value::Integer(item as i64)).collect()),
        Type::String | Type::Number | Type::Boolean | Type::Enum(_) | Type::Object | Type::Directory | Type::Any => {
            Value::Null
        }
    }
}

pub fn object(number: u64, kind: ObjectKind) -> ObjectRef {
    let mut digest = [0; 32];
    for (place, part) in digest.chunks_mut(8).enumerate() {
        part.copy_from_slice(&mix(&[number, place as u64]).to_le_bytes());
    }
    ObjectRef { id: ObjectId::from_digest(digest), kind, bytes: 1 + number % 1_000 }
}
