//! Journals: a file of frames that may be torn, and what waits to be written to it.

use std::collections::VecDeque;
use std::marker::PhantomData;

use atoll_model::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rng::{Digest, Rng};

/// Length and checksum of a frame.
const HEADER_BYTES: usize = 12;

/// What a disk, or a database, holds of a journal: a checkpoint, and a frame for the facts of each step since.
#[derive(Debug)]
pub(crate) struct File<S, F> {
    checkpoint: Option<Vec<u8>>,
    frames: Vec<u8>,
    /// Checkpoints so far: places in the frames of an earlier one mean nothing any more.
    generation: u64,
    kind: PhantomData<(S, F)>,
}

/// A place behind a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    generation: u64,
    bytes: usize,
}

impl<S, F> Default for File<S, F> {
    fn default() -> Self {
        Self { checkpoint: None, frames: Vec::new(), generation: 0, kind: PhantomData }
    }
}

impl<S: Serialize + DeserializeOwned, F: Serialize + DeserializeOwned> File<S, F> {
    fn append(&mut self, payload: &[u8]) {
        self.frames.extend(header(payload));
        self.frames.extend(payload);
    }

    /// What is left of a frame when the power goes while it is written: its beginning, or all of its length with holes.
    fn tear(&mut self, payload: &[u8], rng: &mut Rng) {
        let mut frame = header(payload).to_vec();
        frame.extend(payload);
        if rng.chance(500) {
            frame.truncate(rng.below(frame.len() as u64) as usize);
        } else {
            let hole = rng.below(frame.len() as u64) as usize;
            let end = (hole + rng.between(1, 64) as usize).min(frame.len());
            frame[hole..end].iter_mut().for_each(|byte| *byte = !*byte);
        }
        self.frames.extend(frame);
    }

    /// Cuts what was torn off the end, so that it is not in the way of what follows.
    pub(crate) fn open(&mut self) {
        let whole = self.payloads(0).last().map_or(0, |(end, _)| end);
        self.frames.truncate(whole);
    }

    /// A copy of what is durable.
    pub(crate) fn copy(&self) -> Self {
        let (checkpoint, frames) = (self.checkpoint.clone(), self.frames.clone());
        Self { checkpoint, frames, generation: self.generation, kind: PhantomData }
    }

    /// Puts a copy of an earlier time in its place; whoever follows begins anew.
    pub(crate) fn restore(&mut self, copy: Self) {
        let generation = self.generation + 1;
        *self = Self { generation, ..copy };
    }

    /// Loses everything.
    pub(crate) fn lose(&mut self) {
        *self = Self::default();
    }

    /// Begins anew from a snapshot.
    pub(crate) fn compact(&mut self, snapshot: &S) {
        self.checkpoint = Some(postcard::to_stdvec(snapshot).expect("a snapshot can be written"));
        self.frames.clear();
        self.generation += 1;
    }

    pub(crate) fn read(&self) -> (Option<S>, Vec<F>) {
        let checkpoint =
            self.checkpoint.as_ref().map(|bytes| postcard::from_bytes(bytes).expect("what was written can be read"));
        let facts = self
            .payloads(0)
            .flat_map(|(_, bytes)| postcard::from_bytes::<Vec<F>>(bytes).expect("what was written can be read"));
        (checkpoint, facts.collect())
    }

    pub(crate) fn end(&self) -> Position {
        Position { generation: self.generation, bytes: self.frames.len() }
    }

    /// What came behind a place; nothing at all if there was a checkpoint since.
    pub(crate) fn read_behind(&self, place: Position) -> Option<Vec<F>> {
        (place.generation == self.generation).then(|| {
            let facts = self
                .payloads(place.bytes)
                .flat_map(|(_, bytes)| postcard::from_bytes::<Vec<F>>(bytes).expect("what was written can be read"));
            facts.collect()
        })
    }

