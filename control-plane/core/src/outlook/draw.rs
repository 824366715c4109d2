//! Drawing the graph: units for what has not ended, items for what they read.

use std::collections::{BTreeMap, BTreeSet};

use atoll_model::expression::{Expression, Form};
use atoll_model::id::{SiteId, StepIndex};
use atoll_model::value::{ObjectRef, Value};
use atoll_model::workflow::{Step, Workflow};

use super::sketch::{Drawing, Parts, Place, Sketch};
use crate::caches::Caches;
use crate::fact::Items;
use crate::look_ahead::{Graph, Item, Links, Site, SiteSet, Unit};

/// Parts that the elements of one step are looked at in.
const PARTS_MAX: u32 = 128;
/// Elements of a step beyond which a run is not looked at: its data is not worth a look at each of them.
const ELEMENTS_MAX: u32 = 10_000;
/// Readers of all items together, beyond which a look would take too long.
const READERS_MAX: usize = 300_000;
/// What an output is taken to have where nothing is known of any.
const OUTPUT_BYTES_DEFAULT: f64 = 1e6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    All(StepIndex),
    Unit(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// What a unit will make as one of its step's outputs.
    Output(StepIndex, u16, u32),
    Object(ObjectRef),
}

struct Builder<'a> {
    sketch: &'a Sketch<'a>,
    places: &'a [Place],
    whereabouts: &'a dyn Fn(ObjectRef) -> Vec<SiteId>,
    steps: Vec<Parts>,
    units: Vec<Unit>,
    /// Elements of each unit that have not ended.
    left: Vec<u32>,
    readers: BTreeMap<Thing, BTreeSet<Reader>>,
}

impl Sketch<'_> {
    /// The graph of everything that has not ended; nothing if it is too large for a look, or some of it has no place.
    pub(crate) fn draw(
        &self,
        places: &[Place],
        links: Links,
        whereabouts: &dyn Fn(ObjectRef) -> Vec<SiteId>,
    ) -> Option<Drawing> {
        let (steps, units) = (Vec::new(), Vec::new());
        let (left, readers) = (Vec::new(), BTreeMap::new());
        let mut builder = Builder { sketch: self, places, whereabouts, steps, units, left, readers };
        builder.add_units()?;
        builder.add_needs();
        builder.workflow().steps.iter().for_each(|step| builder.add_reads(step));
        let sites = builder.sites();
        let (items, is_guess) = builder.items()?;
        let Builder { steps, units, .. } = builder;
        Some(Drawing { graph: Graph { units, items, sites, links }, steps, is_guess })
    }
}

