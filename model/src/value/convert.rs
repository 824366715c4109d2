//! Values from and to JSON, with the declared type as the guide.
//!
//! A file is `{"kind": "file", "object": "b3:…", "bytes": 12, "name": "a.csv"}`, a directory the same with
//! `"kind": "directory"` and `"files"`. A file that may be run has `"executable": true` too.

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::{DirectoryRef, FileName, FileRef, Type, Value};
use crate::id::ObjectId;

/// A value that is not what was declared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}expected {expected}, found {found}", if path.is_empty() { String::new() } else { format!("at {path}: ") })]
pub struct Mismatch {
    /// Where in a list or object, as `[2].name`; empty at its top.
    pub path: String,
    pub expected: String,
    pub found: String,
}

impl Mismatch {
    pub(super) fn new(r#type: &Type, found: impl Into<String>) -> Self {
        Self { path: String::new(), expected: r#type.to_string(), found: found.into() }
    }

    fn inside(mut self, step: &str) -> Self {
        self.path.insert_str(0, step);
        self
    }
}

/// Reads JSON as a value of a type.
///
/// # Errors
/// When it is of another type. `null` is a value of [`Type::Any`] only.
pub fn from_json(json: &Json, r#type: &Type) -> Result<Value, Mismatch> {
    let mismatch = || Mismatch::new(r#type, described(json));
    match (r#type, json) {
        (Type::Any, _) => Ok(any_from_json(json)),
        (Type::String, Json::String(text)) => Ok(Value::string(text)),
        (Type::Integer, Json::Number(number)) => integer(number).map(Value::Integer).ok_or_else(mismatch),
        (Type::Number, Json::Number(number)) => number.as_f64().map(Value::Number).ok_or_else(mismatch),
        (Type::Boolean, Json::Bool(truth)) => Ok(Value::Boolean(*truth)),
        (Type::Enum(values), Json::String(text)) if values.contains(text) => Ok(Value::string(text)),
        (Type::List(element), Json::Array(items)) => {
            let element = element.as_deref().unwrap_or(&Type::Any);
            let values = items.iter().enumerate().map(|(index, item)| {
                from_json(item, element).map_err(|mismatch| mismatch.inside(&format!("[{index}]")))
            });
            Ok(Value::list(values.collect::<Result<_, _>>()?))
        }
        (Type::Object, Json::Object(_)) => Ok(any_from_json(json)),
        (Type::File, Json::Object(fields)) => file(fields).map(Value::File).ok_or_else(mismatch),
        (Type::Directory, Json::Object(fields)) => directory(fields).map(Value::Directory).ok_or_else(mismatch),
        (
            Type::String
            | Type::Integer
            | Type::Number
            | Type::Boolean
            | Type::Enum(_)
            | Type::List(_)
            | Type::Object
            | Type::File
            | Type::Directory,
            _,
        ) => Err(mismatch()),
    }
}

fn integer(number: &serde_json::Number) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    number.as_i64().or_else(|| {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && float.abs() <= EXACT_MAX).then_some(float as i64)
    })
}

fn any_from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Boolean(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer),
            None => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::string(text),
        Json::Array(items) => Value::list(items.iter().map(any_from_json).collect()),
        Json::Object(fields) => {
            file(fields).map(Value::File).or_else(|| directory(fields).map(Value::Directory)).unwrap_or_else(|| {
                Value::Object(Arc::new(
                    fields.iter().map(|(name, field)| (name.clone(), any_from_json(field))).collect(),
                ))
            })
        }
    }
}

fn reference(fields: &Map<String, Json>, kind: &str) -> Option<(ObjectId, u64, FileName)> {
    if fields.get("kind")?.as_str()? != kind {
        return None;
    }
    let object = fields.get("object")?.as_str()?.parse().ok()?;
    let name = FileName::new(fields.get("name")?.as_str()?.as_bytes()).ok()?;
    Some((object, fields.get("bytes")?.as_u64()?, name))
}

fn file(fields: &Map<String, Json>) -> Option<FileRef> {
    let (object, bytes, name) = reference(fields, "file")?;
    let executable = fields.get("executable").map_or(Some(false), Json::as_bool)?;
    Some(FileRef { object, bytes, name, executable })
}

fn directory(fields: &Map<String, Json>) -> Option<DirectoryRef> {
    let (object, bytes, name) = reference(fields, "directory")?;
    let files = fields.get("files").map_or(Some(0), Json::as_u64)?;
    Some(DirectoryRef { object, bytes, files, name, listing: None })
}

