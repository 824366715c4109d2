//! Ids, objects, lengths of time, declared types, and the enumerations that both sides know.

use std::time::Duration;

use atoll_model::id::{AgentId, Attempt, ExecutionId, JournalId, ObjectId, RunId, StepIndex, TokenId, TransferId};
use atoll_model::limits::VALUE_DEPTH_MAX;
use atoll_model::resources::{Capacity, Confinement, Gpus, Launch, Resources, Spread};
use atoll_model::value::{ObjectKind, ObjectRef, Type};
use bytes::Bytes;

use crate::columns::{read_runs, runs, same_length};
use crate::error::{WireError, required};
use crate::v1 as wire;

macro_rules! wide_id {
    ($($id:ident),*) => {$(
        impl From<$id> for wire::Id {
            fn from(id: $id) -> Self {
                Self { high: (id.bits() >> 64) as u64, low: id.bits() as u64 }
            }
        }

        impl From<wire::Id> for $id {
            fn from(id: wire::Id) -> Self {
                Self::from_bits((u128::from(id.high) << 64) | u128::from(id.low))
            }
        }
    )*};
}

wide_id!(RunId, AgentId, JournalId, TokenId, TransferId);

/// An enumeration with the same members on both sides, and `Unspecified` on the wire alone.
macro_rules! enumeration {
    ($write:ident, $read:ident, $model:ty, $wire:ty, [$($member:ident),*]) => {
        pub(crate) fn $write(member: $model) -> $wire {
            match member {
                $(<$model>::$member => <$wire>::$member,)*
            }
        }

        pub(crate) fn $read(value: u64, field: &'static str) -> Result<$model, WireError> {
            let unknown = WireError::UnknownNumber { field, value };
            match i32::try_from(value).map(<$wire>::try_from) {
                $(Ok(Ok(<$wire>::$member)) => Ok(<$model>::$member),)*
                Ok(Ok(<$wire>::Unspecified) | Err(_)) | Err(_) => Err(unknown),
            }
        }
    };
}
pub(crate) use enumeration;

/// One of the two logs of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogStream {
    Stdout,
    Stderr,
}

impl From<LogStream> for wire::LogStream {
    fn from(stream: LogStream) -> Self {
        match stream {
            LogStream::Stdout => Self::Stdout,
            LogStream::Stderr => Self::Stderr,
        }
    }
}

impl TryFrom<wire::LogStream> for LogStream {
    type Error = WireError;

    fn try_from(stream: wire::LogStream) -> Result<Self, WireError> {
        match stream {
            wire::LogStream::Stdout => Ok(Self::Stdout),
            wire::LogStream::Stderr => Ok(Self::Stderr),
            wire::LogStream::Unspecified => Err(WireError::UnknownNumber { field: "stream", value: 0 }),
        }
    }
}

enumeration!(object_kind, read_object_kind, ObjectKind, wire::ObjectKind, [File, Tree]);

/// The number of an enumeration's field as columns hold it; a negative one is known to nobody.
pub(crate) fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

pub(crate) fn step(step: StepIndex) -> u32 {
    u32::from(step.0)
}

pub(crate) fn read_step(step: u32) -> Result<StepIndex, WireError> {
    u16::try_from(step).map(StepIndex).map_err(|_| WireError::OutOfRange { field: "step" })
}

pub(crate) fn read_attempt(attempt: u64) -> Result<Attempt, WireError> {
    u32::try_from(attempt).map(Attempt).map_err(|_| WireError::OutOfRange { field: "attempt" })
}

impl From<ExecutionId> for wire::Execution {
    fn from(execution: ExecutionId) -> Self {
        Self { run: Some(execution.run.into()), step: step(execution.step), element: execution.element }
    }
}

impl TryFrom<wire::Execution> for ExecutionId {
    type Error = WireError;

    fn try_from(message: wire::Execution) -> Result<Self, WireError> {
        Ok(Self {
            run: required(message.run, "execution.run")?.into(),
            step: read_step(message.step)?,
            element: message.element,
        })
    }
}

pub(crate) fn digest(id: ObjectId) -> Bytes {
    Bytes::copy_from_slice(id.digest())
}

pub(crate) fn read_digest(bytes: &[u8], field: &'static str) -> Result<ObjectId, WireError> {
    let digest = bytes.try_into().map_err(|_| WireError::Count { field, expected: 32, found: bytes.len() as u64 })?;
    Ok(ObjectId::from_digest(digest))
}

impl From<ObjectId> for wire::DownloadUrlRequest {
    fn from(object: ObjectId) -> Self {
        Self { digest: digest(object) }
    }
}

impl TryFrom<wire::OffersRequest> for ObjectId {
    type Error = WireError;

    fn try_from(message: wire::OffersRequest) -> Result<Self, WireError> {
        read_digest(&message.digest, "offers.digest")
    }
}

