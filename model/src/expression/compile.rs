//! From the source of a CEL expression to the nodes that are evaluated.
//!
//! The syntax is that of the `cel` crate. Its evaluator is not used: it has no bound on what an expression costs, and a
//! control plane decides everything else meanwhile.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use std::sync::Arc;

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};
use cel::parser::PrattParser;

use super::functions::Function;
use super::program::{Macro, MacroKind, Node};
use crate::limits::{EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX};
use crate::value::Value;

/// What is wrong with an expression, and where in its source, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// Nothing where it is the whole expression.
    pub(crate) at: Option<usize>,
    /// The text that it is about, to be looked for in the source.
    pub(crate) text: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, at: None, text: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn about(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }
}

/// Compiles an expression; what it refers to is not resolved.
pub(crate) fn compile(source: &str) -> Result<Node, Problem> {
    if source.trim().is_empty() {
        return Err(Problem::new("the expression is empty").help("write something like `${{ inputs.name }}`"));
    }
    if source.len() > EXPRESSION_BYTES_MAX {
        return Err(Problem::new(format!("the expression is longer than {EXPRESSION_BYTES_MAX} bytes")));
    }
    if let Some(path) = plain_path(source) {
        return path;
    }
    let parsed = PrattParser::new().parse(source).map_err(|errors| syntax_problem(source, errors))?;
    Compiler { variables: Vec::new(), depth: 0 }.node(&parsed)
}

/// A path of names and nothing else; there a name may have a `-` in it.
fn plain_path(source: &str) -> Option<Result<Node, Problem>> {
    let names: Vec<&str> = source.trim().split('.').collect();
    let is_name = |name: &&str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
            && !name.ends_with('-')
    };
    if !names.iter().all(is_name) {
        return None;
    }
    match names[..] {
        ["inputs", input] => Some(Ok(Node::Input(input.to_owned()))),
        ["steps", step, "outputs", output] => {
            Some(Ok(Node::Output { step: step.to_owned(), output: output.to_owned() }))
        }
        ["item"] => Some(Ok(Node::Item)),
        ["index"] => Some(Ok(Node::Index)),
        _ => None,
    }
}

fn syntax_problem(source: &str, errors: cel::ParseErrors) -> Problem {
    let Some(error) = errors.errors.into_iter().next() else {
        return Problem::new("the expression cannot be read");
    };
    let (line, column) = (usize::try_from(error.pos.0).unwrap_or(1), usize::try_from(error.pos.1).unwrap_or(1));
    let line_start: usize = source.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let mut at = (line_start + column.saturating_sub(1)).min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    let rest = source[at..].trim_start();
    let message = error.msg.trim_start_matches("Syntax error: ");
    let message =
        message.replace("mismatched input", "found").replace("'<EOF>'", "its end").replace("<EOF>", "its end");
    let help = if rest.starts_with('=') {
        Some("compare with `==`")
    } else if rest.starts_with("and ") {
        Some("write `&&`")
    } else if rest.starts_with("or ") {
        Some("write `||`")
    } else {
        None
    };
    let message = format!("the expression cannot be read: {message}");
    Problem { message, help: help.map(str::to_owned), at: Some(at), text: None }
}

struct Compiler {
    variables: Vec<Arc<str>>,
    depth: usize,
}

