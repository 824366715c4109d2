//! YAML documents as trees of nodes that know their place, with what is dangerous or ambiguous refused: duplicate keys,
//! tags, several documents, depth, and aliases that multiply.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use crate::diagnostic::Place;
use crate::limits::{YAML_DEPTH_MAX, YAML_NODES_MAX};
use crate::value::Value;

/// A node and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Scalar {
        text: String,
        /// Whether it was written without quotes, so that it may mean a number, a boolean or nothing.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Node,
}

/// What is wrong with a document as YAML.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) place: Place,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Node {
    /// The kind of the node in words, for messages.
    pub(crate) fn described(&self) -> String {
        match &self.kind {
            Kind::Scalar { text, plain: true } if text.is_empty() => "nothing".to_owned(),
            Kind::Scalar { text, .. } => {
                let shown: String = text.chars().take(40).collect();
                let more = if shown.len() < text.len() { "…" } else { "" };
                format!("`{}{more}`", shown.escape_debug())
            }
            Kind::Sequence(_) => "a list".to_owned(),
            Kind::Mapping(_) => "a mapping".to_owned(),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What the node means by YAML's core schema.
    pub(crate) fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar { text, plain: true } => plain_value(text),
            Kind::Scalar { text, plain: false } => Value::string(text),
            Kind::Sequence(items) => Value::list(items.iter().map(Self::to_value).collect()),
            Kind::Mapping(entries) => {
                let fields = entries.iter().map(|entry| (entry.key.clone(), entry.value.to_value()));
                Value::Object(std::sync::Arc::new(fields.collect()))
            }
        }
    }
}

fn plain_value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Boolean(true),
        "false" | "False" | "FALSE" => return Value::Boolean(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        if let Ok(number) = i64::from_str_radix(hexadecimal, 16) {
            return Value::Integer(number);
        }
    } else if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        if let Ok(number) = text.parse() {
            return Value::Integer(number);
        }
    } else if digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        return Value::Number(number);
    }
    Value::string(text)
}

/// Parses the only document of a text.
pub(crate) fn parse(source: &str) -> Result<Node, Vec<Problem>> {
    let mut builder = Builder::new(source);
    match builder.run() {
        Ok(Some(root)) if builder.problems.is_empty() => Ok(root),
        Ok(Some(_)) => Err(builder.problems),
        Ok(None) => {
            let place = Place { line: 1, column: 1, start: 0, end: 0 };
            Err(vec![Problem { place, message: "the file is empty".to_owned(), help: None }])
        }
        Err(problem) => {
            builder.problems.push(*problem);
            Err(builder.problems)
        }
    }
}

/// A collection whose end has not been seen.
struct Open {
    anchor: usize,
    node: Node,
    /// The key whose value comes next.
    key: Option<(String, Place)>,
    keys: HashMap<String, Place>,
}

struct Builder<'source> {
    source: &'source str,
    /// Byte offset of each character; nothing where they are the same.
    offsets: Option<Vec<u32>>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    problems: Vec<Problem>,
}

impl<'source> Builder<'source> {
    fn new(source: &'source str) -> Self {
        let offsets = (!source.is_ascii()).then(|| source.char_indices().map(|(offset, _)| offset as u32).collect());
        Self { source, offsets, open: Vec::new(), anchors: HashMap::new(), nodes: 0, problems: Vec::new() }
    }

    fn byte(&self, marker: &Marker) -> u32 {
        let end = self.source.len();
        let byte = match &self.offsets {
            None => marker.index().min(end),
            Some(offsets) => offsets.get(marker.index()).map_or(end, |offset| *offset as usize),
        };
        byte as u32
    }

    fn place(&self, span: &Span) -> Place {
        let start = self.byte(&span.start);
        Place {
            line: span.start.line() as u32,
            column: span.start.col() as u32 + 1,
            start,
            end: self.byte(&span.end).max(start),
        }
    }

