//! Values as text: in the environment of a process, in the files that a process leaves as its outputs, and on the
//! command line.

use serde_json::Value as Json;

use super::convert::{Mismatch, from_json};
use super::{Type, Value};

impl Value {
    /// The value as a process sees it in its environment: strings as they are, numbers and booleans as text, lists and
    /// objects as JSON, files and directories as what `path` gives for them. `Null` is the empty text.
    pub fn to_text_with(&self, path: &dyn Fn(&Self) -> String) -> String {
        match self {
            Self::Null => String::new(),
            Self::Boolean(truth) => truth.to_string(),
            Self::Integer(integer) => integer.to_string(),
            Self::Number(number) => number_text(*number),
            Self::String(text) => text.to_string(),
            Self::List(_) | Self::Object(_) => self.to_json_with(&|file| Json::String(path(file))).to_string(),
            Self::File(_) | Self::Directory(_) => path(self),
        }
    }
}

/// A number so that it is read back as the same; whole ones without a fraction.
fn number_text(number: f64) -> String {
    if number.is_finite() && number.fract() == 0.0 && number.abs() < 1e15 {
        format!("{number:.0}")
    } else {
        number.to_string()
    }
}

/// Reads what a process wrote as its output, or a person on the command line; JSON for lists and objects.
///
/// # Errors
/// When it is no value of the type; files and directories are never text.
pub fn from_text(text: &str, r#type: &Type) -> Result<Value, Mismatch> {
    let mismatch = || Mismatch::new(r#type, shown(text));
    let trimmed = text.trim();
    match r#type {
        Type::String => Ok(Value::string(text)),
        Type::Integer => trimmed.parse().map(Value::Integer).map_err(|_| mismatch()),
        Type::Number => match trimmed.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::Number(number)),
            Ok(_) | Err(_) => Err(mismatch()),
        },
        Type::Boolean => match trimmed {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(mismatch()),
        },
        Type::Enum(values) if values.iter().any(|value| value == trimmed) => Ok(Value::string(trimmed)),
        Type::List(_) | Type::Object => match serde_json::from_str(text) {
            Ok(json) => from_json(&json, r#type),
            Err(error) => Err(Mismatch::new(r#type, format!("text that is not JSON ({error})"))),
        },
        Type::Any => Ok(match serde_json::from_str(text) {
            Ok(json) => from_json(&json, r#type)?,
            Err(_) => Value::string(text),
        }),
        Type::Enum(_) | Type::File | Type::Directory => Err(mismatch()),
    }
}

/// Reads the file that a process left as an output of a type other than file or directory: a trailing newline is dropped.
///
/// # Errors
/// When it is not UTF-8, or no value of the type.
pub fn from_output(bytes: &[u8], r#type: &Type) -> Result<Value, Mismatch> {
    let text = std::str::from_utf8(bytes).map_err(|_| Mismatch::new(r#type, "bytes that are not UTF-8"))?;
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    from_text(text, r#type)
}

fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() { format!("{shown:?}…") } else { format!("{shown:?}") }
}
