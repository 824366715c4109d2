//! The evaluation of expressions: bounded in what it costs, without effects, the same for the same scope.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::functions::Function;
use super::operators;
use super::program::{Macro, MacroKind, Node, Program};
use super::{Elements, EvaluationError, Expression, Form, Scope};
use crate::limits::{ELEMENTS_MAX, EXPRESSION_COST_MAX};
use crate::value::Value;

/// Evaluates an expression. Plain references and literals cost a lookup; CEL is compiled once for each [`Program`].
///
/// # Errors
/// When it has no value: division by zero, an index out of range, a limit on cost or size that is exceeded.
pub fn evaluate(expression: &Expression, scope: &dyn Scope) -> Result<Value, EvaluationError> {
    form(&expression.form, scope).map_err(|message| EvaluationError { place: expression.place, message })
}

/// Evaluates what a step fans out over; `range(n)` is not written out.
///
/// # Errors
/// As [`evaluate`], and when the value is no list, or has more than [`ELEMENTS_MAX`] elements.
pub fn evaluate_elements(expression: &Expression, scope: &dyn Scope) -> Result<Elements, EvaluationError> {
    let error = |message: String| EvaluationError { place: expression.place, message };
    if let Form::Cel(program) = &expression.form
        && let Node::Call { function: Function::Range, arguments } =
            &**program.compiled().map_err(|message| error(message.to_owned()))?
    {
        let count = Evaluator::new(program, scope).node(&arguments[0]).map_err(error)?;
        let count = operators::range_count(&count).map_err(error)?;
        return Ok(Elements::Range { count });
    }
    match evaluate(expression, scope)? {
        Value::List(values) if values.len() > ELEMENTS_MAX as usize => {
            Err(error(format!("the list has {} elements, more than {ELEMENTS_MAX}", values.len())))
        }
        Value::List(values) => Ok(Elements::List(values)),
        Value::Null => Err(error("there is no list to fan out over: the value is null".to_owned())),
        other => Err(error(format!("a step fans out over a list, not over {}", operators::kind(&other)))),
    }
}

fn form(form: &Form, scope: &dyn Scope) -> Result<Value, String> {
    match form {
        Form::Literal(value) => Ok(value.clone()),
        Form::Input(name) => scope.input(name).ok_or_else(|| format!("the input `{name}` has no value")),
        Form::Output { step, output } => {
            scope.output(*step, output).ok_or_else(|| format!("the output `{output}` of step {step} has no value"))
        }
        Form::Item => scope.item().ok_or_else(|| "there is no `item` here".to_owned()),
        Form::Index => index(scope),
        Form::Cel(program) => Evaluator::new(program, scope).node(program.compiled()?),
        Form::Template(parts) => {
            let mut text = String::new();
            for part in parts {
                text.push_str(&operators::template_text(&self::form(&part.form, scope)?)?);
            }
            Ok(Value::string(text))
        }
        Form::List(items) => {
            items.iter().map(|item| self::form(&item.form, scope)).collect::<Result<_, _>>().map(Value::list)
        }
        Form::Object(fields) => fields
            .iter()
            .map(|(name, field)| Ok((name.clone(), self::form(&field.form, scope)?)))
            .collect::<Result<IndexMap<_, _>, String>>()
            .map(|fields| Value::Object(Arc::new(fields))),
    }
}

fn index(scope: &dyn Scope) -> Result<Value, String> {
    let index = scope.index().ok_or_else(|| "there is no `index` here".to_owned())?;
    Ok(Value::Integer(i64::from(index)))
}

/// Compiles a regular expression within bounds on what it costs to hold and to match.
pub(super) fn regular_expression(pattern: &str) -> Result<regex::Regex, String> {
    const SIZE_MAX: usize = 1 << 20;
    regex::RegexBuilder::new(pattern)
        .size_limit(SIZE_MAX)
        .dfa_size_limit(SIZE_MAX)
        .build()
        .map_err(|error| format!("{pattern:?} is no regular expression: {}", last_line(&error.to_string())))
}

fn last_line(text: &str) -> &str {
    text.lines().next_back().unwrap_or_default().trim_start_matches("error: ")
}

/// What is left to spend on one expression.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn spend(&mut self, cost: usize) -> Result<(), String> {
        match self.0.checked_sub(cost as u64) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err("the expression costs too much to evaluate".to_owned()),
        }
    }
}

struct Evaluator<'run> {
    program: &'run Program,
    scope: &'run dyn Scope,
    variables: Vec<(Arc<str>, Value)>,
    budget: Budget,
    patterns: HashMap<Arc<str>, regex::Regex>,
}

impl<'run> Evaluator<'run> {
    fn new(program: &'run Program, scope: &'run dyn Scope) -> Self {
        let budget = Budget(EXPRESSION_COST_MAX);
        Self { program, scope, variables: Vec::new(), budget, patterns: HashMap::new() }
    }

