//! What an expression refers to, and the type that follows for it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::compile::Problem;
use super::functions::Function;
use super::program::{Macro, MacroKind, Node};
use crate::id::StepIndex;
use crate::suggestion::{did_you_mean, nearest};
use crate::value::Type;

/// What the expressions of a workflow may name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Declared inputs in the order of the file, with the step that takes them in where a site holds them.
    pub(crate) inputs: BTreeMap<String, (Type, Option<StepIndex>)>,
    pub(crate) steps: BTreeMap<String, StepNames>,
    /// Whether there is no run whose inputs and steps could be named.
    pub(crate) before_any_run: bool,
}

#[derive(Debug)]
pub(crate) struct StepNames {
    pub(crate) index: StepIndex,
    pub(crate) fans_out: bool,
    pub(crate) outputs: BTreeMap<String, Type>,
    /// Whether nothing is known of its outputs, for its action could not be resolved.
    pub(crate) unknown: bool,
}

impl Names {
    /// Of what stays while a workflow is deployed, which is begun before any run of it.
    pub(crate) fn before_any_run() -> Self {
        Self { before_any_run: true, ..Self::default() }
    }

    fn check_run(&self, kind: &str, name: &str) -> Result<(), Problem> {
        if !self.before_any_run {
            return Ok(());
        }
        let problem = Problem::new(format!("`{kind}.{name}` is of a run, and this is begun before any run"));
        Err(problem.help("write the value itself".to_owned()).about(format!("{kind}.{name}")))
    }