/// What a JSON value is, in words.
fn described(json: &Json) -> String {
    match json {
        Json::Null => "null".to_owned(),
        Json::Bool(truth) => format!("the boolean {truth}"),
        Json::Number(number) => format!("the number {number}"),
        Json::String(text) => {
            let shown: String = text.chars().take(40).collect();
            let more = if shown.len() < text.len() { "…" } else { "" };
            format!("the text {shown:?}{more}")
        }
        Json::Array(items) if items.len() == 1 => "a list of 1".to_owned(),
        Json::Array(items) => format!("a list of {}", items.len()),
        Json::Object(fields) => match fields.get("kind").and_then(Json::as_str) {
            Some(kind @ ("file" | "directory")) => format!("a {kind}"),
            Some(_) | None => "an object".to_owned(),
        },
    }
}

impl Value {
    /// The value as people and programs see it.
    pub fn to_json(&self) -> Json {
        self.to_json_with(&|file| match file {
            Self::File(file) => {
                let mut fields = json!({
                    "kind": "file",
                    "object": file.object.to_string(),
                    "bytes": file.bytes,
                    "name": String::from_utf8_lossy(file.name.as_bytes()),
                });
                if file.executable {
                    fields["executable"] = Json::Bool(true);
                }
                fields
            }
            Self::Directory(tree) => json!({
                "kind": "directory",
                "object": tree.object.to_string(),
                "bytes": tree.bytes,
                "files": tree.files,
                "name": String::from_utf8_lossy(tree.name.as_bytes()),
            }),
            Self::Null
            | Self::Boolean(_)
            | Self::Integer(_)
            | Self::Number(_)
            | Self::String(_)
            | Self::List(_)
            | Self::Object(_) => unreachable!("only files and directories are asked for"),
        })
    }

    /// The value as JSON, with what `reference` gives for each file and directory.
    pub fn to_json_with(&self, reference: &dyn Fn(&Self) -> Json) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Boolean(truth) => Json::Bool(*truth),
            Self::Integer(integer) => Json::from(*integer),
            Self::Number(number) => Json::from(*number),
            Self::String(text) => Json::String(text.to_string()),
            Self::List(values) => values.iter().map(|value| value.to_json_with(reference)).collect(),
            Self::Object(fields) => {
                Json::Object(fields.iter().map(|(name, field)| (name.clone(), field.to_json_with(reference))).collect())
            }
            Self::File(_) | Self::Directory(_) => reference(self),
        }
    }

    /// Takes the value as one of a declared type: an integer becomes a number where one is asked for.
    ///
    /// # Errors
    /// When it is of another type. `Null`, an output that is not there, is of every type.
    pub fn conform(self, r#type: &Type) -> Result<Self, Mismatch> {
        let fits = match (&self, r#type) {
            (Self::Null, _)
            | (_, Type::Any)
            | (Self::String(_), Type::String)
            | (Self::Integer(_), Type::Integer)
            | (Self::Number(_), Type::Number)
            | (Self::Boolean(_), Type::Boolean)
            | (Self::Object(_), Type::Object)
            | (Self::File(_), Type::File)
            | (Self::Directory(_), Type::Directory)
            | (Self::List(_), Type::List(None)) => true,
            (Self::String(text), Type::Enum(values)) => values.iter().any(|value| **value == **text),
            (Self::Integer(integer), Type::Number) => return Ok(Self::Number(*integer as f64)),
            (Self::List(values), Type::List(Some(element))) => return conform_list(values, element),
            (
                Self::Boolean(_)
                | Self::Integer(_)
                | Self::Number(_)
                | Self::String(_)
                | Self::List(_)
                | Self::Object(_)
                | Self::File(_)
                | Self::Directory(_),
                _,
            ) => false,
        };
        if fits { Ok(self) } else { Err(Mismatch::new(r#type, described(&self.to_json()))) }
    }
}

fn conform_list(values: &Arc<Vec<Value>>, element: &Type) -> Result<Value, Mismatch> {
    let unchanged = |value: &Value| match (value, element) {
        (Value::Integer(_), Type::Number) | (Value::List(_), Type::List(Some(_))) => false,
        (value, element) => value.clone().conform(element).is_ok(),
    };
    if values.iter().all(unchanged) {
        return Ok(Value::List(Arc::clone(values)));
    }
    let conformed = values.iter().enumerate().map(|(index, value)| {
        value.clone().conform(element).map_err(|mismatch| mismatch.inside(&format!("[{index}]")))
    });
    Ok(Value::list(conformed.collect::<Result<_, _>>()?))
}
