//! Values. A tree of them travels flat, each parent before its children.

use std::sync::Arc;

use atoll_model::limits::VALUE_DEPTH_MAX;
use atoll_model::value::{DirectoryRef, FileName, FileRef, ListedFile, Value};
use bytes::Bytes;
use indexmap::IndexMap;

use crate::columns::same_length;
use crate::error::WireError;
use crate::types::{digest, read_digest};
use crate::v1 as wire;
use crate::v1::value::Kind;

impl From<Value> for wire::Value {
    fn from(value: Value) -> Self {
        let mut nested = Vec::new();
        let kind = write(value, &mut nested);
        Self { kind: Some(kind), nested }
    }
}

/// The kind of this value; what is below it goes to the end of `nested`.
fn write(value: Value, nested: &mut Vec<wire::Value>) -> Kind {
    match value {
        Value::Null => Kind::Null(wire::Nothing {}),
        Value::Boolean(boolean) => Kind::Boolean(boolean),
        Value::Integer(integer) => Kind::Integer(integer),
        Value::Number(number) => Kind::Number(number),
        Value::String(text) => Kind::String(text.as_ref().to_owned()),
        Value::List(values) => {
            let values = Arc::unwrap_or_clone(values);
            let count = values.len() as u32;
            values.into_iter().for_each(|value| write_below(value, nested));
            Kind::List(count)
        }
        Value::Object(fields) => {
            let mut names = Vec::with_capacity(fields.len());
            for (name, value) in Arc::unwrap_or_clone(fields) {
                names.push(name);
                write_below(value, nested);
            }
            Kind::Object(wire::FieldNames { names })
        }
        Value::File(file) => Kind::File(wire::FileValue {
            digest: digest(file.object),
            bytes: file.bytes,
            name: Bytes::copy_from_slice(file.name.as_bytes()),
            executable: file.executable,
        }),
        Value::Directory(tree) => Kind::Directory(wire::DirectoryValue {
            digest: digest(tree.object),
            bytes: tree.bytes,
            files: tree.files,
            name: Bytes::copy_from_slice(tree.name.as_bytes()),
            listing: tree.listing.map(|files| write_listing(&files)),
        }),
    }
}

fn write_below(value: Value, nested: &mut Vec<wire::Value>) {
    let place = nested.len();
    nested.push(wire::Value::default());
    let kind = write(value, nested);
    nested[place].kind = Some(kind);
}

fn write_listing(files: &[ListedFile]) -> wire::Listing {
    let mut digests = Vec::with_capacity(files.len() * 32);
    files.iter().for_each(|file| digests.extend_from_slice(file.object.digest()));
    wire::Listing {
        paths: files.iter().map(|file| Bytes::copy_from_slice(&file.path)).collect(),
        digests: digests.into(),
        sizes: files.iter().map(|file| file.bytes).collect(),
        executable: (0..).zip(files).filter(|(_, file)| file.executable).map(|(place, _)| place).collect(),
    }
}

impl TryFrom<wire::Value> for Value {
    type Error = WireError;

    fn try_from(message: wire::Value) -> Result<Self, WireError> {
        let mut nested = message.nested.into_iter();
        let value = read(message.kind, &mut nested, 0)?;
        same_length("value.nested", 0, nested.len())?;
        Ok(value)
    }
}

fn read(kind: Option<Kind>, nested: &mut std::vec::IntoIter<wire::Value>, depth: usize) -> Result<Value, WireError> {
    if depth > VALUE_DEPTH_MAX {
        return Err(WireError::TooDeep { field: "value", limit: VALUE_DEPTH_MAX });
    }
    let below = |nested: &mut std::vec::IntoIter<wire::Value>| {
        let child = nested.next().ok_or(WireError::Missing { field: "value.nested" })?;
        same_length("value.nested.nested", 0, child.nested.len())?;
        read(child.kind, nested, depth + 1)
    };
    Ok(match kind.ok_or(WireError::UnknownKind { field: "value" })? {
        Kind::Null(wire::Nothing {}) => Value::Null,
        Kind::Boolean(boolean) => Value::Boolean(boolean),
        Kind::Integer(integer) => Value::Integer(integer),
        Kind::Number(number) => Value::Number(number),
        Kind::String(text) => Value::String(Arc::from(text)),
        Kind::List(count) => Value::list((0..count).map(|_| below(nested)).collect::<Result<_, _>>()?),
        Kind::Object(fields) => {
            let mut object = IndexMap::with_capacity(fields.names.len());
            for name in fields.names {
                let value = below(nested)?;
                if object.insert(name, value).is_some() {
                    return Err(WireError::Invalid { field: "value.object", reason: "a name stands twice".to_owned() });
                }
            }
            Value::Object(Arc::new(object))
        }
        Kind::File(file) => Value::File(FileRef {
            object: read_digest(&file.digest, "file.digest")?,
            bytes: file.bytes,
            name: read_name(&file.name, "file.name")?,
            executable: file.executable,
        }),
        Kind::Directory(tree) => Value::Directory(DirectoryRef {
            object: read_digest(&tree.digest, "directory.digest")?,
            bytes: tree.bytes,
            files: tree.files,
            name: read_name(&tree.name, "directory.name")?,
            listing: tree.listing.map(read_listing).transpose()?.map(Arc::new),
        }),
    })
}

fn read_name(name: &[u8], field: &'static str) -> Result<FileName, WireError> {
    FileName::new(name).map_err(|error| WireError::Invalid { field, reason: error.to_string() })
}

fn read_listing(message: wire::Listing) -> Result<Vec<ListedFile>, WireError> {
    let count = message.paths.len();
    same_length("listing.sizes", count, message.sizes.len())?;
    same_length("listing.digests", count * 32, message.digests.len())?;
    let columns = message.paths.iter().zip(&message.sizes).zip(message.digests.chunks_exact(32));
    let mut files = columns
        .map(|((path, bytes), object)| {
            let object = read_digest(object, "listing.digests")?;
            Ok(ListedFile { path: path.to_vec(), object, bytes: *bytes, executable: false })
        })
        .collect::<Result<Vec<_>, WireError>>()?;
    for place in message.executable {
        let outside =
            || WireError::Invalid { field: "listing.executable", reason: format!("there is no file {place}") };
        files.get_mut(place as usize).ok_or_else(outside)?.executable = true;
    }
    Ok(files)
}