    fn run(&mut self) -> Result<Option<Node>, Box<Problem>> {
        let mut parser = Parser::new_from_str(self.source);
        let mut root = None;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| Box::new(self.scan_problem(error.marker(), error.info())))?;
            let place = self.place(&span);
            let refuse = |message: &str, help: Option<&str>| {
                Err(Box::new(Problem { place, message: message.to_owned(), help: help.map(str::to_owned) }))
            };
            let done = match event {
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => None,
                Event::DocumentStart(_) if root.is_some() => {
                    return refuse("a second document begins here", Some("write one document to a file"));
                }
                Event::DocumentStart(_) => None,
                Event::Scalar(_, _, _, Some(_))
                | Event::SequenceStart(_, Some(_))
                | Event::MappingStart(_, Some(_)) => {
                    return refuse("tags have no meaning here", Some("write the value without its `!` tag"));
                }
                Event::Scalar(text, style, anchor, None) => {
                    let plain = style == ScalarStyle::Plain;
                    let node = Node { place, kind: Kind::Scalar { text: text.into_owned(), plain } };
                    self.finished(node, anchor)?
                }
                Event::SequenceStart(anchor, None) => {
                    self.begin(anchor, Node { place, kind: Kind::Sequence(Vec::new()) })?;
                    None
                }
                Event::MappingStart(anchor, None) => {
                    self.begin(anchor, Node { place, kind: Kind::Mapping(Vec::new()) })?;
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let mut open = self.open.pop().expect("the parser pairs starts and ends");
                    open.node.place.end = open.node.place.end.max(place.end.min(self.source.len() as u32));
                    self.finished(open.node, open.anchor)?
                }
                Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                    Some((node, size)) => {
                        self.count(size, place)?;
                        self.finished(Node { place, kind: node.kind }, 0)?
                    }
                    None => return refuse("this alias refers to the value that it stands in", None),
                },
            };
            root = root.or(done);
        }
        Ok(root)
    }

    fn scan_problem(&self, marker: &Marker, info: &str) -> Problem {
        let start = self.byte(marker);
        let line_start = self.source[..start as usize].rfind('\n').map_or(0, |at| at + 1);
        let line = self.source[line_start..].lines().next().unwrap_or_default();
        let previous = self.source[..line_start].trim_end_matches('\n').lines().next_back().unwrap_or_default();
        let help = if line.contains("${{") || previous.contains("${{") {
            Some(
                "put quotes around an expression that stands inside braces or brackets or holds `: ` or ` #`: \"${{ … }}\"",
            )
        } else if line.starts_with('\t') {
            Some("indent with spaces; YAML allows no tabs there")
        } else {
            None
        };
        let place =
            Place { line: u32::max(marker.line() as u32, 1), column: marker.col() as u32 + 1, start, end: start };
        Problem { place, message: format!("this is no valid YAML: {info}"), help: help.map(str::to_owned) }
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Box<Problem>> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > YAML_NODES_MAX {
            let message = format!("the file holds more than {YAML_NODES_MAX} values, with aliases written out");
            return Err(Box::new(Problem { place, message, help: None }));
        }
        Ok(())
    }

    fn begin(&mut self, anchor: usize, node: Node) -> Result<(), Box<Problem>> {
        if self.open.len() >= YAML_DEPTH_MAX {
            let message = format!("values are nested more than {YAML_DEPTH_MAX} deep");
            return Err(Box::new(Problem { place: node.place, message, help: None }));
        }
        self.open.push(Open { anchor, node, key: None, keys: HashMap::new() });
        Ok(())
    }

    /// Puts a node into the collection that is open; gives it back if there is none.
    fn finished(&mut self, node: Node, anchor: usize) -> Result<Option<Node>, Box<Problem>> {
        self.count(1, node.place)?;
        if anchor != 0 {
            let size = size(&node);
            self.anchors.insert(anchor, (node.clone(), size));
            self.count(size, node.place)?;
        }
        let Some(open) = self.open.last_mut() else { return Ok(Some(node)) };
        match &mut open.node.kind {
            Kind::Sequence(items) => items.push(node),
            Kind::Mapping(entries) => match open.key.take() {
                Some((key, key_place)) => entries.push(Entry { key, key_place, value: node }),
                None => {
                    let Kind::Scalar { text, .. } = node.kind else {
                        let message = "a key must be a plain text".to_owned();
                        let help = Some("an unquoted expression inside braces needs quotes: \"${{ … }}\"".to_owned());
                        return Err(Box::new(Problem { place: node.place, message, help }));
                    };
                    if let Some(first) = open.keys.insert(text.clone(), node.place) {
                        let message = format!("`{}` is given twice", text.escape_debug());
                        let help = Some(format!("it stands already in line {}", first.line));
                        self.problems.push(Problem { place: node.place, message, help });
                    }
                    open.key = Some((text, node.place));
                }
            },
            Kind::Scalar { .. } => unreachable!("only collections are opened"),
        }
        Ok(None)
    }
}

fn size(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar { .. } => 1,
        Kind::Sequence(items) => 1 + items.iter().map(size).sum::<usize>(),
        Kind::Mapping(entries) => 1 + entries.iter().map(|entry| 1 + size(&entry.value)).sum::<usize>(),
    }
}
