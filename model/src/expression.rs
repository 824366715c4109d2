//! Expressions: CEL inside `${{ … }}`, or a plain value, or text with expressions in it. Closed, typed, without effects.

mod compile;
mod derive;
mod evaluate;
mod functions;
mod glob;
mod lists;
mod operators;
mod program;
mod template;

use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub(crate) use self::derive::{Listed, Names, StepNames};
pub use self::evaluate::{evaluate, evaluate_elements};
pub use self::program::Program;
pub(crate) use self::template::Reader;
use crate::diagnostic::Place;
use crate::id::StepIndex;
use crate::value::{Type, Value};

/// An expression of a workflow file, with what it reads and the type that was derived for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expression {
    pub form: Form,
    pub place: Place,
    pub r#type: Type,
    /// Steps whose outputs it reads.
    pub reads_steps: Vec<StepIndex>,
    /// Names of the workflow inputs that it reads.
    pub reads_inputs: Vec<String>,
    pub reads_item: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Form {
    Literal(Value),
    /// `${{ inputs.name }}`
    Input(String),
    /// `${{ steps.name.outputs.output }}`
    Output {
        step: StepIndex,
        output: String,
    },
    /// `${{ item }}`
    Item,
    /// `${{ index }}`, the element's number.
    Index,
    /// Any other CEL expression.
    Cel(Program),
    /// Text with expressions in it; its value is a string.
    Template(Vec<Expression>),
    /// A list or an object with expressions in it.
    List(Vec<Expression>),
    Object(IndexMap<String, Expression>),
}

/// What an expression may read.
pub trait Scope {
    fn input(&self, name: &str) -> Option<Value>;
    /// An output of a step: of a step that fans out, the list of its elements' outputs.
    fn output(&self, step: StepIndex, output: &str) -> Option<Value>;
    fn item(&self) -> Option<Value>;
    fn index(&self) -> Option<u32>;
}

/// An expression that had no value when it was evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EvaluationError {
    pub place: Place,
    pub message: String,
}

/// What `foreach` fans out over.
#[derive(Debug, Clone, PartialEq)]
pub enum Elements {
    /// `range(count)`: the integers from 0, never held as a list.
    Range {
        count: u32,
    },
    List(Arc<Vec<Value>>),
}

impl Elements {
    pub fn len(&self) -> u32 {
        match self {
            Self::Range { count } => *count,
            Self::List(values) => u32::try_from(values.len()).unwrap_or(u32::MAX),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of `item` for an element.
    pub fn get(&self, element: u32) -> Option<Value> {
        match self {
            Self::Range { count } => (element < *count).then(|| Value::Integer(i64::from(element))),
            Self::List(values) => values.get(element as usize).cloned(),
        }
    }
}
