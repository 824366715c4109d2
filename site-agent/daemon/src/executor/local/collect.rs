//! What an attempt left, taken into the store: its outputs, as its step declares them, and its two logs. Blocks.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_model::limits::{LISTING_FILES_MAX, VALUE_BYTES_MAX};
use atoll_model::session::{FailureReason, Logs, StepTemplate, TemplateOutput, TemplateWork};
use atoll_model::time::Timestamp;
use atoll_model::value::{Type, Value, from_output};
use rustix::fs::{CWD, Mode, OFlags, openat};
use site_agent_core::Event;
use site_agent_core::event::{OutputFailure, Seal, SealedOutput, SealedValue, StoredOutputs, WholeValue};
use storage_sync_engine::store::{IngestError, SealId, SiteStore, StoreError, Stored};

use super::staging::full_message;
use crate::shim::protocol::{Key, Left, LeftOutputs};
use crate::shim::{OUT, STDERR, STDOUT};

/// In the folder of outputs, those that keep the names that they were given.
const NAMED: &str = ".named";

/// What is to be taken in of one attempt.
#[derive(Debug)]
pub(super) struct Collection {
    pub key: Key,
    /// Where the attempt's shim put what it left: `out`, `stdout`, `stderr`.
    pub kept: PathBuf,
    pub template: Arc<StepTemplate>,
    pub outputs: bool,
    pub left: Left,
    pub log_bytes_max: u64,
    pub since: Timestamp,
}

struct Failure {
    reason: FailureReason,
    message: String,
}

enum Gathered {
    Sealed { seal: SealId, listed: bool },
    Whole(Value),
}

/// Everything of one attempt that was found and sealed.
struct Sealed {
    outputs: Result<Vec<Gathered>, Failure>,
    logs: [Option<SealId>; 2],
}

/// Takes in what several attempts left: all of it is sealed first, which `tell` hears at once, and then made durable
/// together. Answers with the seals of each.
pub(super) fn take_in(
    store: &SiteStore,
    collections: &[Collection],
    tell: &dyn Fn(Vec<Event>),
) -> Vec<(Key, Vec<SealId>)> {
    let mut events = Vec::new();
    let sealed: Vec<Sealed> = collections.iter().map(|collection| collection.seal(store, &mut events)).collect();
    if !events.is_empty() {
        tell(events);
    }
    let of_each =
        collections.iter().zip(&sealed).map(|(collection, sealed)| (collection.key, sealed.seals().collect()));
    let of_each: Vec<(Key, Vec<SealId>)> = of_each.collect();
    let seals: Vec<SealId> = of_each.iter().flat_map(|(_, seals)| seals).copied().collect();
    let mut committed = store.commit_all(&seals).into_iter();
    let events = collections
        .iter()
        .zip(sealed)
        .map(|(collection, sealed)| Event::OutputsStored {
            execution: collection.key.execution,
            attempt: collection.key.attempt,
            result: collection.finish(store, sealed, &mut committed),
        })
        .collect();
    tell(events);
    of_each
}

impl Sealed {
    fn seals(&self) -> impl Iterator<Item = SealId> {
        let outputs = self.outputs.iter().flatten().filter_map(|one| match one {
            Gathered::Sealed { seal, .. } => Some(*seal),
            Gathered::Whole(_) => None,
        });
        outputs.chain(self.logs.into_iter().flatten())
    }
}

impl Collection {
    /// Nothing was left and nothing is to be there: then the store has no part in it.
    pub(super) fn is_empty(&self) -> bool {
        !self.left.is_kept() && (!self.outputs || self.template.outputs.is_empty())
    }

