//! Placement: a pure function from what a step asks for, the sites, and where its data is, to a site and the reasons.
//!
//! Constraints come first: a site that breaks one is out, and the reason is kept. Of the others the one where the work
//! would end first is chosen: the data that is missing there comes while the work queues there, then it waits for the batch
//! system, if the site has one, then the work runs. Half
//! of the time that the next steps would need to get its outputs elsewhere is added (a look-ahead of one step).

use std::collections::BTreeMap;

use atoll_model::id::{RunId, SiteId, SiteName, StepIndex};
use atoll_model::placement::{EGRESS_PRICE_LABEL, Labels, SiteSelector, SiteVerdict};
use atoll_model::resources::{Capacity, IsolationProfile, Resources};

/// Bytes per second through the bucket until something was measured: a modest wide-area link.
pub(crate) const BANDWIDTH_DEFAULT: f64 = 50e6;
/// What any transfer costs beside its bytes: two requests and a round trip or two.
pub(crate) const TRANSFER_SECONDS: f64 = 0.5;
/// How long an execution is taken to run until one like it has ended.
pub(crate) const RUN_SECONDS_DEFAULT: f64 = 1.0;
/// Of the time that next steps would wait for its outputs, what counts: they may have other reasons to be elsewhere.
const GRAVITY_DISCOUNT: f64 = 0.5;
/// Verdicts kept with a decision: enough to see why, however many sites there are.
const VERDICTS_MAX: usize = 64;

/// A site as placement sees it.
#[derive(Debug, Clone)]
pub(crate) struct Candidate<'a> {
    pub(crate) site: SiteId,
    pub(crate) name: &'a SiteName,
    pub(crate) labels: &'a Labels,
    pub(crate) capacity: Option<&'a Capacity>,
    pub(crate) runtimes: &'a [String],
    /// Why it takes no work now, if it does not.
    pub(crate) closed: Option<String>,
    /// Executions that are placed there and have not ended.
    pub(crate) outstanding: u32,
    /// How long work waits there for a batch system, as its agent has seen it.
    pub(crate) batch_wait_seconds: f64,
}

/// What an execution asks for.
#[derive(Debug)]
pub(crate) struct Requirement<'a> {
    pub(crate) selector: &'a SiteSelector,
    pub(crate) resources: &'a Resources,
    pub(crate) runtime: Option<&'static str>,
    pub(crate) run_seconds: f64,
}

/// What the data of an execution means for one site.
#[derive(Debug, Clone, Default)]
pub(crate) struct DataTerms {
    /// A rule, or the absence of a copy that can be had, keeps the work away.
    pub(crate) obstacle: Option<String>,
    pub(crate) missing_bytes: u64,
    pub(crate) missing_objects: u32,
    /// Until they are there, over the links that were measured.
    pub(crate) missing_seconds: f64,
    /// What the sites that have them ask for letting them go.
    pub(crate) egress_money: f64,
    pub(crate) bytes_per_second: f64,
    /// Bytes that would have to leave the site for the next steps.
    pub(crate) leaving_bytes: f64,
    pub(crate) leaving: bool,
}

/// What placement found out about one site.
#[derive(Debug, Clone)]
pub(crate) struct Assessment {
    pub(crate) site: SiteId,
    /// Why the site is out, if it is.
    pub(crate) obstacle: Option<String>,
    /// How many executions of this shape it runs at once.
    pub(crate) slots: u32,
    pub(crate) outstanding: u32,
    pub(crate) batch_wait_seconds: f64,
    pub(crate) data_seconds: f64,
    pub(crate) run_seconds: f64,
    pub(crate) gravity_seconds: f64,
    /// What is lost elsewhere than at the site that a look ahead over the run gives it to.
    pub(crate) detour_seconds: f64,
    pub(crate) missing_bytes: u64,
    pub(crate) egress_money: f64,
}

impl Assessment {
    pub(crate) fn queue_seconds(&self, more: u32) -> f64 {
        let waiting = (self.outstanding + more + 1).saturating_sub(self.slots);
        f64::from(waiting) * self.run_seconds / f64::from(self.slots)
    }

    /// Until it begins. A job is submitted once its data is there, and what was seen of the batch system's queue was also
    /// behind what was placed there before.
    pub(crate) fn wait_seconds(&self, more: u32) -> f64 {
        (self.data_seconds + self.batch_wait_seconds).max(self.queue_seconds(more))
    }

    /// Lower is better.
    pub(crate) fn score(&self, more: u32) -> f64 {
        self.wait_seconds(more) + self.run_seconds + self.gravity_seconds + self.detour_seconds
    }