    /// Whole frames from a place on, each with the place behind it.
    fn payloads(&self, from: usize) -> impl Iterator<Item = (usize, &[u8])> {
        let mut at = from;
        std::iter::from_fn(move || {
            let head = self.frames.get(at..at + HEADER_BYTES)?;
            let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
            let payload = self.frames.get(at + HEADER_BYTES..(at + HEADER_BYTES).checked_add(length)?)?;
            if header(payload) != *head {
                return None;
            }
            at += HEADER_BYTES + length;
            Some((at, payload))
        })
    }
}

fn header(payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut checksum = Digest::default();
    checksum.add(payload);
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4..].copy_from_slice(&checksum.0.to_le_bytes());
    header
}

/// A step that was decided, and is not durable yet.
#[derive(Debug)]
struct Decided<F, C> {
    facts: Vec<F>,
    commands: Vec<C>,
    at: Timestamp,
}

/// What may be carried out, now that all before it is durable, and what has become so.
#[derive(Debug)]
pub(crate) struct Synced<F, C> {
    pub(crate) facts: Vec<F>,
    /// With the time of the decision.
    pub(crate) commands: Vec<(Timestamp, C)>,
}

/// Steps on their way to a file.
#[derive(Debug)]
pub(crate) struct Pending<F, C> {
    steps: VecDeque<Decided<F, C>>,
}

impl<F, C> Default for Pending<F, C> {
    fn default() -> Self {
        Self { steps: VecDeque::new() }
    }
}

impl<F: Serialize + DeserializeOwned, C> Pending<F, C> {
    /// Takes a step's facts, to be durable after the next [`Self::sync`], and its commands, to be carried out after it.
    pub(crate) fn push(&mut self, facts: Vec<F>, commands: Vec<C>, at: Timestamp) {
        if !facts.is_empty() || !commands.is_empty() {
            self.steps.push_back(Decided { facts, commands, at });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn has_facts(&self) -> bool {
        self.steps.iter().any(|step| !step.facts.is_empty())
    }

    /// Makes durable what is pending.
    pub(crate) fn sync<S: Serialize + DeserializeOwned>(
        &mut self,
        file: &mut File<S, F>,
        digest: &mut Digest,
    ) -> Synced<F, C> {
        let mut synced = Synced { facts: Vec::new(), commands: Vec::new() };
        for Decided { mut facts, commands, at } in self.steps.drain(..) {
            write(&facts, file, digest);
            synced.facts.append(&mut facts);
            synced.commands.extend(commands.into_iter().map(|command| (at, command)));
        }
        synced
    }

    /// The process dies, or the power goes: of what was not synced any number of whole steps may be found again, from the
    /// first on, and behind them a part of the next. What is found again.
    pub(crate) fn crash<S: Serialize + DeserializeOwned>(
        &mut self,
        file: &mut File<S, F>,
        digest: &mut Digest,
        rng: &mut Rng,
        may_tear: bool,
    ) -> Vec<F> {
        let mut survivors = Vec::new();
        if self.steps.is_empty() {
            return survivors;
        }
        let written = rng.below(self.steps.len() as u64 + 1) as usize;
        let lost = self.steps.split_off(written);
        for Decided { mut facts, .. } in self.steps.drain(..) {
            write(&facts, file, digest);
            survivors.append(&mut facts);
        }
        if let Some(torn) = lost.iter().find(|step| !step.facts.is_empty())
            && may_tear
            && rng.chance(300)
        {
            file.tear(&postcard::to_stdvec(&torn.facts).expect("a fact can be written"), rng);
        }
        survivors
    }

    /// Forgets it all.
    pub(crate) fn clear(&mut self) {
        self.steps.clear();
    }
}

fn write<S: Serialize + DeserializeOwned, F: Serialize + DeserializeOwned>(
    facts: &Vec<F>,
    file: &mut File<S, F>,
    digest: &mut Digest,
) {
    if !facts.is_empty() {
        let bytes = postcard::to_stdvec(facts).expect("a fact can be written");
        digest.add(&bytes);
        file.append(&bytes);
    }
}