impl From<ObjectId> for wire::OffersRequest {
    fn from(object: ObjectId) -> Self {
        Self { digest: digest(object) }
    }
}

impl TryFrom<wire::OfferFailedRequest> for (ObjectId, AgentId) {
    type Error = WireError;

    fn try_from(message: wire::OfferFailedRequest) -> Result<Self, WireError> {
        let object = read_digest(&message.digest, "offer_failed.digest")?;
        Ok((object, required(message.holder, "offer_failed.holder")?.into()))
    }
}

impl From<(ObjectId, AgentId, &str)> for wire::OfferFailedRequest {
    fn from((object, holder, message): (ObjectId, AgentId, &str)) -> Self {
        Self { digest: digest(object), holder: Some(holder.into()), message: message.to_owned() }
    }
}

impl TryFrom<wire::DownloadUrlRequest> for ObjectId {
    type Error = WireError;

    fn try_from(message: wire::DownloadUrlRequest) -> Result<Self, WireError> {
        read_digest(&message.digest, "digest")
    }
}

impl From<ObjectRef> for wire::Object {
    fn from(object: ObjectRef) -> Self {
        Self { digest: digest(object.id), kind: object_kind(object.kind).into(), bytes: object.bytes }
    }
}

impl TryFrom<wire::Object> for ObjectRef {
    type Error = WireError;

    fn try_from(message: wire::Object) -> Result<Self, WireError> {
        Ok(Self {
            id: read_digest(&message.digest, "object.digest")?,
            kind: read_object_kind(number(message.kind), "object.kind")?,
            bytes: message.bytes,
        })
    }
}

/// Nothing if there are none.
pub(crate) fn objects(objects: impl Iterator<Item = ObjectRef> + Clone) -> Option<wire::Objects> {
    let mut message = wire::Objects::default();
    let mut digests = Vec::new();
    for object in objects.clone() {
        digests.extend_from_slice(object.id.digest());
        message.sizes.push(object.bytes);
    }
    message.digests = digests.into();
    message.kinds = Some(runs(objects.map(|object| object_kind(object.kind) as u64)));
    (!message.sizes.is_empty()).then_some(message)
}

/// A column of objects, exactly `count` of them. An object of a kind that is not known costs only itself.
pub(crate) fn read_objects(
    message: Option<wire::Objects>,
    count: usize,
    field: &'static str,
) -> Result<impl Iterator<Item = Result<ObjectRef, WireError>>, WireError> {
    let message = message.unwrap_or_default();
    same_length(field, count, message.sizes.len())?;
    same_length(field, count * 32, message.digests.len())?;
    let kinds = read_runs(message.kinds, count, field)?;
    let digests = message.digests;
    Ok(message.sizes.into_iter().zip(kinds).enumerate().map(move |(place, (bytes, kind))| {
        let id = read_digest(&digests[place * 32..place * 32 + 32], field)?;
        Ok(ObjectRef { id, kind: read_object_kind(kind, field)?, bytes })
    }))
}

impl From<Duration> for wire::Duration {
    fn from(duration: Duration) -> Self {
        Self { seconds: duration.as_secs(), nanos: duration.subsec_nanos() }
    }
}

impl TryFrom<wire::Duration> for Duration {
    type Error = WireError;

    fn try_from(message: wire::Duration) -> Result<Self, WireError> {
        if message.nanos < 1_000_000_000 {
            Ok(Self::new(message.seconds, message.nanos))
        } else {
            Err(WireError::OutOfRange { field: "nanos" })
        }
    }
}

impl From<Capacity> for wire::Capacity {
    fn from(capacity: Capacity) -> Self {
        let Capacity { cpu_millis, memory_bytes, disk_free_bytes, gpus, named } = capacity;
        let (gpus, named) = (gpus.into_iter().collect(), named.into_iter().collect());
        Self { cpu_millis, memory_bytes, disk_free_bytes, gpus, named }
    }
}

impl From<wire::Capacity> for Capacity {
    fn from(message: wire::Capacity) -> Self {
        let wire::Capacity { cpu_millis, memory_bytes, disk_free_bytes, gpus, named } = message;
        let (gpus, named) = (gpus.into_iter().collect(), named.into_iter().collect());
        Self { cpu_millis, memory_bytes, disk_free_bytes, gpus, named }
    }
}

impl From<Resources> for wire::Resources {
    fn from(resources: Resources) -> Self {
        let Resources { cpu_millis, memory_bytes, time, confinement, gpus, named, spread, sbatch } = resources;
        let Confinement { isolation, network, scratch_bytes } = confinement;
        let isolation = isolation.map(|profile| profile.as_str().to_owned()).unwrap_or_default();
        let (gpus, gpu_kind) = gpus.map_or((0, String::new()), |gpus| (gpus.count, gpus.kind.unwrap_or_default()));
        let (time, named) = (time.map(Into::into), named.into_iter().collect());
        let (nodes, tasks_per_node) = spread.map_or((0, 0), |spread| (spread.nodes, spread.tasks_per_node));
        let launch =
            spread.and_then(|spread| spread.launch).map(|launch| launch.as_str().to_owned()).unwrap_or_default();
        Self {
            cpu_millis,
            memory_bytes,
            time,
            isolation,
            network,
            scratch_bytes,
            gpus,
            gpu_kind,
            named,
            nodes,
            tasks_per_node,
            launch,
            sbatch,
        }
    }
}

