//! Expressions: CEL inside `${{ … }}`, or a plain value, or text with expressions in it. Closed, typed, without effects.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

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
    /// Any other CEL expression: its source.
    Cel(String),
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
    /// The name and the outputs of a step that a CEL expression names.
    fn step_named(&self, name: &str) -> Option<(StepIndex, Vec<String>)>;
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

/// Evaluates an expression.
///
/// # Errors
/// When it has no value: division by zero, an index out of range, a limit on cost or size that is exceeded.
pub fn evaluate(expression: &Expression, scope: &dyn Scope) -> Result<Value, EvaluationError> {
    let _ = (expression, scope);
    unimplemented!("being written")
}
