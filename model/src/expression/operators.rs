//! What the operators and functions of expressions do with values.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use std::cmp::Ordering;
use std::sync::Arc;

use super::evaluate::Budget;
use super::functions::Function;
use super::glob::Pattern;
use crate::limits::{ELEMENTS_MAX, LISTING_FILES_MAX};
use crate::value::{FileName, FileRef, Value};

/// Applies a function whose arguments all have values. Their number was checked when the expression was compiled.
pub(super) fn apply(function: Function, arguments: Vec<Value>, budget: &mut Budget) -> Result<Value, String> {
    let mut rest = arguments.into_iter();
    let first = rest.next().unwrap_or(Value::Null);
    match function {
        Function::Not => boolean(&first, function).map(|truth| Value::Boolean(!truth)),
        Function::Negate => match first {
            Value::Integer(integer) => integer.checked_neg().map(Value::Integer).ok_or_else(overflow),
            Value::Number(number) => Ok(Value::Number(-number)),
            other => Err(refused(function, &[&other])),
        },
        Function::Add => add(first, rest.next().unwrap_or(Value::Null), budget),
        Function::Subtract | Function::Multiply | Function::Divide | Function::Remainder => {
            arithmetic(function, &first, &rest.next().unwrap_or(Value::Null))
        }
        Function::Equal => equal(&first, &rest.next().unwrap_or(Value::Null), budget).map(Value::Boolean),
        Function::NotEqual => {
            equal(&first, &rest.next().unwrap_or(Value::Null), budget).map(|same| Value::Boolean(!same))
        }
        Function::Less | Function::LessOrEqual | Function::Greater | Function::GreaterOrEqual => {
            let second = rest.next().unwrap_or(Value::Null);
            let order = order(&first, &second);
            let unordered_numbers = matches!((&first, &second), (Value::Number(_), _) | (_, Value::Number(_)));
            match order {
                Some(order) => Ok(Value::Boolean(match function {
                    Function::Less => order.is_lt(),
                    Function::LessOrEqual => order.is_le(),
                    Function::Greater => order.is_gt(),
                    _ => order.is_ge(),
                })),
                None if unordered_numbers && is_number(&first) && is_number(&second) => Ok(Value::Boolean(false)),
                None => Err(refused(function, &[&first, &second])),
            }
        }
        Function::In => contained(&first, &rest.next().unwrap_or(Value::Null), budget),
        Function::At => at(&first, &rest.next().unwrap_or(Value::Null)),
        Function::Size => size(&first, budget),
        Function::ToInteger | Function::ToNumber | Function::ToText | Function::ToBoolean => convert(function, first),
        Function::Contains
        | Function::StartsWith
        | Function::EndsWith
        | Function::Lower
        | Function::Upper
        | Function::Trim
        | Function::Replace
        | Function::Split => on_text(function, &first, &rest.collect::<Vec<_>>(), budget),
        Function::Join
        | Function::Sort
        | Function::Reverse
        | Function::Distinct
        | Function::Flatten
        | Function::Sum => super::lists::on_list(function, first, rest.next(), budget),
        Function::Minimum | Function::Maximum => {
            let values = match (&first, rest.len()) {
                (Value::List(values), 0) => Arc::clone(values),
                _ => Arc::new(std::iter::once(first).chain(rest).collect()),
            };
            super::lists::extreme(function, &values, budget)
        }
        Function::Files => files(&first, rest.next().as_ref(), budget),
        Function::Range => {
            let count = range_count(&first)?;
            budget.spend(count as usize)?;
            Ok(Value::list((0..i64::from(count)).map(Value::Integer).collect()))
        }
        Function::Conditional | Function::And | Function::Or | Function::Matches => {
            unreachable!("these decide themselves which of their arguments are evaluated")
        }
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Boolean(_) => "a boolean",
        Value::Integer(_) => "an integer",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::List(_) => "a list",
        Value::Object(_) => "an object",
        Value::File(_) => "a file",
        Value::Directory(_) => "a directory",
    }
}

pub(super) fn refused(function: Function, arguments: &[&Value]) -> String {
    let kinds: Vec<&str> = arguments.iter().map(|value| kind(value)).collect();
    format!("`{}` cannot take {}", function.shown(), kinds.join(" and "))
}

fn overflow() -> String {
    "the result is no integer of 64 bits".to_owned()
}

/// Neither JSON nor what reads a value as text has a word for infinity.
fn finite(number: f64) -> Result<Value, String> {
    if number.is_finite() { Ok(Value::Number(number)) } else { Err("the result is no finite number".to_owned()) }
}

fn is_number(value: &Value) -> bool {
    matches!(value, Value::Integer(_) | Value::Number(_))
}

fn boolean(value: &Value, function: Function) -> Result<bool, String> {
    match value {
        Value::Boolean(truth) => Ok(*truth),
        other => Err(refused(function, &[other])),
    }
}

