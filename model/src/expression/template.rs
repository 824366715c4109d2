//! From what stands in a workflow file to expressions: plain values, `${{ … }}`, text with expressions in it, and lists
//! and objects of all of these.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use indexmap::IndexMap;

use super::compile::{Problem, compile};
use super::derive::{Deriver, Listed, Names};
use super::program::{Node as Compiled, Program};
use super::{Expression, Form};
use crate::diagnostic::Place;
use crate::id::StepIndex;
use crate::value::{Type, Value};
use crate::yaml::{Kind, Node};

/// A problem at its place in the file.
pub(crate) type Found = (Place, String, Option<String>);

/// Reads expressions from nodes.
#[derive(Debug)]
pub(crate) struct Reader<'file> {
    pub(crate) source: &'file str,
    pub(crate) names: &'file Names,
    /// The type of `item`; nothing where there is no element.
    pub(crate) item: Option<&'file Type>,
    listed: Vec<Listed>,
    pub(crate) problems: Vec<Found>,
}

impl<'file> Reader<'file> {
    pub(crate) fn new(source: &'file str, names: &'file Names, item: Option<&'file Type>) -> Self {
        Self { source, names, item, listed: Vec::new(), problems: Vec::new() }
    }

    /// The directories whose files were asked for since the last call.
    pub(crate) fn take_listed(&mut self) -> Vec<Listed> {
        std::mem::take(&mut self.listed)
    }