impl Compiler {
    fn node(&mut self, expression: &IdedExpr) -> Result<Node, Problem> {
        self.depth += 1;
        if self.depth > EXPRESSION_DEPTH_MAX {
            return Err(Problem::new(format!("the expression is nested more than {EXPRESSION_DEPTH_MAX} deep")));
        }
        let node = match &expression.expr {
            Expr::Literal(literal) => literal_node(literal),
            Expr::Ident(name) => self.identifier(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                list.elements.iter().map(|element| self.node(element)).collect::<Result<_, _>>().map(Node::List)
            }
            Expr::Map(map) => map
                .entries
                .iter()
                .map(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => Ok((self.node(&entry.key)?, self.node(&entry.value)?)),
                    EntryExpr::StructField(_) => {
                        Err(Problem::new("an object is written with quoted keys: {'name': value}"))
                    }
                })
                .collect::<Result<_, _>>()
                .map(Node::Object),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(message) => Err(Problem::new(format!("there is no type `{}`", message.type_name))
                .help("an object is written with quoted keys: {'name': value}")
                .about(&message.type_name)),
            Expr::Unspecified => Err(Problem::new("the expression cannot be read")),
        };
        self.depth -= 1;
        node
    }

    fn identifier(&self, name: &str) -> Result<Node, Problem> {
        if let Some(variable) = self.variables.iter().rev().find(|variable| ***variable == *name) {
            return Ok(Node::Variable(Arc::clone(variable)));
        }
        match name {
            "item" => Ok(Node::Item),
            "index" => Ok(Node::Index),
            "inputs" => Err(Problem::new("`inputs` is followed by the name of an input")
                .help("write `inputs.name`")
                .about(name)),
            "steps" => Err(Problem::new("`steps` is followed by a step and one of its outputs")
                .help("write `steps.name.outputs.output`")
                .about(name)),
            _ => {
                let known = ["inputs", "steps", "item", "index"].into_iter();
                let known = known.chain(self.variables.iter().map(|variable| &**variable));
                let problem = Problem::new(format!("there is nothing called `{name}` here")).about(name);
                Err(match crate::suggestion::did_you_mean(name, known) {
                    Some(help) => problem.help(help),
                    None => problem,
                })
            }
        }
    }

    /// A field of something, or a reference: `inputs.x`, `steps.x.outputs.y`, with `["x"]` for a name with a `-`.
    fn select(&mut self, select: &SelectExpr) -> Result<Node, Problem> {
        if select.test {
            return match self.reference(&select.operand, &select.field)? {
                Some(node) => {
                    // Every declared input and output is there; what may be missing is null.
                    Ok(Node::Call { function: Function::NotEqual, arguments: vec![node, Node::Literal(Value::Null)] })
                }
                None => Ok(Node::Has { of: Box::new(self.node(&select.operand)?), name: select.field.clone() }),
            };
        }
        match self.reference(&select.operand, &select.field)? {
            Some(node) => Ok(node),
            None => Ok(Node::Field { of: Box::new(self.node(&select.operand)?), name: select.field.clone() }),
        }
    }

    fn reference(&self, operand: &IdedExpr, field: &str) -> Result<Option<Node>, Problem> {
        if self.is_root(operand, "inputs") {
            return Ok(Some(Node::Input(field.to_owned())));
        }
        if self.is_root(operand, "steps") {
            return Err(Problem::new(format!("`steps.{field}` is followed by one of its outputs"))
                .help(format!("write `steps.{field}.outputs.name`; a name with a `-` in it is written `steps['a-b']`"))
                .about(format!("steps.{field}")));
        }
        let Some((of, outputs)) = step_of(operand) else { return Ok(None) };
        let Some((root, step)) = step_of(of) else { return Ok(None) };
        if !self.is_root(root, "steps") {
            return Ok(None);
        }
        if outputs != "outputs" {
            return Err(Problem::new(format!("a step has no `{outputs}`"))
                .help(format!("write `steps.{step}.outputs.{field}`"))
                .about(outputs));
        }
        Ok(Some(Node::Output { step: step.to_owned(), output: field.to_owned() }))
    }

    fn is_root(&self, expression: &IdedExpr, root: &str) -> bool {
        matches!(&expression.expr, Expr::Ident(name) if name == root)
            && !self.variables.iter().any(|variable| **variable == *root)
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, Problem> {
        if call.func_name == operators::INDEX
            && let [operand, index] = &call.args[..]
            && let Some(name) = text_of(index)
            && let Some(node) = self
                .reference(operand, name)
                .or_else(|problem| if self.is_root(operand, "steps") { Ok(None) } else { Err(problem) })?
        {
            return Ok(node);
        }
        let method = call.target.is_some();
        let count = call.args.len() + usize::from(method);
        let function = Function::find(&call.func_name, method, count)?;
        let mut arguments = Vec::with_capacity(count);
        for argument in call.target.as_deref().into_iter().chain(&call.args) {
            arguments.push(self.node(argument)?);
        }
        function.check_literals(&arguments)?;
        Ok(Node::Call { function, arguments })
    }

    /// Recognises what the parser made of a macro.
    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Result<Node, Problem> {
        let over = self.node(&comprehension.iter_range)?;
        let (kind, body, condition) = macro_parts(comprehension).ok_or_else(|| {
            Problem::new("this macro is not known").help("known: all, exists, exists_one, map, filter")
        })?;
        let variable: Arc<str> = Arc::from(comprehension.iter_var.as_str());
        self.variables.push(Arc::clone(&variable));
        let body = self.node(body);
        let condition = condition.map(|condition| self.node(condition)).transpose();
        self.variables.pop();
        Ok(Node::Macro(Box::new(Macro { kind, over, variable, body: body?, condition: condition? })))
    }
}