pub(super) fn add(left: Value, right: Value, budget: &mut Budget) -> Result<Value, String> {
    match (left, right) {
        (Value::Integer(left), Value::Integer(right)) => {
            left.checked_add(right).map(Value::Integer).ok_or_else(overflow)
        }
        (Value::Number(left), Value::Number(right)) => finite(left + right),
        (Value::String(left), Value::String(right)) => {
            budget.spend(left.len() + right.len())?;
            Ok(Value::string([&*left, &*right].concat()))
        }
        (Value::List(left), Value::List(right)) => {
            budget.spend(left.len() + right.len())?;
            Ok(Value::list(left.iter().chain(right.iter()).cloned().collect()))
        }
        (left, right) => Err(refused(Function::Add, &[&left, &right])),
    }
}

fn arithmetic(function: Function, left: &Value, right: &Value) -> Result<Value, String> {
    match (left, right) {
        (Value::Integer(left), Value::Integer(right)) => {
            if *right == 0 && matches!(function, Function::Divide | Function::Remainder) {
                return Err("division by zero".to_owned());
            }
            let result = match function {
                Function::Subtract => left.checked_sub(*right),
                Function::Multiply => left.checked_mul(*right),
                Function::Divide => left.checked_div(*right),
                _ => left.checked_rem(*right),
            };
            result.map(Value::Integer).ok_or_else(overflow)
        }
        (Value::Number(left), Value::Number(right)) => match function {
            Function::Subtract => finite(left - right),
            Function::Multiply => finite(left * right),
            Function::Divide => finite(left / right),
            _ => Err("`%` needs two integers".to_owned()),
        },
        (left, right) => Err(refused(function, &[left, right])),
    }
}

