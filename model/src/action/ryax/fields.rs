//! Fields of the metadata of Ryax, each known by its path, with the limits of its schema.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use indexmap::IndexMap;

use super::{RyaxKind, RyaxType, output};
use crate::reading::{Fields, Report};
use crate::suggestion::did_you_mean;
use crate::value::Value;
use crate::workflow::{ActionInput, Output};
use crate::yaml::{Kind, Node};

/// Where something stands in the document, as `spec.inputs[2].name`.
#[derive(Debug, Clone)]
pub(super) struct At(String);

impl fmt::Display for At {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl At {
    pub(super) const fn top() -> Self {
        Self(String::new())
    }

    pub(super) fn key(&self, name: &str) -> Self {
        Self(if self.0.is_empty() { name.to_owned() } else { format!("{self}.{name}") })
    }

    fn item(&self, index: usize) -> Self {
        Self(format!("{self}[{index}]"))
    }

    /// What stands here, in words.
    fn what(&self) -> String {
        if self.0.is_empty() { "the metadata".to_owned() } else { format!("`{self}`") }
    }

    /// A mapping with these fields and no others.
    pub(super) fn mapping<'node>(
        &self,
        report: &mut Report,
        node: &'node Node,
        known: &[&str],
        required: &[&str],
    ) -> Option<Fields<'node>> {
        let fields = report.fields(node, &self.what(), known);
        if !matches!(node.kind, Kind::Mapping(_)) {
            return None;
        }
        for name in required.iter().filter(|name| fields.get(name).is_none()) {
            report.error(node.place, format!("`{}` is missing", self.key(name)), None);
        }
        Some(fields)
    }

    /// A text of so many characters. What YAML takes for a number or a truth is none.
    pub(super) fn text<'node>(
        &self,
        report: &mut Report,
        node: &'node Node,
        range: RangeInclusive<usize>,
    ) -> Option<&'node str> {
        let Kind::Scalar { text, .. } = &node.kind else {
            report.error(node.place, format!("`{self}` is a text, not {}", node.described()), None);
            return None;
        };
        if !matches!(node.to_value(), Value::String(_)) {
            let help = (!text.is_empty()).then(|| format!("put it in quotes: \"{}\"", text.escape_debug()));
            let message = format!("`{self}` is a text, and {} is none for YAML", node.described());
            report.error(node.place, message, help);
            return None;
        }
        let (count, (low, high)) = (text.chars().count(), range.clone().into_inner());
        if !range.contains(&count) {
            let message = format!("`{self}` has {low} to {high} characters, not {count}");
            report.error(node.place, message, None);
            return None;
        }
        Some(text)
    }

    fn list<'node>(&self, report: &mut Report, node: Option<&'node Node>, count_max: usize) -> &'node [Node] {
        let Some(node) = node.filter(|node| !node.is_null()) else { return &[] };
        let Kind::Sequence(items) = &node.kind else {
            report.error(node.place, format!("`{self}` is a list, not {}", node.described()), None);
            return &[];
        };
        if items.len() > count_max {
            report.error(node.place, format!("`{self}` has {} elements, more than {count_max}", items.len()), None);
        }
        items
    }

    pub(super) fn texts(
        &self,
        report: &mut Report,
        node: Option<&Node>,
        count_max: usize,
        range: RangeInclusive<usize>,
    ) -> Vec<String> {
        let items = self.list(report, node, count_max).iter().enumerate();
        items
            .filter_map(|(index, item)| self.item(index).text(report, item, range.clone()).map(str::to_owned))
            .collect()
    }
}

/// One input or output.
struct Declared<'node> {
    at: At,
    name: String,
    r#type: RyaxType,
    optional: bool,
    fields: Fields<'node>,
}

