//! Verifies a stream as it comes, from its beginning to its end.

use atoll_model::value::{ObjectKind, ObjectRef};

use super::plan::{PlannedFile, PrefixReader, StreamPlan, fits};

/// A stream is not that of the object that it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CorruptStream(pub String);

/// What becomes of a stream's content. Nothing in it may be used for good before [`Receiver::finish`] says so.
pub(crate) trait Sink {
    type Error: From<CorruptStream>;

    /// All manifests are there, and sound.
    fn begin(&mut self, plan: &StreamPlan) -> Result<(), Self::Error>;
    /// The next file begins.
    fn file(&mut self, index: usize, file: &PlannedFile) -> Result<(), Self::Error>;
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// The file is whole, and what its name says.
    fn file_verified(&mut self, index: usize, file: &PlannedFile) -> Result<(), Self::Error>;
}

#[derive(Debug)]
pub(crate) struct Receiver {
    object: ObjectRef,
    phase: Phase,
    received: u64,
}

#[derive(Debug)]
enum Phase {
    Manifests(Box<PrefixReader>),
    Files { plan: Box<StreamPlan>, next: usize, open: Option<Open> },
}

#[derive(Debug)]
struct Open {
    hasher: Box<blake3::Hasher>,
    left: u64,
}

impl Receiver {
    pub(crate) fn new(object: ObjectRef) -> Self {
        let phase = match object.kind {
            ObjectKind::Tree => Phase::Manifests(Box::new(PrefixReader::new(object.id))),
            ObjectKind::File => {
                Phase::Files { plan: Box::new(StreamPlan::of_file(object.id, object.bytes)), next: 0, open: None }
            }
        };
        Self { object, phase, received: 0 }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn push<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        self.received += bytes.len() as u64;
        let mut rest = std::borrow::Cow::Borrowed(bytes);
        if let Phase::Manifests(reader) = &mut self.phase {
            let Some((plan, after)) = reader.push(bytes).map_err(|error| CorruptStream(error.to_string()))? else {
                return Ok(());
            };
            if !fits(&plan, self.object) {
                return Err(CorruptStream("the tree has another size".to_owned()).into());
            }
            rest = std::borrow::Cow::Owned(after);
            sink.begin(&plan)?;
            self.phase = Phase::Files { plan: Box::new(plan), next: 0, open: None };
        }
        self.files(&rest, sink)
    }

    fn files<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        let Phase::Files { plan, next, open } = &mut self.phase else { return Ok(()) };
        loop {
            if let Some(current) = open {
                let (taken, rest) = bytes.split_at(current.left.min(bytes.len() as u64) as usize);
                if !taken.is_empty() {
                    current.hasher.update(taken);
                    sink.bytes(taken)?;
                    current.left -= taken.len() as u64;
                    bytes = rest;
                }
                if current.left > 0 {
                    return Ok(());
                }
                let file = &plan.files[*next];
                if current.hasher.finalize().as_bytes() != file.id.digest() {
                    return Err(CorruptStream(format!("the bytes of file {} have another digest", *next + 1)).into());
                }
                sink.file_verified(*next, file)?;
                *open = None;
                *next += 1;
            }
            match plan.files.get(*next) {
                // An empty file is whole as soon as it begins, so it must not begin before its turn.
                Some(file) if !bytes.is_empty() || file.bytes == 0 => {
                    sink.file(*next, file)?;
                    *open = Some(Open { hasher: Box::default(), left: file.bytes });
                }
                Some(_) => return Ok(()),
                None if bytes.is_empty() => return Ok(()),
                None => return Err(CorruptStream("it goes on after its end".to_owned()).into()),
            }
        }
    }

    /// The stream has ended.
    pub(crate) fn finish<S: Sink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        // An empty file has no bytes that would have brought it.
        self.files(&[], sink)?;
        match &self.phase {
            Phase::Files { plan, next, open: None } if *next == plan.files.len() => Ok(()),
            Phase::Manifests(_) | Phase::Files { .. } => Err(CorruptStream("it ends too early".to_owned()).into()),
        }
    }
}