    pub(super) fn input(&self, name: &str) -> Result<(&Type, Option<StepIndex>), Problem> {
        if let Some((r#type, step)) = self.inputs.get(name) {
            return Ok((r#type, *step));
        }
        self.check_run("inputs", name)?;
        let problem = Problem::new(format!("the workflow has no input `{name}`")).about(format!("inputs.{name}"));
        let help = did_you_mean(name, self.inputs.keys().map(String::as_str));
        Err(problem.help(help.unwrap_or_else(|| format!("declare it under `inputs:` as `{name}: {{ type: … }}`"))))
    }

    /// The step and the type of its output: a list of its elements' outputs where it fans out.
    pub(super) fn output(&self, step: &str, output: &str) -> Result<(StepIndex, Type), Problem> {
        let Some(names) = self.steps.get(step) else {
            self.check_run("steps", step)?;
            let problem = Problem::new(format!("there is no step `{step}`")).about(format!("steps.{step}"));
            return Err(match did_you_mean(step, self.steps.keys().map(String::as_str)) {
                Some(help) => problem.help(help),
                None => problem,
            });
        };
        match names.outputs.get(output) {
            Some(r#type) if names.fans_out => Ok((names.index, Type::List(Some(Box::new(r#type.clone()))))),
            Some(r#type) => Ok((names.index, r#type.clone())),
            None if names.unknown => Ok((names.index, Type::Any)),
            None => {
                let known = names.outputs.keys().map(String::as_str);
                let help = match nearest(output, known.clone()) {
                    Some(near) => format!("did you mean `steps.{step}.outputs.{near}`?"),
                    None if names.outputs.is_empty() => {
                        format!("it declares none; add `outputs: {{ {output}: file }}` to it")
                    }
                    None => did_you_mean(output, known).unwrap_or_default(),
                };
                let problem = Problem::new(format!("step `{step}` has no output `{output}`"));
                Err(problem.help(help).about(format!("outputs.{output}")))
            }
        }
    }
}

/// What is known of an expression once its references are resolved.
#[derive(Debug, Default)]
pub(super) struct Derived {
    pub(super) steps: BTreeMap<String, StepIndex>,
    pub(super) inputs: Vec<String>,
    pub(super) item: bool,
    /// Directories whose files it asks for; all that it reads, where that cannot be told.
    pub(super) listed: Vec<Listed>,
    pub(super) problems: Vec<Problem>,
}

/// A directory whose files an expression asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listed {
    Input(String),
    Output {
        step: StepIndex,
        output: String,
    },
    /// A directory that comes out of `item`.
    Item,
}

pub(super) struct Deriver<'names> {
    names: &'names Names,
    /// The type of `item`; nothing where there is no element.
    item: Option<&'names Type>,
    variables: Vec<(Arc<str>, Type)>,
    pub(super) derived: Derived,
}

impl<'names> Deriver<'names> {
    pub(super) fn new(names: &'names Names, item: Option<&'names Type>) -> Self {
        Self { names, item, variables: Vec::new(), derived: Derived::default() }
    }

    /// The type of a node; problems are collected, and what follows from them is of any type.
    pub(super) fn node(&mut self, node: &Node) -> Type {
        self.typed(node).unwrap_or_else(|problem| {
            self.derived.problems.push(problem);
            Type::Any
        })
    }

    fn typed(&mut self, node: &Node) -> Result<Type, Problem> {
        match node {
            Node::Literal(value) => Ok(super::template::type_of(value)),
            Node::Variable(name) => {
                let bound = self.variables.iter().rev().find(|(variable, _)| variable == name);
                Ok(bound.map_or(Type::Any, |(_, r#type)| r#type.clone()))
            }
            Node::Input(name) => {
                let (r#type, step) = self.names.input(name)?;
                match step {
                    Some(step) => {
                        self.derived.steps.insert(format!("inputs.{name}"), step);
                    }
                    None if !self.derived.inputs.contains(name) => self.derived.inputs.push(name.clone()),
                    None => {}
                }
                Ok(r#type.clone())
            }
            Node::Output { step, output } => {
                let (index, r#type) = self.names.output(step, output)?;
                self.derived.steps.insert(step.clone(), index);
                Ok(r#type)
            }
            Node::Item => {
                self.derived.item = true;
                match self.item {
                    Some(r#type) => Ok(r#type.clone()),
                    None => Err(no_element("item")),
                }
            }
            Node::Index => match self.item {
                Some(_) => {
                    self.derived.item = true;
                    Ok(Type::Integer)
                }
                None => Err(no_element("index")),
            },
            Node::Field { of, name } => {
                let of = self.node(of);
                field(&of, name)
            }
            Node::Has { of, .. } => {
                self.node(of);
                Ok(Type::Boolean)
            }
            Node::List(items) => {
                let types: Vec<Type> = items.iter().map(|item| self.node(item)).collect();
                let alike = types.windows(2).all(|pair| pair[0] == pair[1]);
                Ok(Type::List(types.into_iter().next().filter(|first| alike && *first != Type::Any).map(Box::new)))
            }
            Node::Object(fields) => {
                for (key, value) in fields {
                    let key = self.node(key);
                    self.node(value);
                    if !Type::String.accepts(&key) {
                        return Err(Problem::new(format!("the key of an object is a string, not {key}")));
                    }
                }
                Ok(Type::Object)
            }
            Node::Call { function, arguments } => {
                let types: Vec<Type> = arguments.iter().map(|argument| self.node(argument)).collect();
                if *function == Function::Files {
                    self.note_listed(&arguments[0]);
                }
                function.yields(&types).map_err(|message| Problem::new(message).about(function.shown()))
            }
            Node::Macro(each) => self.each(each),
        }
    }

    fn each(&mut self, each: &Macro) -> Result<Type, Problem> {
        let over = self.node(&each.over);
        let element = match &over {
            Type::List(element) => element.as_deref().cloned().unwrap_or(Type::Any),
            Type::Object => Type::String,
            Type::Any => Type::Any,
            other => return Err(Problem::new(format!("a macro goes over a list or an object, not over {other}"))),
        };
        self.variables.push((Arc::clone(&each.variable), element.clone()));
        let body = self.node(&each.body);
        let condition = each.condition.as_ref().map(|condition| self.node(condition));
        self.variables.pop();
        let truth = if each.kind == MacroKind::Map { condition } else { Some(body.clone()) };
        if let Some(other) = truth.filter(|truth| !Type::Boolean.accepts(truth)) {
            return Err(Problem::new(format!("the condition of a macro is true or false, not {other}")));
        }
        let list = |element: Type| Type::List((element != Type::Any).then(|| Box::new(element)));
        Ok(match each.kind {
            MacroKind::All | MacroKind::Exists | MacroKind::ExistsOne => Type::Boolean,
            MacroKind::Filter => list(element),
            MacroKind::Map => list(body),
        })
    }

    fn note_listed(&mut self, directory: &Node) {
        let mut listed = Vec::new();
        directory.visit(&mut |node| match node {
            Node::Input(name) => match self.names.inputs.get(name) {
                Some((_, Some(step))) => listed.push(Listed::Output { step: *step, output: name.clone() }),
                Some((_, None)) => listed.push(Listed::Input(name.clone())),
                None => {}
            },
            Node::Output { step, output } => {
                if let Some(names) = self.names.steps.get(step) {
                    listed.push(Listed::Output { step: names.index, output: output.clone() });
                }
            }
            Node::Item => listed.push(Listed::Item),
            Node::Variable(_) => listed.extend(self.all_directories()),
            Node::Literal(_)
            | Node::Index
            | Node::Field { .. }
            | Node::Has { .. }
            | Node::Call { .. }
            | Node::List(_)
            | Node::Object(_)
            | Node::Macro(_) => {}
        });
        self.derived.listed.extend(listed);
    }

    /// Every directory that the expression has named so far; what the variable of a macro holds comes from one of them.
    fn all_directories(&self) -> Vec<Listed> {
        let mut all: Vec<Listed> = self.derived.inputs.iter().cloned().map(Listed::Input).collect();
        for (name, index) in &self.derived.steps {
            match name.strip_prefix("inputs.") {
                Some(input) => all.push(Listed::Output { step: *index, output: input.to_owned() }),
                None => all.extend(self.names.steps.get(name).into_iter().flat_map(|names| {
                    names.outputs.keys().map(|output| Listed::Output { step: *index, output: output.clone() })
                })),
            }
        }
        if self.derived.item {
            all.push(Listed::Item);
        }
        all
    }
}

fn no_element(name: &str) -> Problem {
    Problem::new(format!("there is no `{name}` here: the step does not fan out"))
        .help("add `foreach: ${{ … }}` to the step")
        .about(name)
}

fn field(of: &Type, name: &str) -> Result<Type, Problem> {
    let known: &[&str] = match of {
        Type::Object | Type::Any => return Ok(Type::Any),
        Type::File => &["name", "size"],
        Type::Directory => &["name", "size", "files"],
        other => {
            let problem = Problem::new(format!("{other} has no field `{name}`")).about(format!(".{name}"));
            return Err(match other {
                Type::List(_) | Type::String if name == "size" => problem.help("write `.size()`"),
                Type::List(_) => problem.help(format!("take it of each element: `.map(x, x.{name})`")),
                _ => problem,
            });
        }
    };
    match name {
        "name" => Ok(Type::String),
        _ if known.contains(&name) => Ok(Type::Integer),
        _ => Err(Problem::new(format!("{of} has no field `{name}`"))
            .help(did_you_mean(name, known.iter().copied()).unwrap_or_default())
            .about(format!(".{name}"))),
    }
}
