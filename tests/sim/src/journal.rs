//! A journal with a power switch: what is pending is lost in a crash, what is durable is found again.

use std::collections::VecDeque;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rng::Digest;

#[derive(Debug)]
pub(crate) struct Journal<S, F, C> {
    checkpoint: Option<Vec<u8>>,
    durable: Vec<Vec<u8>>,
    pending: VecDeque<(Vec<u8>, Vec<C>)>,
    kind: PhantomData<(S, F)>,
}

impl<S, F, C> Default for Journal<S, F, C> {
    fn default() -> Self {
        Self { checkpoint: None, durable: Vec::new(), pending: VecDeque::new(), kind: PhantomData }
    }
}

impl<S: Serialize + DeserializeOwned, F: Serialize + DeserializeOwned, C> Journal<S, F, C> {
    /// Takes a step's facts, to be durable after the next [`Self::sync`], and its commands, to be carried out after it.
    pub(crate) fn append(&mut self, facts: &[F], commands: Vec<C>) {
        let bytes =
            if facts.is_empty() { Vec::new() } else { postcard::to_stdvec(facts).expect("a fact can be written") };
        self.pending.push_back((bytes, commands));
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Makes durable what is pending, and returns the commands of it.
    pub(crate) fn sync(&mut self, digest: &mut Digest) -> Vec<C> {
        let mut commands = Vec::new();
        for (bytes, of_batch) in self.pending.drain(..) {
            if !bytes.is_empty() {
                digest.add(&bytes);
                self.durable.push(bytes);
            }
            commands.extend(of_batch);
        }
        commands
    }

    /// Loses what is not durable.
    pub(crate) fn crash(&mut self) {
        self.pending.clear();
    }

    /// Loses everything.
    pub(crate) fn lose(&mut self) {
        *self = Self::default();
    }

    /// Begins anew from a snapshot.
    pub(crate) fn compact(&mut self, snapshot: &S) {
        self.checkpoint = Some(postcard::to_stdvec(snapshot).expect("a snapshot can be written"));
        self.durable.clear();
    }

    pub(crate) fn read(&self) -> (Option<S>, Vec<F>) {
        let checkpoint =
            self.checkpoint.as_ref().map(|bytes| postcard::from_bytes(bytes).expect("what was written can be read"));
        let facts = self
            .durable
            .iter()
            .flat_map(|bytes| postcard::from_bytes::<Vec<F>>(bytes).expect("what was written can be read"));
        (checkpoint, facts.collect())
    }
}