    /// Reads a node as an expression. Where it is wrong the problems say so, and the expression is of any type.
    pub(crate) fn expression(&mut self, node: &Node) -> Expression {
        match &node.kind {
            Kind::Scalar { text, .. } if text.contains("${{") => self.text(text, node.place),
            Kind::Scalar { .. } => literal(node.to_value(), node.place),
            Kind::Sequence(items) => {
                let items: Vec<Expression> = items.iter().map(|item| self.expression(item)).collect();
                let alike = items.windows(2).all(|pair| pair[0].r#type == pair[1].r#type);
                let element = items.first().map(|first| first.r#type.clone());
                let element = element.filter(|element| alike && *element != Type::Any).map(Box::new);
                gathered(node.place, Type::List(element), items, |items| match literals(&items) {
                    Some(values) => Form::Literal(Value::list(values)),
                    None => Form::List(items),
                })
            }
            Kind::Mapping(entries) => {
                let (names, fields): (Vec<String>, Vec<Expression>) =
                    entries.iter().map(|entry| (entry.key.clone(), self.expression(&entry.value))).unzip();
                gathered(node.place, Type::Object, fields, |fields| match literals(&fields) {
                    Some(values) => {
                        let object: IndexMap<_, _> = names.into_iter().zip(values).collect();
                        Form::Literal(Value::Object(std::sync::Arc::new(object)))
                    }
                    None => Form::Object(names.into_iter().zip(fields).collect()),
                })
            }
        }
    }

    fn text(&mut self, text: &str, place: Place) -> Expression {
        let mut parts = Vec::new();
        let mut rest = 0;
        let mut raw = place.start as usize;
        while let Some(found) = text[rest..].find("${{") {
            let start = rest + found;
            let place_of_part = self.place_of(&text[start..], &mut raw, place);
            let Some(length) = closing(&text[start + 3..]) else {
                let help = Some("an expression ends with `}}`".to_owned());
                self.problems.push((place_of_part, "this expression has no end".to_owned(), help));
                return literal(Value::Null, place);
            };
            if start > rest {
                parts.push(literal(Value::string(&text[rest..start]), place));
            }
            let source = &text[start + 3..start + 3 + length];
            parts.push(self.cel(source, place_of_part));
            rest = start + 3 + length + 2;
        }
        if text[rest..].trim().is_empty() && parts.len() == 1 {
            return parts.remove(0);
        }
        if let [before, _] = &parts[..]
            && text[rest..].trim().is_empty()
            && matches!(&before.form, Form::Literal(Value::String(text)) if text.trim().is_empty())
        {
            return parts.remove(1);
        }
        if rest < text.len() {
            parts.push(literal(Value::string(&text[rest..]), place));
        }
        for part in &parts {
            let opaque = match &part.r#type {
                Type::File | Type::Directory => true,
                Type::List(Some(element)) => matches!(**element, Type::File | Type::Directory),
                _ => false,
            };
            if opaque {
                let message = format!("{} has no text that could be put into a string", part.r#type);
                let help = Some("hand it over as an input of its own".to_owned());
                self.problems.push((part.place, message, help));
            }
        }
        gathered(place, Type::String, parts, Form::Template)
    }

    /// Where an expression stands in the file: the next `${{` from `raw` on that goes on as it does in the text.
    fn place_of(&self, text: &str, raw: &mut usize, whole: Place) -> Place {
        let line = text.lines().next().unwrap_or(text);
        let end = self.source.len().min((whole.end as usize).max(*raw));
        let Some(found) = self.source.get(*raw..end).and_then(|rest| rest.find("${{")) else { return whole };
        let start = *raw + found;
        *raw = start + 3;
        let length = line.len().min(closing(&text[3..]).map_or(3, |length| length + 5));
        place_at(self.source, whole, start, start + length)
    }

    fn cel(&mut self, source: &str, place: Place) -> Expression {
        // What stands between `${{` and `}}` begins three bytes after it, if the file has it there as it is.
        let offset = place.start as usize + 3;
        let verbatim = self.source.get(offset..offset + source.len()) == Some(source);
        let at = |problem: &Problem| {
            let start = problem.at.or_else(|| problem.text.as_deref().and_then(|text| find_word(source, text)));
            match start {
                Some(start) if verbatim => {
                    let length = problem.text.as_ref().map_or(1, String::len);
                    place_at(self.source, place, offset + start, (offset + start + length).min(offset + source.len()))
                }
                Some(_) | None => place,
            }
        };
        let compiled = match compile(source) {
            Ok(compiled) => compiled,
            Err(problem) => {
                self.problems.push((at(&problem), problem.message, problem.help));
                return literal(Value::Null, place);
            }
        };
        let mut deriver = Deriver::new(self.names, self.item);
        let r#type = deriver.node(&compiled);
        let derived = deriver.derived;
        let found = derived.problems.iter().map(|problem| (at(problem), problem.message.clone(), problem.help.clone()));
        self.problems.extend(found);
        self.listed.extend(derived.listed);
        let mut reads_steps: Vec<StepIndex> = derived.steps.values().copied().collect();
        reads_steps.sort_unstable();
        reads_steps.dedup();
        let form = match compiled {
            Compiled::Literal(value) => Form::Literal(value),
            Compiled::Input(name) => match derived.steps.values().next() {
                Some(step) => Form::Output { step: *step, output: name },
                None => Form::Input(name),
            },
            Compiled::Output { step, output } => match derived.steps.get(&step) {
                Some(step) => Form::Output { step: *step, output },
                None => Form::Literal(Value::Null),
            },
            Compiled::Item => Form::Item,
            Compiled::Index => Form::Index,
            compiled => Form::Cel(Program::new(source.trim(), derived.steps, compiled)),
        };
        Expression { form, place, r#type, reads_steps, reads_inputs: derived.inputs, reads_item: derived.item }
    }
}

impl Expression {
    /// A value that is written out.
    pub(crate) fn literal(value: Value, place: Place) -> Self {
        literal(value, place)
    }
}

fn literal(value: Value, place: Place) -> Expression {
    let r#type = type_of(&value);
    Expression {
        form: Form::Literal(value),
        place,
        r#type,
        reads_steps: Vec::new(),
        reads_inputs: Vec::new(),
        reads_item: false,
    }
}

/// The type of a value that is written out.
pub(super) fn type_of(value: &Value) -> Type {
    match value {
        Value::Null => Type::Any,
        Value::Boolean(_) => Type::Boolean,
        Value::Integer(_) => Type::Integer,
        Value::Number(_) => Type::Number,
        Value::String(_) => Type::String,
        Value::List(values) => {
            let mut types = values.iter().map(type_of);
            let first = types.next().filter(|first| *first != Type::Any);
            Type::List(first.filter(|first| types.all(|other| other == *first)).map(Box::new))
        }
        Value::Object(_) => Type::Object,
        Value::File(_) => Type::File,
        Value::Directory(_) => Type::Directory,
    }
}

fn literals(items: &[Expression]) -> Option<Vec<Value>> {
    let value = |item: &Expression| match &item.form {
        Form::Literal(value) => Some(value.clone()),
        _ => None,
    };
    items.iter().map(value).collect()
}

fn gathered(
    place: Place,
    r#type: Type,
    parts: Vec<Expression>,
    form: impl FnOnce(Vec<Expression>) -> Form,
) -> Expression {
    let mut reads_steps: Vec<StepIndex> = parts.iter().flat_map(|part| part.reads_steps.iter().copied()).collect();
    reads_steps.sort_unstable();
    reads_steps.dedup();
    let mut reads_inputs: Vec<String> = Vec::new();
    for name in parts.iter().flat_map(|part| &part.reads_inputs) {
        if !reads_inputs.contains(name) {
            reads_inputs.push(name.clone());
        }
    }
    let reads_item = parts.iter().any(|part| part.reads_item);
    Expression { form: form(parts), place, r#type, reads_steps, reads_inputs, reads_item }
}

/// How long the expression is that begins here: up to the `}}` that is neither in a string nor closes a brace of its own.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, _) => {}
        }
        at += 1;
    }
    None
}

/// Where a text stands in a source on its own, and not as a part of a longer name.
fn find_word(source: &str, text: &str) -> Option<usize> {
    let is_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = source.as_bytes();
    let whole = |at: &usize| {
        let begins = !is_name(text.as_bytes().first()) || *at == 0 || !is_name(bytes.get(at - 1));
        begins && (!is_name(text.as_bytes().last()) || !is_name(bytes.get(at + text.len())))
    };
    source.match_indices(text).map(|(at, _)| at).find(whole).or_else(|| source.find(text))
}

/// The place from one byte of the file to another, both after the beginning of `from`.
fn place_at(source: &str, from: Place, start: usize, end: usize) -> Place {
    let (Some(between), Some(_)) = (source.get(from.start as usize..start), source.get(start..end)) else {
        return from;
    };
    let line = from.line + between.matches('\n').count() as u32;
    let column = match between.rfind('\n') {
        Some(newline) => between[newline + 1..].chars().count() as u32 + 1,
        None => from.column + between.chars().count() as u32,
    };
    Place { line, column, start: start as u32, end: end as u32 }
}