impl TryFrom<wire::Resources> for Resources {
    type Error = WireError;

    fn try_from(message: wire::Resources) -> Result<Self, WireError> {
        let wire::Resources {
            cpu_millis,
            memory_bytes,
            time,
            isolation,
            network,
            scratch_bytes,
            gpus,
            gpu_kind,
            named,
            nodes,
            tasks_per_node,
            launch,
            sbatch,
        } = message;
        let kind = Some(gpu_kind).filter(|kind| !kind.is_empty());
        let gpus = (gpus > 0).then_some(Gpus { count: gpus, kind });
        let isolation = match isolation.as_str() {
            "" => None,
            named => Some(named.parse().map_err(|_| WireError::UnknownKind { field: "isolation" })?),
        };
        let confinement = Confinement { isolation, network, scratch_bytes };
        let (time, named) = (time.map(Duration::try_from).transpose()?, named.into_iter().collect());
        let launch = match launch.as_str() {
            "" => None,
            said => Some(
                Launch::ALL
                    .into_iter()
                    .find(|launch| launch.as_str() == said)
                    .ok_or(WireError::UnknownKind { field: "launch" })?,
            ),
        };
        let spread = (nodes > 0).then_some(Spread { nodes, tasks_per_node: tasks_per_node.max(1), launch });
        Ok(Self { cpu_millis, memory_bytes, time, confinement, gpus, named, spread, sbatch })
    }
}

impl From<Type> for wire::Type {
    fn from(declared: Type) -> Self {
        let mut lists = 0;
        let mut inner = declared;
        let (kind, texts) = loop {
            match inner {
                Type::List(Some(element)) => {
                    lists += 1;
                    inner = *element;
                }
                Type::List(None) => {
                    lists += 1;
                    break (wire::TypeKind::Unspecified, Vec::new());
                }
                Type::String => break (wire::TypeKind::String, Vec::new()),
                Type::Integer => break (wire::TypeKind::Integer, Vec::new()),
                Type::Number => break (wire::TypeKind::Number, Vec::new()),
                Type::Boolean => break (wire::TypeKind::Boolean, Vec::new()),
                Type::Enum(texts) => break (wire::TypeKind::Enum, texts),
                Type::Object => break (wire::TypeKind::Object, Vec::new()),
                Type::File => break (wire::TypeKind::File, Vec::new()),
                Type::Directory => break (wire::TypeKind::Directory, Vec::new()),
                Type::Any => break (wire::TypeKind::Any, Vec::new()),
            }
        };
        Self { lists, kind: kind.into(), texts }
    }
}

impl TryFrom<wire::Type> for Type {
    type Error = WireError;

    fn try_from(message: wire::Type) -> Result<Self, WireError> {
        let field = "type";
        let mut lists = message.lists as usize;
        if lists > VALUE_DEPTH_MAX {
            return Err(WireError::TooDeep { field, limit: VALUE_DEPTH_MAX });
        }
        let unknown = WireError::UnknownNumber { field, value: number(message.kind) };
        let inner = match wire::TypeKind::try_from(message.kind) {
            Ok(wire::TypeKind::Unspecified) if lists > 0 => {
                lists -= 1;
                Self::List(None)
            }
            Ok(wire::TypeKind::String) => Self::String,
            Ok(wire::TypeKind::Integer) => Self::Integer,
            Ok(wire::TypeKind::Number) => Self::Number,
            Ok(wire::TypeKind::Boolean) => Self::Boolean,
            Ok(wire::TypeKind::Enum) => Self::Enum(message.texts),
            Ok(wire::TypeKind::Object) => Self::Object,
            Ok(wire::TypeKind::File) => Self::File,
            Ok(wire::TypeKind::Directory) => Self::Directory,
            Ok(wire::TypeKind::Any) => Self::Any,
            Ok(wire::TypeKind::Unspecified) | Err(_) => return Err(unknown),
        };
        Ok((0..lists).fold(inner, |inner, _| Self::List(Some(Box::new(inner)))))
    }
}

pub(crate) fn object_list(objects: Vec<ObjectRef>) -> Vec<wire::Object> {
    objects.into_iter().map(Into::into).collect()
}

pub(crate) fn read_object_list(objects: Vec<wire::Object>) -> Result<Vec<ObjectRef>, WireError> {
    objects.into_iter().map(TryInto::try_into).collect()
}