    /// What it left, if the store has no part in it: nothing, or values that its shim has told. What is wrong with it is found
    /// when it is taken in as everything else.
    pub(super) fn values(&self) -> Option<StoredOutputs> {
        let declared = if self.outputs { self.template.outputs.as_slice() } else { &[] };
        if self.left.is_kept() || declared.iter().any(is_stored) {
            return None;
        }
        let outputs = declared.iter().map(|output| from_output(self.told(output)?, &output.r#type).ok());
        let outputs = outputs.collect::<Option<Vec<Value>>>()?;
        Some(StoredOutputs { outputs, logs: Logs::default(), bytes_out: 0 })
    }

    fn told(&self, output: &TemplateOutput) -> Option<&[u8]> {
        let LeftOutputs::Told(told) = &self.left.outputs else { return None };
        told.iter().find(|told| told.name == output.name.as_bytes()).map(|told| told.content.as_slice())
    }

    fn seal(&self, store: &SiteStore, events: &mut Vec<Event>) -> Sealed {
        let mut named = Vec::with_capacity(self.template.outputs.len());
        let outputs = if self.outputs { self.gather(store, &mut named) } else { Ok(Vec::new()) };
        if outputs.is_ok() && named.iter().any(|output| output.seal.is_some()) {
            let Key { execution, attempt } = self.key;
            events.push(Event::OutputsSealed { execution, attempt, outputs: named });
        }
        // The logs count even if the outputs do not, and more than ever when somebody wants to know why.
        let logs = [(STDOUT, self.left.stdout), (STDERR, self.left.stderr)].map(|(name, there)| {
            let path = self.kept.join(name);
            let claim = format!("{}/{name}", self.key.folder());
            let sealed = if there { seal_log(store, &claim, &path, self.log_bytes_max) } else { Ok(None) };
            sealed.unwrap_or_else(|message| {
                // The outcome counts without its log.
                tracing::error!(path = %path.display(), message, "a log could not be taken into the store");
                None
            })
        });
        Sealed { outputs, logs }
    }

    fn gather(&self, store: &SiteStore, named: &mut Vec<SealedOutput>) -> Result<Vec<Gathered>, Failure> {
        self.template
            .outputs
            .iter()
            .map(|output| {
                let (one, value) = self.gather_one(store, output)?;
                let seal = match &one {
                    Gathered::Sealed { seal, .. } => Some(Seal(seal.0)),
                    Gathered::Whole(_) => None,
                };
                named.push(SealedOutput { name: output.name.clone(), seal, value });
                Ok(one)
            })
            .collect()
    }

    /// `committed` answers for each seal, in the order in which [`Sealed::seals`] names them.
    #[expect(clippy::result_large_err, reason = "it goes into the event as it is")]
    fn finish(
        &self,
        store: &SiteStore,
        sealed: Sealed,
        committed: &mut impl Iterator<Item = Result<Stored, IngestError>>,
    ) -> Result<StoredOutputs, OutputFailure> {
        let mut bytes_out = 0;
        let mut next = || match committed.next() {
            Some(Ok(stored)) => {
                bytes_out += stored.object.bytes;
                Ok(stored)
            }
            Some(Err(error)) => Err(error),
            None => Err(IngestError::Missing("the answer of the store".to_owned())),
        };
        let outputs = sealed.outputs.and_then(|gathered| {
            let mut outputs = Vec::with_capacity(gathered.len());
            let mut failure = None;
            // Every seal has its answer, whatever became of those before it.
            for one in gathered {
                match one {
                    Gathered::Whole(value) => outputs.push(value),
                    Gathered::Sealed { listed, .. } => {
                        let stored = next().and_then(|stored| match listed {
                            true => with_listing(store, stored).map_err(IngestError::Store),
                            false => Ok(stored),
                        });
                        match stored {
                            Ok(stored) => outputs.push(stored.value),
                            Err(error) => failure = failure.or(Some(of_ingest_error(&error))),
                        }
                    }
                }
            }
            failure.map_or(Ok(outputs), Err)
        });
        let [stdout, stderr] = sealed.logs.map(|log| match log.map(|_| next()) {
            Some(Ok(stored)) => Some(stored.object),
            Some(Err(error)) => {
                tracing::error!(execution = %self.key.execution, error = full_message(&error), "a log could not be kept");
                None
            }
            None => None,
        });
        let logs = Logs { stdout, stderr };
        match outputs {
            Ok(outputs) => Ok(StoredOutputs { outputs, logs, bytes_out }),
            Err(Failure { reason, message }) => Err(OutputFailure { reason, message, logs }),
        }
    }

    /// Where an output stands: under its name; or, of an action in Python, alone in a folder of that name under its own.
    fn path_of(&self, output: &TemplateOutput) -> PathBuf {
        let out = self.kept.join(OUT);
        let only_entry = || {
            let named = out.join(NAMED);
            let folder = named.join(&output.name);
            // No link leads to what somebody else has.
            let is_folder = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
            let mut entries =
                (is_folder(&named) && is_folder(&folder)).then(|| fs::read_dir(&folder).ok()).flatten()?;
            Some(entries.next()?.ok()?.path()).filter(|_| entries.next().is_none())
        };
        let may_be_named = is_stored(output) && matches!(self.template.work, TemplateWork::Python { .. });
        may_be_named.then(only_entry).flatten().unwrap_or_else(|| out.join(&output.name))
    }

    fn gather_one(
        &self,
        store: &SiteStore,
        output: &TemplateOutput,
    ) -> Result<(Gathered, Option<SealedValue>), Failure> {
        if let Some(content) = self.told(output) {
            let value = value_of(content, output)?;
            return Ok((Gathered::Whole(value.clone()), Some(SealedValue::Whole(Box::new(WholeValue(value))))));
        }
        let path = self.path_of(output);
        let is_sealed = match fs::symlink_metadata(&path) {
            Ok(found) => {
                check_kind(output, &found)?;
                is_stored(output) || found.is_dir()
            }
            // It may have been sealed before the agent was killed: then the store knows it still.
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(invalid(output, &format!("cannot be read: {error}"))),
        };
        if is_sealed {
            let claim = format!("{}/{OUT}/{}", self.key.folder(), output.name);
            let sealed = match store.seal(&claim, &path) {
                Ok(sealed) => sealed,
                Err(IngestError::Missing(_)) if output.optional => return Ok((Gathered::Whole(Value::Null), None)),
                Err(IngestError::Missing(_)) => {
                    let message = format!("the output {} is missing", output.name);
                    return Err(Failure { reason: FailureReason::MissingOutput, message });
                }
                Err(error) => return Err(of_ingest(output, &error)),
            };
            let name = sealed.name.as_bytes().to_vec();
            let value = if sealed.directory {
                SealedValue::Directory { name }
            } else {
                SealedValue::File { name, bytes: sealed.bytes }
            };
            return Ok((Gathered::Sealed { seal: sealed.seal, listed: output.listed }, Some(value)));
        }
        let value = read_value(&path, output)?;
        Ok((Gathered::Whole(value.clone()), Some(SealedValue::Whole(Box::new(WholeValue(value))))))
    }
}

/// Whether it goes into the store, whatever it is.
pub(super) const fn is_stored(output: &TemplateOutput) -> bool {
    matches!(output.r#type, Type::File | Type::Directory)
}

/// Adds the files of a directory where an expression asks for them.
pub(super) fn with_listing(store: &SiteStore, stored: Stored) -> Result<Stored, StoreError> {
    let Value::Directory(mut tree) = stored.value else { return Ok(stored) };
    if tree.files > LISTING_FILES_MAX as u64 {
        // Part of a listing would be taken for all of it.
        return Ok(Stored { value: Value::Directory(tree), ..stored });
    }
    tree.listing = Some(Arc::new(store.listing(tree.object, LISTING_FILES_MAX)?));
    Ok(Stored { value: Value::Directory(tree), ..stored })
}

fn check_kind(output: &TemplateOutput, found: &fs::Metadata) -> Result<(), Failure> {
    let is = match found.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_file() => "a file",
        kind if kind.is_symlink() => "a symbolic link",
        _ => "neither a file nor a directory",
    };
    let (fits, wanted) = match output.r#type {
        Type::Directory => (found.is_dir(), "a directory"),
        Type::Any => (found.is_dir() || found.is_file(), "a file or a directory"),
        Type::String
        | Type::Integer
        | Type::Number
        | Type::Boolean
        | Type::Enum(_)
        | Type::List(_)
        | Type::Object
        | Type::File => (found.is_file(), "a file"),
    };
    if fits { Ok(()) } else { Err(invalid(output, &format!("is {is}, and {wanted} is declared"))) }
}

fn read_value(path: &Path, output: &TemplateOutput) -> Result<Value, Failure> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let read = || -> io::Result<Vec<u8>> {
        let file = File::from(openat(CWD, path, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(VALUE_BYTES_MAX as u64 + 2).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| invalid(output, &format!("cannot be read: {error}")))?;
    if bytes.len() > VALUE_BYTES_MAX + 1 {
        return Err(invalid(output, &format!("is a value of more than {VALUE_BYTES_MAX} bytes: declare it as a file")));
    }
    value_of(&bytes, output)
}

fn value_of(bytes: &[u8], output: &TemplateOutput) -> Result<Value, Failure> {
    from_output(bytes, &output.r#type).map_err(|mismatch| invalid(output, &mismatch.to_string()))
}

/// Seals a log; one that is too long loses its middle, and says so there.
fn seal_log(store: &SiteStore, claim: &str, path: &Path, bytes_max: u64) -> Result<Option<SealId>, String> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.len() > bytes_max => {
            shorten(path, found.len(), bytes_max).map_err(|error| error.to_string())?;
        }
        Ok(_) => {}
        // It may have been sealed before the agent was killed: then the store knows it still.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.to_string()),
    }
    match store.seal(claim, path) {
        Ok(sealed) => Ok(Some(sealed.seal)),
        Err(IngestError::Missing(_)) => Ok(None),
        Err(error) => Err(full_message(&error)),
    }
}

fn shorten(path: &Path, length: u64, bytes_max: u64) -> io::Result<()> {
    let mut long = File::open(path)?;
    let short_path = path.with_extension("short");
    let mut short = File::create(&short_path)?;
    let head = bytes_max / 2;
    let tail = bytes_max - head;
    io::copy(&mut (&mut long).take(head), &mut short)?;
    writeln!(short, "\n[{} bytes of this log were dropped here]", length - head - tail)?;
    long.seek(SeekFrom::Start(length - tail))?;
    io::copy(&mut long, &mut short)?;
    fs::rename(short_path, path)
}

fn invalid(output: &TemplateOutput, what: &str) -> Failure {
    Failure { reason: FailureReason::InvalidOutput, message: format!("the output {} {what}", output.name) }
}

fn of_ingest(output: &TemplateOutput, error: &IngestError) -> Failure {
    let failure = of_ingest_error(error);
    Failure { message: format!("the output {}: {}", output.name, failure.message), ..failure }
}

fn of_ingest_error(error: &IngestError) -> Failure {
    let reason = match error {
        IngestError::Missing(_) => FailureReason::MissingOutput,
        IngestError::Refused { .. } | IngestError::Changed(_) => FailureReason::InvalidOutput,
        IngestError::Store(StoreError::NoSpace { .. }) => FailureReason::NoSpace,
        IngestError::Store(_) => FailureReason::Agent,
    };
    Failure { reason, message: full_message(error) }
}

#[cfg(test)]
mod tests {
    use atoll_model::id::{Attempt, ExecutionId, RunId, StepIndex};
    use atoll_model::resources::Resources;
    use atoll_model::session::{Origin, TemplateWork};
    use atoll_model::workflow::{OnDisconnect, StartMode};

