//! What was measured: how long work runs, how much it makes. Lost with the process; decisions made with it are facts.

use std::collections::{BTreeMap, VecDeque};

use atoll_model::id::SiteId;
use atoll_model::session::FinishedElement;
use atoll_model::workflow::{Step, Work, Workflow};

use crate::placement::{BANDWIDTH_DEFAULT, RUN_SECONDS_DEFAULT};

/// Samples kept of one kind of work: enough for a median that follows changes within a day's work.
const SAMPLES_MAX: usize = 33;
/// Of one batch, so that a large one costs little and does not drive out all others.
const SAMPLES_PER_BATCH: usize = 4;
/// Kinds of work remembered.
const KINDS_MAX: usize = 10_000;
/// Pairs of sites remembered.
const LINKS_MAX: usize = 10_000;
/// Smaller transfers measure the latency, not the bandwidth.
const MEASURED_BYTES_MIN: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Estimates {
    kinds: BTreeMap<Kind, Samples>,
    /// From a site to the bucket.
    bandwidth: BTreeMap<SiteId, f64>,
    /// From a site straight to another.
    links: BTreeMap<(SiteId, SiteId), f64>,
}

#[derive(Debug, Default)]
struct Samples {
    seconds: VecDeque<f64>,
    bytes_out: VecDeque<f64>,
    /// By the place of the output.
    outputs: Vec<VecDeque<f64>>,
    /// Elements, when such a step was last expanded.
    count: Option<u32>,
    /// Of the seconds.
    median: Option<f64>,
}

/// What is taken to run as long: the same action, or the same step of a workflow of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind(u64);

impl Kind {
    /// What ends as soon as it starts.
    const NOTHING: Self = Self(0);

    pub(crate) fn new(workflow: &Workflow, step: &Step) -> Self {
        match &step.work {
            Work::Action(action) | Work::Python(action) | Work::Container(action) | Work::Wasm(action) => {
                Self::hash([&action.name, "@", &action.version])
            }
            Work::Script(_) | Work::Import { .. } | Work::Export { .. } => {
                Self::hash([&workflow.name, "/", &step.name])
            }
            Work::Null => Self::NOTHING,
        }
    }

    /// FNV-1a. Kinds that meet in one number would only share their estimate.
    fn hash(parts: [&str; 3]) -> Self {
        let bytes = parts.iter().flat_map(|part| part.bytes());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
    }
}

impl Estimates {
    /// Takes in the outcome of a batch of executions of one step.
    pub(crate) fn learn(&mut self, workflow: &Workflow, step: &Step, elements: &[FinishedElement]) {
        let mut measured = elements
            .iter()
            .filter_map(|element| Some((element.finished_at.saturating_since(element.started_at?), element)))
            .take(SAMPLES_PER_BATCH)
            .peekable();
        if measured.peek().is_none() {
            return;
        }
        let kind = Kind::new(workflow, step);
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            self.kinds.pop_first();
        }
        let samples = self.kinds.entry(kind).or_default();
        for (duration, element) in measured {
            push(&mut samples.seconds, duration.as_secs_f64());
            samples.outputs.resize_with(samples.outputs.len().max(element.outputs.len()), VecDeque::new);
            let mut made = 0;
            for (known, value) in samples.outputs.iter_mut().zip(&element.outputs) {
                let mut bytes = 0;
                value.visit_objects(&mut |object| bytes += object.bytes);
                push(known, bytes as f64);
                made += bytes;
            }
            push(&mut samples.bytes_out, made.max(element.usage.bytes_out) as f64);
        }
        samples.median = median(&samples.seconds);
    }

    pub(crate) fn learn_transfer(&mut self, site: SiteId, bytes: u64, seconds: f64) {
        if bytes >= MEASURED_BYTES_MIN && seconds > 0.0 {
            let known = self.bandwidth.entry(site).or_insert(bytes as f64 / seconds);
            *known += (bytes as f64 / seconds - *known) / 4.0;
        }
    }

    /// So many bytes went from one site straight to another within this time, part of which may have been a wait.
    pub(crate) fn learn_link(&mut self, from: SiteId, to: SiteId, bytes: u64, seconds: f64) {
        if bytes < MEASURED_BYTES_MIN || seconds <= 0.0 {
            return;
        }
        if self.links.len() >= LINKS_MAX && !self.links.contains_key(&(from, to)) {
            self.links.pop_first();
        }
        let rate = bytes as f64 / seconds;
        let known = self.links.entry((from, to)).or_insert(rate);
        // A slow one may have waited, a fast one cannot have been faster than the link.
        *known = rate.max(*known + (rate - *known) / 8.0);
    }

    /// Whether anything was measured of the way straight from one site to another.
    pub(crate) fn knows_link(&self, from: SiteId, to: SiteId) -> bool {
        self.links.contains_key(&(from, to))
    }

    /// Bytes in a second from one site to another, by the way that was measured.
    pub(crate) fn link(&self, from: SiteId, to: SiteId) -> f64 {
        self.links.get(&(from, to)).copied().unwrap_or_else(|| self.bytes_per_second(from))
    }

    pub(crate) fn run_seconds(&self, workflow: &Workflow, step: &Step) -> f64 {
        self.measured(Kind::new(workflow, step)).unwrap_or(RUN_SECONDS_DEFAULT)
    }

    /// How long one execution of this kind keeps its room.
    pub(crate) fn seconds(&self, kind: Kind) -> f64 {
        let unknown = if kind == Kind::NOTHING { 0.0 } else { RUN_SECONDS_DEFAULT };
        self.measured(kind).unwrap_or(unknown)
    }

    fn measured(&self, kind: Kind) -> Option<f64> {
        self.kinds.get(&kind)?.median
    }

    pub(crate) fn bytes_out(&self, workflow: &Workflow, step: &Step) -> Option<f64> {
        median(&self.kinds.get(&Kind::new(workflow, step))?.bytes_out)
    }

    /// Bytes of one of the outputs of an execution of this kind.
    pub(crate) fn output_bytes(&self, kind: Kind, place: u16) -> Option<f64> {
        median(self.kinds.get(&kind)?.outputs.get(usize::from(place))?)
    }

    pub(crate) fn learn_count(&mut self, kind: Kind, count: u32) {
        // Only of what has run before: a kind is made when its first execution ends.
        if let Some(samples) = self.kinds.get_mut(&kind) {
            samples.count = Some(count);
        }
    }

    pub(crate) fn count(&self, kind: Kind) -> Option<u32> {
        self.kinds.get(&kind)?.count
    }

    pub(crate) fn bytes_per_second(&self, site: SiteId) -> f64 {
        self.bandwidth.get(&site).copied().unwrap_or(BANDWIDTH_DEFAULT)
    }
}

fn push(samples: &mut VecDeque<f64>, sample: f64) {
    if samples.len() == SAMPLES_MAX {
        samples.pop_front();
    }
    samples.push_back(sample);
}

fn median(samples: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