    fn node(&mut self, node: &Node) -> Result<Value, String> {
        self.budget.spend(1)?;
        match node {
            Node::Literal(value) => Ok(value.clone()),
            Node::Variable(name) => {
                let bound = self.variables.iter().rev().find(|(variable, _)| variable == name);
                Ok(bound.expect("a variable is compiled inside its macro only").1.clone())
            }
            Node::Input(name) => match self.program.step(&format!("inputs.{name}")) {
                Some(step) => self.scope.output(step, name),
                None => self.scope.input(name),
            }
            .ok_or_else(|| format!("the input `{name}` has no value")),
            Node::Output { step, output } => self
                .program
                .step(step)
                .and_then(|index| self.scope.output(index, output))
                .ok_or_else(|| format!("the output `{output}` of step `{step}` has no value")),
            Node::Item => self.scope.item().ok_or_else(|| "there is no `item` here".to_owned()),
            Node::Index => index(self.scope),
            Node::Field { of, name } => {
                let of = self.node(of)?;
                operators::field(&of, name)?.ok_or_else(|| format!("{} has no field `{name}`", operators::kind(&of)))
            }
            Node::Has { of, name } => {
                let of = self.node(of)?;
                let field = operators::field(&of, name)?;
                Ok(Value::Boolean(field.is_some_and(|value| value != Value::Null)))
            }
            Node::List(items) => items.iter().map(|item| self.node(item)).collect::<Result<_, _>>().map(Value::list),
            Node::Object(fields) => self.object(fields),
            Node::Call { function, arguments } => self.call(*function, arguments),
            Node::Macro(each) => self.each(each),
        }
    }

    fn object(&mut self, fields: &[(Node, Node)]) -> Result<Value, String> {
        let mut object = IndexMap::with_capacity(fields.len());
        for (key, value) in fields {
            let key = match self.node(key)? {
                Value::String(text) => text.to_string(),
                other => return Err(format!("the key of an object is a string, not {}", operators::kind(&other))),
            };
            let value = self.node(value)?;
            if object.insert(key.clone(), value).is_some() {
                return Err(format!("the key `{key}` is given twice"));
            }
        }
        Ok(Value::Object(Arc::new(object)))
    }

    fn truth(&mut self, node: &Node) -> Result<bool, String> {
        match self.node(node)? {
            Value::Boolean(truth) => Ok(truth),
            other => Err(format!("a condition is true or false, not {}", operators::kind(&other))),
        }
    }

    fn call(&mut self, function: Function, arguments: &[Node]) -> Result<Value, String> {
        match (function, arguments) {
            (Function::Conditional, [condition, then, otherwise]) => {
                let branch = if self.truth(condition)? { then } else { otherwise };
                self.node(branch)
            }
            (Function::And, [left, right]) => self.either(left, right, false),
            (Function::Or, [left, right]) => self.either(left, right, true),
            (Function::Matches, [text, pattern]) => {
                let (text, pattern) = (self.node(text)?, self.node(pattern)?);
                let (Value::String(text), Value::String(pattern)) = (&text, &pattern) else {
                    return Err("`matches` needs two strings".to_owned());
                };
                self.budget.spend(text.len())?;
                if let Some(compiled) = self.patterns.get(pattern) {
                    return Ok(Value::Boolean(compiled.is_match(text)));
                }
                const COMPILATION_COST: usize = 10_000;
                self.budget.spend(COMPILATION_COST)?;
                let compiled = regular_expression(pattern)?;
                let matched = compiled.is_match(text);
                self.patterns.insert(Arc::clone(pattern), compiled);
                Ok(Value::Boolean(matched))
            }
            (_, arguments) => {
                let values = arguments.iter().map(|argument| self.node(argument)).collect::<Result<Vec<_>, _>>()?;
                operators::apply(function, values, &mut self.budget)
            }
        }
    }

    /// `&&` and `||`: either side decides, even where the other has no value.
    fn either(&mut self, left: &Node, right: &Node, decisive: bool) -> Result<Value, String> {
        let left = self.truth(left);
        if left == Ok(decisive) {
            return Ok(Value::Boolean(decisive));
        }
        let right = self.truth(right);
        if right == Ok(decisive) {
            return Ok(Value::Boolean(decisive));
        }
        left?;
        right?;
        Ok(Value::Boolean(!decisive))
    }

    fn each(&mut self, each: &Macro) -> Result<Value, String> {
        let over = match self.node(&each.over)? {
            Value::List(values) => values,
            Value::Object(fields) => Arc::new(fields.keys().map(Value::string).collect()),
            other => {
                return Err(format!("a macro goes over a list or an object, not over {}", operators::kind(&other)));
            }
        };
        self.variables.push((Arc::clone(&each.variable), Value::Null));
        let result = self.each_value(each, &over);
        self.variables.pop();
        result
    }

    fn each_value(&mut self, each: &Macro, over: &[Value]) -> Result<Value, String> {
        let mut kept = Vec::new();
        let mut found = 0u32;
        let mut failed = None;
        for value in over {
            self.variables.last_mut().expect("pushed by the caller").1 = value.clone();
            match each.kind {
                MacroKind::All | MacroKind::Exists => {
                    let decisive = each.kind == MacroKind::Exists;
                    match self.truth(&each.body) {
                        Ok(truth) if truth == decisive => return Ok(Value::Boolean(decisive)),
                        Ok(_) => {}
                        Err(message) => failed = failed.or(Some(message)),
                    }
                    self.budget.spend(1)?;
                }
                MacroKind::ExistsOne => found += u32::from(self.truth(&each.body)?),
                MacroKind::Filter => {
                    if self.truth(&each.body)? {
                        kept.push(value.clone());
                    }
                }
                MacroKind::Map => {
                    let wanted = match &each.condition {
                        Some(condition) => self.truth(condition)?,
                        None => true,
                    };
                    if wanted {
                        kept.push(self.node(&each.body)?);
                    }
                }
            }
        }
        match (each.kind, failed) {
            (MacroKind::All | MacroKind::Exists, Some(message)) => Err(message),
            (MacroKind::All, None) => Ok(Value::Boolean(true)),
            (MacroKind::Exists, None) => Ok(Value::Boolean(false)),
            (MacroKind::ExistsOne, _) => Ok(Value::Boolean(found == 1)),
            (MacroKind::Filter | MacroKind::Map, _) => Ok(Value::list(kept)),
        }
    }
}