/// Equality across kinds: an integer equals the number of the same value, files are equal by their bytes and name.
pub(super) fn equal(left: &Value, right: &Value, budget: &mut Budget) -> Result<bool, String> {
    budget.spend(1)?;
    match (left, right) {
        (Value::Integer(integer), Value::Number(number)) | (Value::Number(number), Value::Integer(integer)) => {
            Ok(*integer as f64 == *number && number.abs() < 9.3e18)
        }
        (Value::String(left), Value::String(right)) => {
            budget.spend(left.len() / 16)?;
            Ok(left == right)
        }
        (Value::List(left), Value::List(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (left, right) in left.iter().zip(right.iter()) {
                if !equal(left, right, budget)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::Object(left), Value::Object(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (name, left) in left.iter() {
                match right.get(name) {
                    Some(right) if equal(left, right, budget)? => {}
                    Some(_) | None => return Ok(false),
                }
            }
            Ok(true)
        }
        (Value::Directory(left), Value::Directory(right)) => Ok(left.object == right.object && left.name == right.name),
        (left, right) => Ok(left == right),
    }
}

/// The order of two values, where they have one.
pub(super) fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Integer(left), Value::Integer(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.partial_cmp(right),
        (Value::Integer(left), Value::Number(right)) => (*left as f64).partial_cmp(right),
        (Value::Number(left), Value::Integer(right)) => left.partial_cmp(&(*right as f64)),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Boolean(left), Value::Boolean(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

fn contained(value: &Value, within: &Value, budget: &mut Budget) -> Result<Value, String> {
    match within {
        Value::List(values) => {
            for candidate in values.iter() {
                if equal(value, candidate, budget)? {
                    return Ok(Value::Boolean(true));
                }
            }
            Ok(Value::Boolean(false))
        }
        Value::Object(fields) => match value {
            Value::String(name) => Ok(Value::Boolean(fields.contains_key(&**name))),
            other => Err(refused(Function::In, &[other, within])),
        },
        other => Err(refused(Function::In, &[value, other])),
    }
}

fn at(of: &Value, index: &Value) -> Result<Value, String> {
    match (of, index) {
        (Value::List(values), Value::Integer(index)) => {
            let found = usize::try_from(*index).ok().and_then(|index| values.get(index));
            found.cloned().ok_or_else(|| format!("there is no element {index} in a list of {}", values.len()))
        }
        (Value::Object(fields), Value::String(name)) => {
            fields.get(&**name).cloned().ok_or_else(|| format!("the object has no field `{name}`"))
        }
        (of, index) => Err(refused(Function::At, &[of, index])),
    }
}

/// A field of an object; of a file `name` and `size`, of a directory also `files`, how many there are in it.
pub(super) fn field(of: &Value, name: &str) -> Result<Option<Value>, String> {
    let integer = |number: u64| Some(Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)));
    match of {
        Value::Object(fields) => Ok(fields.get(name).cloned()),
        Value::File(file) => Ok(match name {
            "name" => Some(Value::string(String::from_utf8_lossy(file.name.as_bytes()))),
            "size" => integer(file.bytes),
            _ => None,
        }),
        Value::Directory(tree) => Ok(match name {
            "name" => Some(Value::string(String::from_utf8_lossy(tree.name.as_bytes()))),
            "size" => integer(tree.bytes),
            "files" => integer(tree.files),
            _ => None,
        }),
        other => Err(format!("{} has no fields", kind(other))),
    }
}

fn size(value: &Value, budget: &mut Budget) -> Result<Value, String> {
    let size = match value {
        Value::String(text) => {
            budget.spend(text.len() / 16)?;
            text.chars().count() as u64
        }
        Value::List(values) => values.len() as u64,
        Value::Object(fields) => fields.len() as u64,
        Value::File(file) => file.bytes,
        Value::Directory(tree) => tree.bytes,
        other => return Err(refused(Function::Size, &[other])),
    };
    Ok(Value::Integer(i64::try_from(size).unwrap_or(i64::MAX)))
}

fn convert(function: Function, value: Value) -> Result<Value, String> {
    const INTEGERS: std::ops::Range<f64> = -9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0;
    match (function, &value) {
        (Function::ToInteger, Value::Integer(_))
        | (Function::ToNumber, Value::Number(_))
        | (Function::ToText, Value::String(_))
        | (Function::ToBoolean, Value::Boolean(_)) => Ok(value),
        (Function::ToInteger, Value::Number(number)) if INTEGERS.contains(number) => {
            Ok(Value::Integer(number.trunc() as i64))
        }
        (Function::ToInteger, Value::String(text)) => {
            text.trim().parse().map(Value::Integer).map_err(|_| format!("{text:?} is no integer"))
        }
        (Function::ToNumber, Value::Integer(integer)) => Ok(Value::Number(*integer as f64)),
        (Function::ToNumber, Value::String(text)) => {
            text.trim().parse().map_err(|_| format!("{text:?} is no number")).and_then(finite)
        }
        (Function::ToText, Value::Integer(_) | Value::Number(_) | Value::Boolean(_)) => {
            Ok(Value::string(value.to_text_with(&|_| String::new())))
        }
        (Function::ToBoolean, Value::String(text)) => match &**text {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        (function, other) => Err(refused(function, &[other])),
    }
}

fn on_text(function: Function, first: &Value, rest: &[Value], budget: &mut Budget) -> Result<Value, String> {
    let Value::String(text) = first else { return Err(refused(function, &[first])) };
    budget.spend(text.len())?;
    let mut others = [""; 2];
    for (slot, other) in others.iter_mut().zip(rest) {
        let Value::String(other) = other else { return Err(refused(function, &[first, other])) };
        *slot = other;
    }
    let [second, third] = others;
    Ok(match function {
        Function::Contains => Value::Boolean(text.contains(second)),
        Function::StartsWith => Value::Boolean(text.starts_with(second)),
        Function::EndsWith => Value::Boolean(text.ends_with(second)),
        Function::Lower => Value::string(text.to_ascii_lowercase()),
        Function::Upper => Value::string(text.to_ascii_uppercase()),
        Function::Trim => Value::string(text.trim()),
        Function::Replace => {
            budget.spend(text.matches(second).count().saturating_mul(third.len()))?;
            Value::string(text.replace(second, third))
        }
        _ => Value::list(text.split(second).map(Value::string).collect()),
    })
}

/// The files of a directory that match a pattern, all of them without one, in the order of their paths.
fn files(directory: &Value, pattern: Option<&Value>, budget: &mut Budget) -> Result<Value, String> {
    let Value::Directory(tree) = directory else { return Err(refused(Function::Files, &[directory])) };
    let pattern = match pattern {
        None => None,
        Some(Value::String(pattern)) => Some(Pattern::new(pattern)?),
        Some(other) => return Err(refused(Function::Files, &[directory, other])),
    };
    let Some(listing) = &tree.listing else {
        return Err(if tree.files > LISTING_FILES_MAX as u64 {
            format!(
                "the directory `{}` holds {} files; at most {LISTING_FILES_MAX} can be listed",
                tree.name, tree.files
            )
        } else {
            format!("the files of the directory `{}` are not known", tree.name)
        });
    };
    let mut found = Vec::new();
    for file in listing.iter() {
        if let Some(pattern) = &pattern {
            budget.spend(pattern.cost(&file.path) as usize)?;
            if !pattern.matches(&file.path) {
                continue;
            }
        }
        let name = file.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = FileName::new(name).map_err(|error| error.to_string())?;
        let found_file = FileRef { object: file.object, bytes: file.bytes, name, executable: file.executable };
        found.push((&file.path, found_file));
    }
    budget.spend(found.len())?;
    found.sort_by(|left, right| left.0.cmp(right.0));
    Ok(Value::list(found.into_iter().map(|(_, file)| Value::File(file)).collect()))
}

pub(super) fn range_count(count: &Value) -> Result<u32, String> {
    match count {
        Value::Integer(count) => match u32::try_from(*count) {
            Ok(count) if count <= ELEMENTS_MAX => Ok(count),
            Ok(_) | Err(_) => Err(format!("`range` takes a number from 0 to {ELEMENTS_MAX}, not {count}")),
        },
        other => Err(refused(Function::Range, &[other])),
    }
}

/// What a value looks like inside a text.
pub(super) fn template_text(value: &Value) -> Result<String, String> {
    let mut holds_files = false;
    value.visit_objects(&mut |_| holds_files = true);
    if holds_files {
        return Err("a file or directory has no text; hand it over as an input of its own".to_owned());
    }
    Ok(value.to_text_with(&|_| String::new()))
}
