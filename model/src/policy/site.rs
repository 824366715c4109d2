//! The policy of a site's own administrator: what may run there, what may leave it, how much of the machine may be used.
//! The site's agent enforces it, whatever the control plane asks for.

use serde::{Deserialize, Serialize};

use super::{AccountRules, glob_matches};
use crate::action::{PublicKey, SERVICE_VARIABLE};
use crate::diagnostic::{Diagnostic, Place};
use crate::limits::WORKFLOW_BYTES_MAX;
use crate::reading::Report;
use crate::session::{StepTemplate, TemplateWork};
use crate::suggestion::did_you_mean;
use crate::units::parse_size;
use crate::workflow::{Outside, OutsideUrl};
use crate::yaml::{Kind, Node};

/// What the administrator of a site has written. An empty one allows everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SitePolicy {
    pub file: String,
    /// What may run; the first rule that matches decides.
    pub run: Vec<SiteRule>,
    /// What may leave; the first rule that matches decides.
    pub leave: Vec<SiteRule>,
    /// Bytes that the store may hold, and where the file says so.
    pub disk: Option<(u64, Place)>,
    /// Bytes of a second that may go to other sites.
    pub link: Option<(u64, Place)>,
    /// Which local account what runs here runs as, if the agent is to become others. Not in the file of the policy.
    pub accounts: Option<AccountRules>,
}

/// The bucket, among the places that something may leave for.
pub const BUCKET: &str = "bucket";

/// What may not leave for everywhere: the first of these that speaks of a destination decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Withholding {
    pub steps: Vec<LeaveStep>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeaveStep {
    /// A pattern of names; every destination where nothing is said.
    pub to: Option<String>,
    /// Why it may not leave for there; nothing where it may.
    pub refusal: Option<String>,
}

impl Withholding {
    /// Of what may not leave at all.
    pub fn everywhere(reason: String) -> Self {
        Self { steps: vec![LeaveStep { to: None, refusal: Some(reason) }] }
    }

    /// Why it may not leave for a site, by its name, for the [`BUCKET`], or for a URL.
    pub fn refusal(&self, to: &str) -> Option<&str> {
        let fits = |step: &&LeaveStep| step.to.as_deref().is_none_or(|pattern| glob_matches(pattern, to));
        self.steps.iter().find(fits)?.refusal.as_deref()
    }

    /// Why it may not leave for some destination.
    pub fn any_refusal(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| step.refusal.as_deref())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRule {
    pub refuses: bool,
    pub matches: SiteMatch,
    pub place: Place,
}

/// All parts that are given must hold. Names are patterns: `*` is any text, `?` any character.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteMatch {
    pub workflow: Option<String>,
    pub step: Option<String>,
    /// Matches outputs only, never a log or an execution.
    pub output: Option<String>,
    /// Matches only what a step takes in from this path of the machine or this URL, or publishes there.
    pub path: Option<String>,
    /// Matches only on the way there: the name of a site, [`BUCKET`], or the URL at which something is published.
    pub to: Option<String>,
    pub work: Vec<WorkKind>,
    /// Matches only what one of these has signed, and whose step sets no `env`: by it code does something else.
    pub signed_by: Vec<NamedKey>,
}

/// A key of somebody whom the administrator trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedKey {
    pub name: String,
    pub key: PublicKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkKind {
    Script,
    Action,
    Import,
    Export,
}

impl SitePolicy {
    /// Reads the administrator's file.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the file.
    pub fn parse(file: &str, source: &str) -> Result<Self, Vec<Diagnostic>> {
        let mut report = Report::new(file);
        let policy = report.yaml(source, WORKFLOW_BYTES_MAX).map(|root| read(&mut report, file, &root));
        match policy {
            Some(policy) if report.is_empty() => Ok(policy),
            Some(_) | None => Err(report.into_diagnostics()),
        }
    }

    /// Why executions of the step may not run here.
    pub fn refuses_run(&self, template: &StepTemplate) -> Option<String> {
        let Some(rule) = decide(&self.run, template, None) else { return self.refuses_requester(template) };
        let refused = format!("the site's own policy does not let it run ({})", self.cite(rule.place));
        let earlier = self.run.iter().take_while(|earlier| earlier.place != rule.place);
        let mut unsigned = earlier.filter(|earlier| !earlier.refuses && !earlier.matches.signed_by.is_empty());
        let Some(demand) = unsigned.find(|earlier| earlier.matches_but_for_signatures(template, None)) else {
            return Some(refused);
        };
        let names: Vec<&str> = demand.matches.signed_by.iter().map(|key| key.name.as_str()).collect();
        let (names, place) = (names.join(" or "), self.cite(demand.place));
        Some(match sets_variables(template) {
            false => format!("{refused}: it is not signed by {names} ({place})"),
            true => format!("{refused}: nobody has signed what its step sets under `env` ({place})"),
        })
    }

    /// Why no account here is for whoever has asked for the run.
    fn refuses_requester(&self, template: &StepTemplate) -> Option<String> {
        self.accounts.as_ref()?.choose(template.origin.requester.as_ref()).err()
    }