/// Reads `spec.inputs`: as those of a step, and as Ryax has them.
pub(super) fn read_inputs(
    report: &mut Report,
    node: Option<&Node>,
) -> (IndexMap<String, ActionInput>, IndexMap<String, RyaxType>) {
    let (mut inputs, mut types) = (IndexMap::new(), IndexMap::new());
    for declared in read_declared(report, node, "inputs", usize::MAX, &["default_value"]) {
        let said = declared.fields.get("default_value").and_then(|node| read_default(report, node, &declared));
        let default = said.or(declared.optional.then_some(Value::Null));
        inputs.insert(declared.name.clone(), ActionInput { r#type: declared.r#type.as_input(), default });
        types.insert(declared.name, declared.r#type);
    }
    (inputs, types)
}

/// Reads `spec.outputs`.
pub(super) fn read_outputs(
    report: &mut Report,
    node: Option<&Node>,
    kind: RyaxKind,
) -> (IndexMap<String, Output>, IndexMap<String, RyaxType>) {
    let (mut outputs, mut types) = (IndexMap::new(), IndexMap::new());
    for Declared { name, r#type, optional, fields, .. } in read_declared(report, node, "outputs", 64, &[]) {
        outputs.insert(name.clone(), output(&r#type, kind, optional, fields.place));
        types.insert(name, r#type);
    }
    (outputs, types)
}

fn read_declared<'node>(
    report: &mut Report,
    node: Option<&'node Node>,
    what: &str,
    count_max: usize,
    more: &[&str],
) -> Vec<Declared<'node>> {
    let required = ["human_name", "help", "name", "type"];
    let known: Vec<&str> = required.iter().chain(&["enum_values", "optional"]).chain(more).copied().collect();
    let list = At::top().key("spec").key(what);
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    for (index, node) in list.list(report, node, count_max).iter().enumerate() {
        let at = list.item(index);
        let Some(fields) = at.mapping(report, node, &known, &required) else { continue };
        for (name, chars_max) in [("human_name", 128), ("help", 10_000)] {
            fields.get(name).map(|node| at.key(name).text(report, node, 0..=chars_max));
        }
        let values = at.key("enum_values").texts(report, fields.get("enum_values"), 64, 1..=10_000);
        let optional =
            fields.get("optional").and_then(|node| report.boolean(node, &format!("`{}`", at.key("optional"))));
        let name = fields.get("name").and_then(|node| read_name(report, node, &at.key("name")));
        let r#type = fields.get("type").and_then(|node| read_type(report, node, &at.key("type"), values));
        if let Some((name, node)) = name.as_ref().zip(fields.get("name"))
            && !names.insert(name.clone())
        {
            report.error(
                node.place,
                format!("`{}`: there is a `{name}` among the {what} already", at.key("name")),
                None,
            );
        }
        if let (Some(name), Some(r#type)) = (name, r#type) {
            all.push(Declared { at, name, r#type, optional: optional.unwrap_or(false), fields });
        }
    }
    all
}

/// The name of an input or output: a folder at a site has it too.
fn read_name(report: &mut Report, node: &Node, at: &At) -> Option<String> {
    let name = at.text(report, node, 1..=64)?;
    let is_valid = name.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_valid {
        return Some(name.to_owned());
    }
    let help = Some("a to z, A to Z, 0 to 9, `_`, `-`, `.`".to_owned());
    report.error(node.place, format!("`{at}` cannot be `{}`", name.escape_debug()), help);
    None
}

fn read_type(report: &mut Report, node: &Node, at: &At, values: Vec<String>) -> Option<RyaxType> {
    let types = [
        ("bytes", RyaxType::Bytes),
        ("string", RyaxType::String),
        ("longstring", RyaxType::String),
        ("password", RyaxType::String),
        ("integer", RyaxType::Integer),
        ("float", RyaxType::Float),
        ("boolean", RyaxType::Boolean),
        ("file", RyaxType::File),
        ("directory", RyaxType::Directory),
        ("enum", RyaxType::Enum(values)),
        ("table", RyaxType::Table),
    ];
    let said = at.text(report, node, 0..=usize::MAX)?;
    let found = types.iter().find(|(word, _)| *word == said).map(|(_, r#type)| r#type.clone());
    if found.is_none() {
        let help = match said {
            "int" => Some("did you mean `integer`?".to_owned()),
            "number" | "double" => Some("did you mean `float`?".to_owned()),
            "str" | "text" => Some("did you mean `string`?".to_owned()),
            "bool" => Some("did you mean `boolean`?".to_owned()),
            _ => did_you_mean(said, types.iter().map(|(word, _)| *word)),
        };
        report.error(node.place, format!("`{at}` cannot be `{}`", said.escape_debug()), help);
    }
    found
}

/// The default of an input, as one of its type: `2` is `"2"` for a string, and `1` is `1.0` for a float.
fn read_default(report: &mut Report, node: &Node, declared: &Declared<'_>) -> Option<Value> {
    let at = declared.at.key("default_value");
    let Kind::Scalar { text, .. } = &node.kind else {
        let message = format!("`{at}` is a string, a number or a boolean, not {}", node.described());
        report.error(node.place, message, None);
        return None;
    };
    if node.is_null() {
        let help = Some("leave it out; `optional: true` makes an input that is not given `None`".to_owned());
        report.error(node.place, format!("`{at}` is a string, a number or a boolean, not {}", node.described()), help);
        return None;
    }
    let trimmed = text.trim();
    let value = match &declared.r#type {
        RyaxType::String | RyaxType::Bytes => Some(Value::string(text)),
        RyaxType::Enum(values) => (values.is_empty() || values.contains(text)).then(|| Value::string(text)),
        RyaxType::Integer => whole(node, trimmed).map(Value::Integer),
        RyaxType::Float => trimmed.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::Number),
        RyaxType::Boolean => match trimmed.to_ascii_lowercase().as_str() {
            "true" => Some(Value::Boolean(true)),
            "false" => Some(Value::Boolean(false)),
            _ => None,
        },
        // A path is no file: what is wanted is given by each step.
        RyaxType::File | RyaxType::Directory => return None,
        RyaxType::Table => match serde_json::from_str(text) {
            Ok(rows @ serde_json::Value::Array(_)) => {
                crate::value::from_json(&rows, &crate::value::Type::List(None)).ok()
            }
            Ok(_) | Err(_) => None,
        },
    };
    if value.is_none() {
        let expected = declared.r#type.as_input();
        report.error(node.place, format!("`{at}` is {expected}, and {} is none", node.described()), None);
    }
    value
}

fn whole(node: &Node, text: &str) -> Option<i64> {
    match node.to_value() {
        Value::Integer(integer) => Some(integer),
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(number as i64),
        Value::String(_) => text.parse().ok(),
        Value::Number(_)
        | Value::Null
        | Value::Boolean(_)
        | Value::List(_)
        | Value::Object(_)
        | Value::File(_)
        | Value::Directory(_) => None,
    }
}
