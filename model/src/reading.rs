//! Reading declared fields out of YAML, with everything that is wrong collected.

use std::str::FromStr;

use indexmap::IndexMap;

use crate::diagnostic::{Diagnostic, Place};
use crate::limits::{PRIORITY_MAX, PRIORITY_MIN};
use crate::suggestion::did_you_mean;
use crate::value::{Type, Value, from_json};
use crate::workflow::Output;
use crate::yaml::{self, Entry, Kind, Node};

/// What is wrong with one file so far.
#[derive(Debug)]
pub(crate) struct Report {
    file: String,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub(crate) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), diagnostics: Vec::new() }
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn error(&mut self, place: Place, message: impl Into<String>, help: Option<String>) {
        let help = help.filter(|help| !help.is_empty());
        self.diagnostics.push(Diagnostic { file: self.file.clone(), place, message: message.into(), help });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// Everything that is wrong, in the order of the file, each once.
    pub(crate) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by_key(|diagnostic| diagnostic.place.start);
        self.diagnostics.dedup();
        self.diagnostics
    }

    /// Parses a text as YAML.
    pub(crate) fn yaml(&mut self, source: &str, bytes_max: usize) -> Option<Node> {
        let beginning = Place { line: 1, column: 1, start: 0, end: 0 };
        if source.len() > bytes_max {
            self.error(beginning, format!("the file has {} bytes, more than {bytes_max}", source.len()), None);
            return None;
        }
        match yaml::parse(source) {
            Ok(root) => Some(root),
            Err(problems) => {
                for problem in problems {
                    self.error(problem.place, problem.message, problem.help);
                }
                None
            }
        }
    }

    /// The entries of a mapping. `what` says what stands here, as in "an input".
    pub(crate) fn entries<'node>(&mut self, node: &'node Node, what: &str) -> &'node [Entry] {
        match &node.kind {
            Kind::Mapping(entries) => entries,
            Kind::Scalar { .. } | Kind::Sequence(_) => {
                let help = Some("write `name: value` pairs, one to a line".to_owned());
                self.error(node.place, format!("{what} is a mapping, not {}", node.described()), help);
                &[]
            }
        }
    }

    /// A mapping with declared fields; each unknown one is an error.
    pub(crate) fn fields<'node>(&mut self, node: &'node Node, what: &str, known: &[&str]) -> Fields<'node> {
        let entries = self.entries(node, what);
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                let help = did_you_mean(&entry.key, known.iter().copied());
                self.error(entry.key_place, format!("{what} has no field `{}`", entry.key.escape_debug()), help);
            }
        }
        Fields { place: node.place, entries }
    }

    /// The text of a scalar, whatever it may mean otherwise.
    pub(crate) fn text<'node>(&mut self, node: &'node Node, what: &str) -> Option<&'node str> {
        match &node.kind {
            Kind::Scalar { text, .. } if !text.is_empty() => Some(text),
            Kind::Scalar { plain: false, text } => Some(text),
            Kind::Scalar { .. } | Kind::Sequence(_) | Kind::Mapping(_) => {
                self.error(node.place, format!("{what} is a text, not {}", node.described()), None);
                None
            }
        }
    }

    /// A text that is parsed; what is wrong with it is said by its error.
    pub(crate) fn parsed<T: FromStr>(&mut self, node: &Node, what: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        self.parsed_with(node, what, |text| text.parse::<T>().map_err(|error| error.to_string()))
    }

    pub(crate) fn parsed_with<T>(
        &mut self,
        node: &Node,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(self.text(node, what)?) {
            Ok(parsed) => Some(parsed),
            Err(message) => {
                self.error(node.place, format!("{what}: {message}"), None);
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, node: &Node, what: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let help = did_you_mean(text, words.iter().map(|(word, _)| *word));
            self.error(node.place, format!("{what} cannot be `{}`", text.escape_debug()), help);
        }
        found
    }

    pub(crate) fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        let Value::Boolean(truth) = node.to_value() else {
            self.error(node.place, format!("{what} is true or false, not {}", node.described()), None);
            return None;
        };
        Some(truth)
    }

    pub(crate) fn integer(&mut self, node: &Node, what: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let value = node.to_value();
        let integer = if let Value::Integer(integer) = value { u32::try_from(integer).ok() } else { None };
        let integer = integer.filter(|integer| range.contains(integer));
        if integer.is_none() {
            let (low, high) = range.into_inner();
            self.error(node.place, format!("{what} is a number from {low} to {high}, not {}", node.described()), None);
        }
        integer
    }

    /// A number from [`PRIORITY_MIN`] to [`PRIORITY_MAX`].
    pub(crate) fn priority(&mut self, node: &Node) -> Option<i8> {
        let range = PRIORITY_MIN..=PRIORITY_MAX;
        let value = node.to_value();
        let priority = if let Value::Integer(integer) = value { i8::try_from(integer).ok() } else { None };
        let priority = priority.filter(|priority| range.contains(priority));
        if priority.is_none() {
            let given = node.described();
            let message = format!("`priority` is a number from {PRIORITY_MIN} to {PRIORITY_MAX}, not {given}");
            self.error(node.place, message, None);
        }
        priority
    }

    /// A list of texts, or one text for a list of one.
    pub(crate) fn texts<'node>(&mut self, node: &'node Node, what: &str) -> Vec<(&'node str, Place)> {
        match &node.kind {
            Kind::Sequence(items) => {
                items.iter().filter_map(|item| Some((self.text(item, what)?, item.place))).collect()
            }
            Kind::Scalar { .. } | Kind::Mapping(_) => {
                self.text(node, what).map(|text| (text, node.place)).into_iter().collect()
            }
        }
    }

    /// A name that people choose: letters, digits, `_`, and `-` where it is allowed; at most 63 characters.
    pub(crate) fn name(&mut self, name: &str, place: Place, what: &str, dash: bool) -> bool {
        let valid = is_name(name, dash);
        if !valid {
            let dash = if dash { ", `-`" } else { "" };
            let help =
                format!("a to z, A to Z, 0 to 9, `_`{dash}; it begins with a letter and has at most 63 characters");
            self.error(place, format!("`{}` cannot be the name of {what}", name.escape_debug()), Some(help));
        }
        valid
    }

    /// A type from the fields `type`, `of` and `values`.
    pub(crate) fn declared_type(&mut self, fields: &Fields<'_>, what: &str) -> Type {
        let (of, values) = (fields.get("of"), fields.get("values"));
        let Some(node) = fields.get("type") else {
            self.error(fields.place, format!("{what} needs a `type`"), Some(type_help()));
            return Type::Any;
        };
        let text = self.text(node, "a type").unwrap_or_default();
        if text == "enum" {
            let values = values.map(|values| self.texts(values, "a value of an enum")).unwrap_or_default();
            if values.is_empty() {
                let help = Some("write `{ type: enum, values: [a, b] }`".to_owned());
                self.error(node.place, "an enum needs its `values`", help);
            }
            return Type::Enum(values.into_iter().map(|(text, _)| text.to_owned()).collect());
        }
        if let Some(values) = values {
            self.error(values.place, "only an enum has `values`", Some("write `type: enum`".to_owned()));
        }
        match (text, of) {
            ("list", Some(of)) => {
                let element = self.type_text(of);
                Type::List((element != Type::Any).then(|| Box::new(element)))
            }
            (_, of) => {
                if let Some(of) = of {
                    self.error(of.place, "only a list has `of`, the type of its elements", None);
                }
                self.type_text(node)
            }
        }
    }

    /// A type as one text: `file`, `list of integer`.
    pub(crate) fn type_text(&mut self, node: &Node) -> Type {
        let Some(text) = self.text(node, "a type") else { return Type::Any };
        parse_type(text).unwrap_or_else(|| {
            let word = text.strip_prefix("list of ").unwrap_or(text);
            let help = match word {
                "enum" => "write it out: `{ type: enum, values: [a, b] }`".to_owned(),
                "int" => "did you mean `integer`?".to_owned(),
                "float" | "double" => "did you mean `number`?".to_owned(),
                "bool" => "did you mean `boolean`?".to_owned(),
                "str" | "text" => "did you mean `string`?".to_owned(),
                "dir" | "folder" => "did you mean `directory`?".to_owned(),
                "dict" | "map" => "did you mean `object`?".to_owned(),
                _ => did_you_mean(word, TYPES.iter().map(|(name, _)| *name)).unwrap_or_else(type_help),
            };
            self.error(node.place, format!("there is no type `{}`", text.escape_debug()), Some(help));
            Type::Any
        })
    }

    /// A value that is written out, of a declared type.
    pub(crate) fn value(&mut self, node: &Node, r#type: &Type, what: &str) -> Option<Value> {
        match from_json(&node.to_value().to_json(), r#type) {
            Ok(value) => Some(value),
            Err(mismatch) => {
                let quoted = *r#type == Type::String && matches!(node.kind, Kind::Scalar { plain: true, .. });
                let help = quoted.then(|| format!("put it in quotes: \"{}\"", node.described().trim_matches('`')));
                self.error(node.place, format!("{what}: {mismatch}"), help);
                None
            }
        }
    }

    /// Declared outputs: `name: type`, or `name: { type, optional }`.
    pub(crate) fn outputs(&mut self, node: &Node) -> IndexMap<String, Output> {
        let mut outputs = IndexMap::new();
        if node.is_null() {
            return outputs;
        }
        for entry in self.entries(node, "`outputs`") {
            self.name(&entry.key, entry.key_place, "an output", true);
            let (r#type, optional) = match &entry.value.kind {
                Kind::Mapping(_) => {
                    let known = ["type", "of", "values", "optional", "description"];
                    let fields = self.fields(&entry.value, "an output", &known);
                    let optional = fields.get("optional").and_then(|node| self.boolean(node, "`optional`"));
                    (self.declared_type(&fields, "an output"), optional.unwrap_or(false))
                }
                Kind::Scalar { .. } | Kind::Sequence(_) => (self.type_text(&entry.value), false),
            };
            let output = Output { r#type, optional, listed: false, place: entry.key_place };
            outputs.insert(entry.key.clone(), output);
        }
        outputs
    }
}