    /// Where an output of the step may not leave for, if there is such a place.
    pub fn withholds(&self, template: &StepTemplate, output: &str) -> Option<Withholding> {
        self.withholding(template, Some(output))
    }

    /// Why what the step writes to its logs may not leave: because they may show what an output holds that may not.
    pub fn refuses_logs(&self, template: &StepTemplate) -> Option<String> {
        let outputs = template.outputs.iter().map(|output| Some(output.name.as_str()));
        let mut withheld = std::iter::once(None).chain(outputs).filter_map(|output| self.withholding(template, output));
        withheld.next()?.any_refusal().map(str::to_owned)
    }

    /// The rules that speak of it, up to the first that speaks of every destination; nothing where none refuses.
    fn withholding(&self, template: &StepTemplate, output: Option<&str>) -> Option<Withholding> {
        let mut steps = Vec::new();
        for rule in self.leave.iter().filter(|rule| rule.matches(template, output)) {
            let refusal = rule.refuses.then(|| self.leaving(rule));
            steps.push(LeaveStep { to: rule.matches.to.clone(), refusal });
            if rule.matches.to.is_none() {
                break;
            }
        }
        let refuses = steps.iter().any(|step| step.refusal.is_some());
        refuses.then_some(Withholding { steps })
    }

    /// Why the store may not grow any more.
    pub fn refuses_growth(&self, store_bytes: u64) -> Option<String> {
        let (most, place) = self.disk.filter(|(most, _)| store_bytes >= *most)?;
        let (most, used) = (crate::units::format_size(most), crate::units::format_size(store_bytes));
        Some(format!("the site's own policy gives {most} of disk ({}), and {used} are used", self.cite(place)))
    }

    fn leaving(&self, rule: &SiteRule) -> String {
        format!("the site's own policy does not let it leave ({})", self.cite(rule.place))
    }

    fn cite(&self, place: Place) -> String {
        format!("{}:{}", self.file, place.line)
    }
}

/// The rule that refuses, if the first that matches does.
fn decide<'a>(rules: &'a [SiteRule], template: &StepTemplate, output: Option<&str>) -> Option<&'a SiteRule> {
    rules.iter().find(|rule| rule.matches(template, output)).filter(|rule| rule.refuses)
}

/// Whether a step sets variables. Which services it uses says what it finds at the site, and not what is run.
fn sets_variables(template: &StepTemplate) -> bool {
    template.environment.iter().any(|(name, _)| !name.starts_with(SERVICE_VARIABLE))
}

impl SiteMatch {
    fn is_signed(&self, template: &StepTemplate) -> bool {
        let trusts = |key: PublicKey| self.signed_by.iter().any(|trusted| trusted.key == key);
        let is_signed = || template.work.signatures().iter().any(|signature| trusts(signature.key));
        self.signed_by.is_empty() || !sets_variables(template) && is_signed()
    }
}

impl SiteRule {
    fn matches(&self, template: &StepTemplate, output: Option<&str>) -> bool {
        self.matches_but_for_signatures(template, output) && self.matches.is_signed(template)
    }

    fn matches_but_for_signatures(&self, template: &StepTemplate, output: Option<&str>) -> bool {
        let matches = &self.matches;
        let (kind, path) = match &template.work {
            TemplateWork::Script(_) => (Some(WorkKind::Script), None),
            TemplateWork::Command { .. }
            | TemplateWork::SignedCommand { .. }
            | TemplateWork::Python { .. }
            | TemplateWork::Container { .. }
            | TemplateWork::Wasm { .. } => (Some(WorkKind::Action), None),
            TemplateWork::Import { source, .. } => (Some(WorkKind::Import), Some(source)),
            TemplateWork::Export { target, .. } => (Some(WorkKind::Export), Some(target)),
            TemplateWork::Null => (None, None),
        };
        let named = |pattern: &Option<String>, name: &str| pattern.as_deref().is_none_or(|p| glob_matches(p, name));
        named(&matches.workflow, &template.workflow)
            && named(&matches.step, &template.step_name)
            && (matches.work.is_empty() || kind.is_some_and(|kind| matches.work.contains(&kind)))
            && matches.output.as_deref().is_none_or(|p| output.is_some_and(|output| glob_matches(p, output)))
            && matches.path.as_deref().is_none_or(|p| path.is_some_and(|path| self.matches_path(p, path)))
    }

    /// A path that is written in a roundabout way is taken for what is refused, and not for what is allowed.
    fn matches_path(&self, pattern: &str, place: &Outside) -> bool {
        let is_of_url = pattern.parse::<OutsideUrl>().is_ok();
        let (text, is_plain) = match place {
            Outside::Path(path) if is_of_url => (path.as_str(), true),
            Outside::Path(path) => {
                let parts = path.strip_prefix('/').map(|path| path.split('/'));
                (path.as_str(), parts.is_some_and(|mut parts| parts.all(|part| !matches!(part, "" | "." | ".."))))
            }
            Outside::Url(url) => (url.as_str(), !is_of_url || url.is_plain()),
        };
        if is_plain { glob_matches(pattern, text) } else { self.refuses }
    }
}