/// The shapes that the parser expands CEL's macros to; see `cel::parser::macros`.
fn macro_parts(comprehension: &ComprehensionExpr) -> Option<(MacroKind, &IdedExpr, Option<&IdedExpr>)> {
    let Expr::Call(step) = &comprehension.loop_step.expr else { return None };
    let is_result =
        |expression: &IdedExpr| matches!(&expression.expr, Expr::Ident(name) if *name == comprehension.accu_var);
    match (step.func_name.as_str(), &step.args[..]) {
        (operators::LOGICAL_AND, [result, body]) if is_result(result) => Some((MacroKind::All, body, None)),
        (operators::LOGICAL_OR, [result, body]) if is_result(result) => Some((MacroKind::Exists, body, None)),
        (operators::ADD, [result, element]) if is_result(result) => {
            Some((MacroKind::Map, only_element(element)?, None))
        }
        (operators::CONDITIONAL, [condition, kept, result]) if is_result(result) => {
            let Expr::Call(kept) = &kept.expr else { return None };
            let [_, added] = &kept.args[..] else { return None };
            match (&added.expr, only_element(added)) {
                (Expr::Literal(_), _) => Some((MacroKind::ExistsOne, condition, None)),
                (_, Some(IdedExpr { expr: Expr::Ident(name), .. })) if *name == comprehension.iter_var => {
                    Some((MacroKind::Filter, condition, None))
                }
                (_, Some(element)) => Some((MacroKind::Map, element, Some(condition))),
                (_, None) => None,
            }
        }
        _ => None,
    }
}

fn only_element(expression: &IdedExpr) -> Option<&IdedExpr> {
    match &expression.expr {
        Expr::List(list) => list.elements.first(),
        _ => None,
    }
}

/// Takes `x.name` or `x["name"]` apart.
fn step_of(expression: &IdedExpr) -> Option<(&IdedExpr, &str)> {
    match &expression.expr {
        Expr::Select(select) if !select.test => Some((&select.operand, &select.field)),
        Expr::Call(call) if call.func_name == operators::INDEX => match &call.args[..] {
            [operand, index] => Some((operand, text_of(index)?)),
            _ => None,
        },
        _ => None,
    }
}

fn text_of(expression: &IdedExpr) -> Option<&str> {
    match &expression.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn literal_node(literal: &LiteralValue) -> Result<Node, Problem> {
    Ok(Node::Literal(match literal {
        LiteralValue::Boolean(truth) => Value::Boolean(*truth.inner()),
        LiteralValue::Double(number) => Value::Number(*number.inner()),
        LiteralValue::Int(integer) => Value::Integer(*integer.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(text) => Value::string(text.inner()),
        LiteralValue::UInt(number) => {
            let text = format!("{}u", number.inner());
            return Err(Problem::new("there are no unsigned numbers here").help("leave out the `u`").about(text));
        }
        LiteralValue::Bytes(_) => {
            return Err(Problem::new("there are no byte strings here").help("leave out the `b` before the quote"));
        }
    }))
}