/// Whether people may choose this name.
pub(crate) fn is_name(name: &str, dash: bool) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || (dash && byte == b'-'))
        && !name.ends_with('-')
}

/// The fields of one mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'node> {
    pub(crate) place: Place,
    entries: &'node [Entry],
}

impl<'node> Fields<'node> {
    pub(crate) fn entry(&self, name: &str) -> Option<&'node Entry> {
        self.entries.iter().find(|entry| entry.key == name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'node Node> {
        self.entry(name).map(|entry| &entry.value)
    }
}

const TYPES: &[(&str, Type)] = &[
    ("string", Type::String),
    ("integer", Type::Integer),
    ("number", Type::Number),
    ("boolean", Type::Boolean),
    ("list", Type::List(None)),
    ("object", Type::Object),
    ("file", Type::File),
    ("directory", Type::Directory),
];

fn parse_type(text: &str) -> Option<Type> {
    match text.strip_prefix("list of ") {
        Some(element) => parse_type(element.trim_start()).map(|element| Type::List(Some(Box::new(element)))),
        None => TYPES.iter().find(|(name, _)| *name == text).map(|(_, r#type)| r#type.clone()),
    }
}

fn type_help() -> String {
    let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
    format!("one of {}, enum, or `list of file` and the like", names.join(", "))
}