impl<'a> Builder<'a> {
    fn workflow(&self) -> &'a Workflow {
        self.sketch.workflow
    }

    fn place_of(&self, site: SiteId) -> Option<usize> {
        self.places.iter().position(|place| place.site == site)
    }

    fn add_units(&mut self) -> Option<()> {
        let mut counts = vec![Parts::default(); self.workflow().steps.len()];
        for index in crate::plan::in_order(self.workflow()) {
            let step = self.workflow().step(index);
            let count = self.sketch.count(step, &counts);
            let len = if self.sketch.has_ended(index) { 0 } else { count.min(PARTS_MAX) };
            if count > ELEMENTS_MAX {
                return None;
            }
            let first = u32::try_from(self.units.len()).ok()?;
            counts[index.index()] = Parts { first, len, count };
            if len > 0 {
                self.add_step(step, counts[index.index()])?;
            }
        }
        self.steps = counts;
        Some(())
    }

    fn add_step(&mut self, step: &Step, parts: Parts) -> Option<()> {
        let load = self.sketch.plan.steps[step.index.index()].load;
        let micros = (self.sketch.estimates.seconds(load.kind) * 1e6) as u64;
        let mut admitting = SiteSet::NONE;
        let admits = self.places.iter().enumerate().filter(|(_, place)| place.admits[step.index.index()]);
        admits.for_each(|(number, _)| admitting.insert(number));
        let mut left = vec![0_u32; parts.len as usize];
        // Where most of it is already.
        let mut settled = vec![None; parts.len as usize];
        for element in 0..parts.count {
            let part = (parts.unit(element)? - parts.first) as usize;
            let state = self.sketch.state(step.index);
            if state.is_none_or(|state| state.row(element).is_none() && !state.cancelled.contains(element)) {
                left[part] += 1;
            }
            if let Some(active) = state.and_then(|state| state.active.get(&element)) {
                settled[part] = self.place_of(active.site).or(settled[part]);
            }
        }
        for (left, settled) in left.iter().zip(settled) {
            let sites = settled.map_or(admitting, SiteSet::only);
            if sites.is_empty() {
                return None;
            }
            // Elements of one part run beside one another as far as there is room.
            let cpu_millis = load.cpu_millis.saturating_mul((*left).max(1));
            let beside = self.places.iter().map(|place| (place.cpu_millis / load.cpu_millis.max(1)).max(1)).max()?;
            let micros = micros * u64::from(left.div_ceil(beside));
            self.units.push(Unit { micros, cpu_millis, sites, needs: Vec::new() });
        }
        self.left.extend(left);
        Some(())
    }

    fn add_needs(&mut self) {
        for step in &self.workflow().steps {
            let parts = self.steps[step.index.index()];
            let same = element_source(step).filter(|maker| self.steps[maker.index()].count == parts.count);
            for need in step.needs.iter().filter(|need| Some(**need) != same) {
                let needed = self.steps[need.index()].units();
                parts.units().for_each(|unit| self.units[unit as usize].needs.extend(needed.clone()));
            }
            let Some(same) = same.map(|maker| self.steps[maker.index()]).filter(|maker| maker.len == parts.len) else {
                let needed = same.map_or(0..0, |maker| self.steps[maker.index()].units());
                parts.units().for_each(|unit| self.units[unit as usize].needs.extend(needed.clone()));
                continue;
            };
            // All of it ends before any of the next begins; what the next reads is what counts here.
            parts.units().zip(same.units()).for_each(|(unit, maker)| self.units[unit as usize].needs.push(maker));
        }
    }

    fn add_reads(&mut self, step: &Step) {
        if self.steps[step.index.index()].len > 0 {
            let mut by_element = false;
            for value in step.bindings.values() {
                self.read(step, value);
                by_element |= value.reads_item || matches!(value.form, Form::Item);
            }
            if let Some(foreach) = step.foreach.as_ref().filter(|_| by_element) {
                self.read_elements(step, foreach);
            }
        }
    }

    fn read(&mut self, step: &Step, expression: &Expression) {
        let all = Reader::All(step.index);
        match &expression.form {
            Form::Literal(_) | Form::Item | Form::Index => {}
            Form::Input(name) => self.read_input(name, all),
            Form::Output { step: maker, output } => self.read_output(*maker, Some(output), all),
            Form::Template(parts) | Form::List(parts) => parts.iter().for_each(|part| self.read(step, part)),
            Form::Object(fields) => fields.values().for_each(|part| self.read(step, part)),
            Form::Cel(_) => {
                expression.reads_steps.iter().for_each(|maker| self.read_output(*maker, None, all));
                expression.reads_inputs.iter().for_each(|name| self.read_input(name, all));
            }
        }
    }

    fn read_input(&mut self, name: &str, reader: Reader) {
        if let Some(value) = self.sketch.inputs.get(name) {
            self.read_value(value, reader);
        } else if let Some(import) = self.workflow().inputs.get(name).and_then(|input| input.imported_by) {
            self.read_output(import, None, reader);
        }
    }

    fn read_value(&mut self, value: &Value, reader: Reader) {
        value.visit_objects(&mut |object| {
            self.readers.entry(Thing::Object(object)).or_default().insert(reader);
        });
    }

    /// An output of a step, or all of them, of all its elements.
    fn read_output(&mut self, maker: StepIndex, output: Option<&str>, reader: Reader) {
        let count = self.steps[maker.index()].count;
        (0..count).for_each(|element| self.read_output_of(maker, element, output, reader));
    }

    fn read_output_of(&mut self, maker: StepIndex, element: u32, output: Option<&str>, reader: Reader) {
        let sketch = self.sketch;
        let detail = sketch.state(maker).and_then(|state| state.details.get(&element));
        let outputs = (0..u16::MAX).zip(sketch.workflow.step(maker).outputs.keys());
        for (place, _) in outputs.filter(|(_, name)| output.is_none_or(|output| output == *name)) {
            if let Some(value) = detail.and_then(|detail| detail.outputs.get(usize::from(place))) {
                self.read_value(value, reader);
            } else if let Some(unit) = self.steps[maker.index()].unit(element) {
                self.readers.entry(Thing::Output(maker, place, unit)).or_default().insert(reader);
            }
        }
    }

    /// What each element of a step reads for itself.
    fn read_elements(&mut self, step: &Step, foreach: &Expression) {
        let parts = self.steps[step.index.index()];
        if let Some(run) = self.sketch.run
            && let Some(Items::List(_) | Items::Input(_)) = &run.steps[step.index.index()].items
        {
            for element in 0..parts.count {
                if let (Some(value), Some(unit)) = (Caches::item(run, step.index, element), parts.unit(element)) {
                    self.read_value(&value, Reader::Unit(unit));
                }
            }
            return;
        }
        match (element_source(step), &foreach.form) {
            (Some(maker), Form::Output { output, .. }) if self.steps[maker.index()].count == parts.count => {
                for element in 0..parts.count {
                    let Some(unit) = parts.unit(element) else { continue };
                    self.read_output_of(maker, element, Some(output), Reader::Unit(unit));
                }
            }
            (_, Form::Input(name)) if matches!(self.sketch.inputs.get(name), Some(Value::List(_))) => {
                let Some(Value::List(values)) = self.sketch.inputs.get(name) else { return };
                for (element, value) in (0..).zip(values.iter()) {
                    if let Some(unit) = parts.unit(element) {
                        self.read_value(value, Reader::Unit(unit));
                    }
                }
            }
            _ => self.read(step, foreach),
        }
    }

    fn sites(&self) -> Vec<Site> {
        let mut sites: Vec<_> = self
            .places
            .iter()
            .map(|place| Site { cpu_millis: place.cpu_millis, spent_micros: 0, busy_micros: place.busy_micros })
            .collect();
        for state in self.sketch.run.iter().flat_map(|run| &run.steps) {
            for row in &state.rows {
                if let Some(place) = self.place_of(row.site).filter(|_| row.started_at.micros() > 0) {
                    let ran = row.finished_at.saturating_since(row.started_at);
                    sites[place].spent_micros += u64::try_from(ran.as_micros()).unwrap_or(0);
                }
            }
        }
        sites
    }

    /// What is read, those that are made, are, and are read by the same as one.
    fn items(&self) -> Option<(Vec<Item>, bool)> {
        let mut sizes: BTreeMap<(StepIndex, u16), Option<f64>> = BTreeMap::new();
        for thing in self.readers.keys() {
            if let Thing::Output(step, place, _) = thing {
                let load = self.sketch.plan.steps[step.index()].load;
                sizes.entry((*step, *place)).or_insert_with(|| self.sketch.estimates.output_bytes(load.kind, *place));
            }
        }
        let known: Vec<f64> = sizes.values().flatten().copied().collect();
        let is_guess = known.len() < sizes.len();
        let guess =
            if known.is_empty() { OUTPUT_BYTES_DEFAULT } else { known.iter().sum::<f64>() / known.len() as f64 };
        let mut alike: BTreeMap<(Option<u32>, SiteSet, &BTreeSet<Reader>), u64> = BTreeMap::new();
        for (thing, readers) in &self.readers {
            let (maker, at, bytes) = match thing {
                Thing::Output(step, place, unit) => {
                    let each = sizes[&(*step, *place)].unwrap_or(guess);
                    (Some(*unit), SiteSet::NONE, (each * f64::from(self.left[*unit as usize])) as u64)
                }
                Thing::Object(object) => {
                    let mut at = SiteSet::NONE;
                    let holders = (self.whereabouts)(*object);
                    holders.into_iter().filter_map(|site| self.place_of(site)).for_each(|place| at.insert(place));
                    (None, at, object.bytes)
                }
            };
            if bytes > 0 {
                *alike.entry((maker, at, readers)).or_default() += bytes;
            }
        }
        let mut items = Vec::new();
        let mut pins = 0;
        for ((maker, at, readers), bytes) in alike {
            let mut units: Vec<u32> = Vec::new();
            for reader in readers {
                match reader {
                    Reader::All(step) => units.extend(self.steps[step.index()].units()),
                    Reader::Unit(unit) => units.push(*unit),
                }
            }
            units.sort_unstable();
            units.dedup();
            pins += units.len();
            if pins > READERS_MAX {
                return None;
            }
            items.push(Item { maker, at, readers: units, bytes });
        }
        Some((items, is_guess))
    }
}

/// The step whose elements a step goes through one by one.
fn element_source(step: &Step) -> Option<StepIndex> {
    match &step.foreach.as_ref()?.form {
        Form::Output { step, .. } => Some(*step),
        Form::Literal(_)
        | Form::Input(_)
        | Form::Item
        | Form::Index
        | Form::Cel(_)
        | Form::Template(_)
        | Form::List(_)
        | Form::Object(_) => None,
    }
}