    fn terms(&self) -> BTreeMap<String, f64> {
        let named = [
            ("data_seconds", self.data_seconds),
            ("queue_seconds", self.queue_seconds(0)),
            ("run_seconds", self.run_seconds),
            ("gravity_seconds", self.gravity_seconds),
            ("score", self.score(0)),
        ];
        let others = [
            ("batch_wait_seconds", self.batch_wait_seconds),
            ("detour_seconds", self.detour_seconds),
            ("missing_bytes", self.missing_bytes as f64),
            ("egress_money", self.egress_money),
        ];
        named
            .into_iter()
            .chain(others.into_iter().filter(|(_, value)| *value > 0.0))
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

/// Why a site can never run this, whatever happens there.
pub(crate) fn permanent_obstacle(candidate: &Candidate<'_>, wanted: &Requirement<'_>) -> Option<String> {
    if !wanted.selector.names.is_empty() && !wanted.selector.names.contains(candidate.name) {
        return Some("the step names another site".to_owned());
    }
    for (label, value) in &wanted.selector.labels {
        match candidate.labels.get(label) {
            Some(known) if known == value => {}
            Some(known) => return Some(format!("its label {label} is {known}, not {value}")),
            None => return Some(format!("it has no label {label}")),
        }
    }
    let capacity = candidate.capacity?;
    if let Some((what, help)) = wanted.resources.not_given_by(candidate.runtimes) {
        return Some(format!("it cannot give the {what} that the step asks for: {help}"));
    }
    let cpu_millis = wanted.resources.cpu_millis_in_all();
    if cpu_millis > capacity.cpu_millis {
        let (asked, there) = (f64::from(cpu_millis) / 1e3, f64::from(capacity.cpu_millis) / 1e3);
        return Some(format!("the step asks for {asked} CPUs, and it has {there}"));
    }
    if let Some(memory) = wanted.resources.memory_bytes_in_all().filter(|memory| *memory > capacity.memory_bytes) {
        let (asked, there) = (memory >> 20, capacity.memory_bytes >> 20);
        return Some(format!("the step asks for {asked} MiB of memory, and it has {there} MiB"));
    }
    if let Some((what, there)) = capacity.lacks(wanted.resources) {
        return Some(format!("the step asks for {what}, and it has {there}"));
    }
    let is_strict = wanted.resources.confinement.isolation == Some(IsolationProfile::Strict);
    if is_strict && !candidate.runtimes.iter().any(|known| known == IsolationProfile::STRICT_RUNTIME) {
        return Some("it cannot give `isolation: strict` (`atoll site doctor` says there why)".to_owned());
    }
    match wanted.runtime {
        Some(runtime) if !candidate.runtimes.is_empty() && !candidate.runtimes.iter().any(|known| known == runtime) => {
            Some(format!("it has no runtime {runtime}"))
        }
        Some(_) | None => None,
    }
}

/// What it costs when a byte leaves a site, if its labels say so.
pub(crate) fn egress_price(labels: &Labels) -> Option<f64> {
    let per_gigabyte: f64 = labels.get(EGRESS_PRICE_LABEL)?.parse().ok()?;
    (per_gigabyte.is_finite() && per_gigabyte >= 0.0).then_some(per_gigabyte / 1e9)
}

/// Executions of this shape that a site runs at once.
pub(crate) fn slots(capacity: Option<&Capacity>, resources: &Resources) -> u32 {
    let Some(capacity) = capacity else { return 1 };
    let by_cpu = capacity.cpu_millis / resources.cpu_millis_in_all().max(1);
    let by_memory = resources
        .memory_bytes_in_all()
        .filter(|memory| *memory > 0)
        .map_or(u32::MAX, |memory| u32::try_from(capacity.memory_bytes / memory).unwrap_or(u32::MAX));
    by_cpu.min(by_memory).min(capacity.times(resources)).max(1)
}

/// Looks at every site.
pub(crate) fn assess(
    candidates: &[Candidate<'_>],
    wanted: &Requirement<'_>,
    data: &mut dyn FnMut(&Candidate<'_>) -> DataTerms,
) -> Vec<Assessment> {
    let assess_one = |candidate: &Candidate<'_>| {
        let mut assessment = Assessment {
            site: candidate.site,
            obstacle: permanent_obstacle(candidate, wanted).or_else(|| candidate.closed.clone()),
            slots: slots(candidate.capacity, wanted.resources),
            outstanding: candidate.outstanding,
            batch_wait_seconds: candidate.batch_wait_seconds,
            data_seconds: 0.0,
            run_seconds: wanted.run_seconds,
            gravity_seconds: 0.0,
            detour_seconds: 0.0,
            missing_bytes: 0,
            egress_money: 0.0,
        };
        if assessment.obstacle.is_none() {
            let terms = data(candidate);
            let rate = if terms.bytes_per_second > 0.0 { terms.bytes_per_second } else { BANDWIDTH_DEFAULT };
            if terms.missing_objects > 0 {
                assessment.data_seconds = TRANSFER_SECONDS + terms.missing_seconds;
                assessment.missing_bytes = terms.missing_bytes;
                assessment.egress_money = terms.egress_money;
            }
            if terms.leaving {
                assessment.gravity_seconds = GRAVITY_DISCOUNT * (TRANSFER_SECONDS + terms.leaving_bytes / rate);
            }
            assessment.obstacle = terms.obstacle;
        }
        assessment
    };
    candidates.iter().map(assess_one).collect()
}

/// Gives `count` executions to sites, one after the other to the one with the lowest score, as far as there is room. Ends
/// early when the best site has none: waiting for it is better than going elsewhere.
pub(crate) fn spread(
    assessments: &[Assessment],
    count: u32,
    tie: (RunId, StepIndex, u32),
    room: &dyn Fn(SiteId) -> u32,
) -> Vec<(SiteId, u32)> {
    let feasible: Vec<_> = assessments.iter().filter(|assessment| assessment.obstacle.is_none()).collect();
    match feasible.as_slice() {
        [] => Vec::new(),
        [only] => match room(only.site).min(count) {
            0 => Vec::new(),
            given => vec![(only.site, given)],
        },
        several => {
            let mut shares: Vec<_> = several
                .iter()
                .map(|site| Share { site, given: 0, room: room(site.site), tie: tie_break(tie, site.site) })
                .collect();
            for _ in 0..count {
                let best = shares.iter_mut().min_by(|a, b| a.key().partial_cmp(&b.key()).expect("scores are numbers"));
                match best {
                    Some(best) if best.given < best.room => best.given += 1,
                    Some(_) | None => break,
                }
            }
            let given = shares.into_iter().filter(|share| share.given > 0);
            given.map(|share| (share.site.site, share.given)).collect()
        }
    }
}

struct Share<'a> {
    site: &'a Assessment,
    given: u32,
    room: u32,
    tie: u64,
}

impl Share<'_> {
    fn key(&self) -> (f64, f64, u64) {
        // Scores that differ by less than a millisecond are a tie, and then the cheaper one is taken.
        ((self.site.score(self.given) * 1e3).round(), self.site.egress_money, self.tie)
    }
}

/// FNV-1a of the execution and the site, so that ties do not all go the same way.
fn tie_break((run, step, element): (RunId, StepIndex, u32), site: SiteId) -> u64 {
    let bytes = run.bits().to_le_bytes().into_iter().chain(step.0.to_le_bytes());
    let bytes = bytes.chain(element.to_le_bytes()).chain(site.0.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The site that one execution would go to if there were room everywhere.
pub(crate) fn best(assessments: &[Assessment], tie: (RunId, StepIndex, u32)) -> Option<SiteId> {
    spread(assessments, 1, tie, &|_| u32::MAX).first().map(|(site, _)| *site)
}

/// The reasons, for people.
pub(crate) fn verdicts(assessments: &[Assessment], candidates: &[Candidate<'_>]) -> Vec<SiteVerdict> {
    let feasible = assessments.iter().filter(|assessment| assessment.obstacle.is_none()).count();
    let lowest = assessments
        .iter()
        .filter(|assessment| assessment.obstacle.is_none())
        .map(|assessment| assessment.score(0))
        .fold(f64::INFINITY, f64::min);
    let verdict = |(assessment, candidate): (&Assessment, &Candidate<'_>)| {
        let (reason, terms) = match &assessment.obstacle {
            Some(obstacle) => (obstacle.clone(), BTreeMap::new()),
            None if feasible == 1 => ("the only site that can run it".to_owned(), BTreeMap::new()),
            None if assessment.score(0) <= lowest => ("expected to end first".to_owned(), assessment.terms()),
            None => {
                let later = assessment.score(0) - lowest;
                (format!("expected to end {later:.1} s later than the best"), assessment.terms())
            }
        };
        SiteVerdict { site: candidate.name.clone(), feasible: assessment.obstacle.is_none(), reason, terms }
    };
    let mut verdicts: Vec<_> = assessments.iter().zip(candidates).map(verdict).collect();
    if verdicts.len() > VERDICTS_MAX {
        verdicts.sort_by_key(|verdict| !verdict.feasible);
        verdicts.truncate(VERDICTS_MAX);
    }
    verdicts
}
