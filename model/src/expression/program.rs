//! CEL expressions as they travel, with the steps they name already resolved, and the form in which they are evaluated.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::compile::compile;
use super::functions::Function;
use crate::id::StepIndex;
use crate::value::Value;

/// A CEL expression that was checked. It is compiled at its first evaluation, and clones share the result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    source: String,
    /// The steps that it names; for an input that a site holds, the step that takes it in, as `inputs.NAME`.
    steps: BTreeMap<String, StepIndex>,
    #[serde(skip)]
    compiled: OnceLock<Result<Arc<Node>, String>>,
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.steps == other.steps
    }
}

impl Program {
    pub(crate) fn new(source: &str, steps: BTreeMap<String, StepIndex>, compiled: Node) -> Self {
        Self { source: source.to_owned(), steps, compiled: OnceLock::from(Ok(Arc::new(compiled))) }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn step(&self, name: &str) -> Option<StepIndex> {
        self.steps.get(name).copied()
    }

    /// The compiled form; an error only where the program was checked by a version that knew more than this one.
    pub(super) fn compiled(&self) -> Result<&Arc<Node>, &str> {
        self.compiled
            .get_or_init(|| compile(&self.source).map(Arc::new).map_err(|problem| problem.message))
            .as_ref()
            .map_err(String::as_str)
    }
}

/// A node of a compiled expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Literal(Value),
    /// The variable of a macro around it.
    Variable(Arc<str>),
    Input(String),
    Output {
        step: String,
        output: String,
    },
    Item,
    Index,
    Field {
        of: Box<Node>,
        name: String,
    },
    /// `has(of.name)`
    Has {
        of: Box<Node>,
        name: String,
    },
    Call {
        function: Function,
        arguments: Vec<Node>,
    },
    List(Vec<Node>),
    Object(Vec<(Node, Node)>),
    Macro(Box<Macro>),
}

/// One of CEL's macros over the elements of a list or the keys of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Macro {
    pub(crate) kind: MacroKind,
    pub(crate) over: Node,
    pub(crate) variable: Arc<str>,
    /// The condition, or what an element becomes.
    pub(crate) body: Node,
    /// Of `map` with three arguments.
    pub(crate) condition: Option<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MacroKind {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
}

impl Node {
    /// Calls `visit` for this node and every one below it.
    pub(crate) fn visit<'node>(&'node self, visit: &mut dyn FnMut(&'node Self)) {
        visit(self);
        match self {
            Self::Literal(_) | Self::Variable(_) | Self::Input(_) | Self::Output { .. } | Self::Item | Self::Index => {}
            Self::Field { of, .. } | Self::Has { of, .. } => of.visit(visit),
            Self::Call { arguments, .. } => arguments.iter().for_each(|argument| argument.visit(visit)),
            Self::List(items) => items.iter().for_each(|item| item.visit(visit)),
            Self::Object(fields) => fields.iter().for_each(|(key, value)| {
                key.visit(visit);
                value.visit(visit);
            }),
            Self::Macro(each) => {
                each.over.visit(visit);
                each.body.visit(visit);
                if let Some(condition) = &each.condition {
                    condition.visit(visit);
                }
            }
        }
    }
}