    use super::*;
    use crate::shim::protocol::SmallOutput;

    #[test]
    fn what_was_told_and_is_as_declared_is_taken_with_the_end() {
        let values_of = |declared: &[(&str, Type)], outputs: bool, left: Left| {
            let output = |(name, r#type): &(&str, Type)| TemplateOutput {
                name: (*name).to_owned(),
                r#type: r#type.clone(),
                optional: false,
                listed: false,
            };
            let template = StepTemplate {
                run: RunId::from_bits(1),
                step: StepIndex(0),
                step_name: "s".to_owned(),
                workflow: "w".to_owned(),
                work: TemplateWork::Script(String::new()),
                resources: Resources::default(),
                outputs: declared.iter().map(output).collect(),
                bindings: Vec::new(),
                environment: Vec::new(),
                start: StartMode::AtLeastOnce,
                on_disconnect: OnDisconnect::Finish,
                priority: 0,
                origin: Origin::default(),
            };
            let execution = ExecutionId { run: template.run, step: template.step, element: 0 };
            let key = Key { execution, attempt: Attempt::FIRST };
            let (kept, template, since) = (PathBuf::new(), Arc::new(template), Timestamp::ZERO);
            let collection = Collection { key, kept, template, outputs, left, log_bytes_max: 1 << 20, since };
            collection.values().map(|stored| stored.outputs)
        };
        let told = |name: &str, content: &str| SmallOutput { name: name.into(), content: content.into() };
        let outputs = LeftOutputs::Told(vec![told("count", "7\n"), told("undeclared", "x")]);
        let left = Left { outputs, ..Left::default() };
        let count = ("count", Type::Integer);
        assert_eq!(values_of(&[], true, Left::default()), Some(Vec::new()));
        assert_eq!(values_of(std::slice::from_ref(&count), true, left.clone()), Some(vec![Value::Integer(7)]));
        // Nothing counts of what has failed.
        assert_eq!(values_of(&[("missing", Type::Integer)], false, left.clone()), Some(Vec::new()));
        for other in [("missing", Type::Integer), ("count", Type::Boolean), ("count", Type::File)] {
            let declared = [count.clone(), other];
            assert_eq!(values_of(&declared, true, left.clone()), None, "{declared:?}");
        }
        let declared = std::slice::from_ref(&count);
        assert_eq!(values_of(declared, true, Left { stderr: true, ..left }), None, "a log is an object");
        let kept = Left { outputs: LeftOutputs::Kept, ..Left::default() };
        assert_eq!(values_of(declared, true, kept), None, "it was not told");
    }
}