fn read(report: &mut Report, file: &str, root: &Node) -> SitePolicy {
    let fields = report.fields(root, "a site's policy", &["keys", "run", "leave", "limits"]);
    let keys = fields.get("keys").map(|node| read_keys(report, node)).unwrap_or_default();
    let mut rules = |name: &str, known: &[&str]| match fields.get(name) {
        Some(node) => read_rules(report, node, name, known, &keys),
        None => Vec::new(),
    };
    let run = rules("run", &["workflow", "step", "work", "path", "signed_by"]);
    let leave = rules("leave", &["workflow", "step", "output", "work", "path", "to"]);
    let (disk, link) = match fields.get("limits") {
        Some(node) => {
            let limits = report.fields(node, "`limits`", &["disk", "link"]);
            let mut size = |name: &str| {
                let node = limits.get(name)?;
                let read = |text: &str| parse_size(text.trim_end_matches("/s")).map_err(|error| error.to_string());
                Some((report.parsed_with(node, &format!("`{name}`"), read)?, node.place))
            };
            (size("disk"), size("link"))
        }
        None => (None, None),
    };
    SitePolicy { file: file.to_owned(), run, leave, disk, link, accounts: None }
}

fn read_keys(report: &mut Report, node: &Node) -> Vec<NamedKey> {
    let mut keys = Vec::new();
    for entry in report.entries(node, "`keys`") {
        report.name(&entry.key, entry.key_place, "a key", true);
        if let Some(key) = report.parsed(&entry.value, "a key") {
            keys.push(NamedKey { name: entry.key.clone(), key });
        }
    }
    keys
}

fn read_signed_by(report: &mut Report, node: &Node, keys: &[NamedKey]) -> Vec<NamedKey> {
    let mut signed_by = Vec::new();
    let names = report.texts(node, "the name of a key");
    if names.is_empty() && report.is_empty() {
        report.error(node.place, "`signed_by` names no key", None);
    }
    for (name, place) in names {
        match keys.iter().find(|key| key.name == name) {
            Some(key) => signed_by.push(key.clone()),
            None => {
                let help = did_you_mean(name, keys.iter().map(|key| key.name.as_str()));
                let help = help.or_else(|| Some("declare it: `keys: { release: \"ed25519:…\" }`".to_owned()));
                report.error(place, format!("there is no key `{}`", name.escape_debug()), help);
            }
        }
    }
    signed_by
}

fn read_rules(report: &mut Report, node: &Node, name: &str, known: &[&str], keys: &[NamedKey]) -> Vec<SiteRule> {
    let Kind::Sequence(items) = &node.kind else {
        let help = Some("begin each rule with `- allow:` or `- refuse:`".to_owned());
        report.error(node.place, format!("`{name}` is a list of rules, not {}", node.described()), help);
        return Vec::new();
    };
    let mut rules = Vec::new();
    for item in items {
        let fields = report.fields(item, "a rule", &["allow", "refuse"]);
        let (refuses, node) = match (fields.get("allow"), fields.get("refuse")) {
            (Some(node), None) => (false, node),
            (None, Some(node)) => (true, node),
            (Some(_), Some(_)) | (None, None) => {
                let help = Some("write `- refuse: { … }`, or `- refuse: {}` for everything".to_owned());
                report.error(item.place, "a rule either allows or refuses", help);
                continue;
            }
        };
        let matches = read_match(report, node, known, keys);
        rules.push(SiteRule { refuses, matches, place: item.place });
    }
    rules
}

fn read_match(report: &mut Report, node: &Node, known: &[&str], keys: &[NamedKey]) -> SiteMatch {
    let fields = report.fields(node, "what a rule matches", known);
    let mut text = |name: &str| fields.get(name).and_then(|node| report.text(node, name)).map(str::to_owned);
    let (workflow, step, output, path) = (text("workflow"), text("step"), text("output"), text("path"));
    let to = text("to");
    if let (Some(path), Some(node)) = (&path, fields.get("path"))
        && !path.starts_with('/')
        && path.parse::<OutsideUrl>().is_err()
    {
        report.error(node.place, "`path` begins with `/`, or is a URL", None);
    }
    let kinds = [
        ("script", WorkKind::Script),
        ("action", WorkKind::Action),
        ("import", WorkKind::Import),
        ("export", WorkKind::Export),
    ];
    let mut work = Vec::new();
    if let Some(node) = fields.get("work") {
        match &node.kind {
            Kind::Sequence(items) => work.extend(items.iter().filter_map(|item| report.word(item, "`work`", &kinds))),
            Kind::Scalar { .. } | Kind::Mapping(_) => work.extend(report.word(node, "`work`", &kinds)),
        }
        if work.is_empty() && report.is_empty() {
            report.error(node.place, "`work` names no kind of work", None);
        }
    }
    let signed_by = fields.get("signed_by").map(|node| read_signed_by(report, node, keys)).unwrap_or_default();
    SiteMatch { workflow, step, output, path, to, work, signed_by }
}
