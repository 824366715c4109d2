//! The operators and functions of expressions: their names, how they are called, and the types of what they yield.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use super::compile::Problem;
use super::glob::Pattern;
use super::program::Node;
use crate::suggestion::did_you_mean;
use crate::value::{Type, Value};

/// An operator or function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Conditional,
    And,
    Or,
    Not,
    Negate,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    At,
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Matches,
    ToInteger,
    ToNumber,
    ToText,
    ToBoolean,
    Lower,
    Upper,
    Trim,
    Replace,
    Split,
    Join,
    Sort,
    Reverse,
    Distinct,
    Flatten,
    Minimum,
    Maximum,
    Sum,
    Files,
    Range,
}

/// How a function may be called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Operator,
    Global,
    Method,
    Both,
}

/// Name in CEL, function, style, fewest and most arguments with the one before the dot.
type Signature = (&'static str, Function, Style, usize, usize);

const FUNCTIONS: &[Signature] = {
    use Function::*;
    use Style::{Both, Global, Method, Operator};
    &[
        ("_?_:_", Conditional, Operator, 3, 3),
        ("_&&_", And, Operator, 2, 2),
        ("_||_", Or, Operator, 2, 2),
        ("!_", Not, Operator, 1, 1),
        ("-_", Negate, Operator, 1, 1),
        ("_+_", Add, Operator, 2, 2),
        ("_-_", Subtract, Operator, 2, 2),
        ("_*_", Multiply, Operator, 2, 2),
        ("_/_", Divide, Operator, 2, 2),
        ("_%_", Remainder, Operator, 2, 2),
        ("_==_", Equal, Operator, 2, 2),
        ("_!=_", NotEqual, Operator, 2, 2),
        ("_<_", Less, Operator, 2, 2),
        ("_<=_", LessOrEqual, Operator, 2, 2),
        ("_>_", Greater, Operator, 2, 2),
        ("_>=_", GreaterOrEqual, Operator, 2, 2),
        ("@in", In, Operator, 2, 2),
        ("_[_]", At, Operator, 2, 2),
        ("size", Size, Both, 1, 1),
        ("contains", Contains, Method, 2, 2),
        ("startsWith", StartsWith, Method, 2, 2),
        ("endsWith", EndsWith, Method, 2, 2),
        ("matches", Matches, Both, 2, 2),
        ("int", ToInteger, Global, 1, 1),
        ("double", ToNumber, Global, 1, 1),
        ("string", ToText, Global, 1, 1),
        ("bool", ToBoolean, Global, 1, 1),
        ("lowerAscii", Lower, Method, 1, 1),
        ("upperAscii", Upper, Method, 1, 1),
        ("trim", Trim, Method, 1, 1),
        ("replace", Replace, Method, 3, 3),
        ("split", Split, Method, 2, 2),
        ("join", Join, Method, 1, 2),
        ("sort", Sort, Method, 1, 1),
        ("reverse", Reverse, Method, 1, 1),
        ("distinct", Distinct, Method, 1, 1),
        ("flatten", Flatten, Method, 1, 1),
        ("min", Minimum, Global, 1, 8),
        ("max", Maximum, Global, 1, 8),
        ("sum", Sum, Both, 1, 1),
        ("files", Files, Both, 1, 2),
        ("range", Range, Global, 1, 1),
    ]
};

impl Function {
    pub(super) fn find(name: &str, method: bool, count: usize) -> Result<Self, Problem> {
        let Some((_, function, style, fewest, most)) = FUNCTIONS.iter().find(|signature| signature.0 == name) else {
            let macros = ["all", "exists", "exists_one", "map", "filter", "has"];
            if macros.contains(&name) {
                let usage = if name == "has" { "has(a.b)" } else { "list.NAME(x, condition or value of x)" };
                return Err(Problem::new(format!("`{name}` is not used like this"))
                    .help(format!("write `{}`", usage.replace("NAME", name)))
                    .about(name));
            }
            let known =
                FUNCTIONS.iter().filter(|signature| signature.2 != Style::Operator).map(|signature| signature.0);
            let problem = Problem::new(format!("there is no function `{name}`")).about(name);
            return Err(match did_you_mean(name, known.chain(macros)) {
                Some(help) => problem.help(help),
                None => problem,
            });
        };
        let arguments = count - usize::from(method);
        if (method && *style == Style::Global) || (!method && *style == Style::Method) {
            let usage = if method { format!("{name}(…)") } else { format!("value.{name}(…)") };
            return Err(Problem::new(format!("`{name}` is not called like this"))
                .help(format!("write `{usage}`"))
                .about(name));
        }
        if !(*fewest..=*most).contains(&count) {
            let before = usize::from(method);
            let wanted = if fewest == most {
                format!("{}", fewest - before)
            } else {
                format!("{} to {}", fewest.saturating_sub(before), most - before)
            };
            let noun = if wanted == "1" { "argument" } else { "arguments" };
            return Err(Problem::new(format!("`{name}` takes {wanted} {noun}, not {arguments}")).about(name));
        }
        Ok(*function)
    }

    /// Checks what can be known of arguments that are written out: patterns.
    pub(super) fn check_literals(self, arguments: &[Node]) -> Result<(), Problem> {
        let Some(Node::Literal(Value::String(pattern))) = arguments.get(1) else { return Ok(()) };
        if self == Self::Matches {
            super::evaluate::regular_expression(pattern).map_err(|message| Problem::new(message).about(&**pattern))?;
        } else if self == Self::Files {
            Pattern::new(pattern).map_err(|message| Problem::new(message).about(&**pattern))?;
        }
        Ok(())
    }

    /// How the function is written, for messages.
    pub(super) fn shown(self) -> &'static str {
        let name = FUNCTIONS.iter().find(|signature| signature.1 == self).map_or("", |signature| signature.0);
        match self {
            Self::Conditional => "?:",
            Self::In => "in",
            Self::At => "[]",
            _ => name.trim_matches('_'),
        }
    }

    /// The type of what it yields for arguments of these types.
    ///
    /// # Errors
    /// What it needs, where the arguments can never do.
    pub(super) fn yields(self, arguments: &[Type]) -> Result<Type, String> {
        let number = |r#type: &Type| matches!(r#type, Type::Integer | Type::Number | Type::Any);
        let text = |r#type: &Type| matches!(r#type, Type::String | Type::Enum(_) | Type::Any);
        let list = |r#type: &Type| matches!(r#type, Type::List(_) | Type::Any);
        let truth = |r#type: &Type| matches!(r#type, Type::Boolean | Type::Any);
        let needs = |fits: bool, what: &str, yields: Type| {
            if fits { Ok(yields) } else { Err(format!("`{}` needs {what}, not {}", self.shown(), listed(arguments))) }
        };
        let [first, rest @ ..] = arguments else { return Ok(Type::Any) };
        let second = rest.first().unwrap_or(&Type::Any);
        match self {
            Self::Conditional => {
                let otherwise = rest.get(1).unwrap_or(&Type::Any);
                let both = if second == otherwise { second.clone() } else { Type::Any };
                needs(truth(first), "a condition that is true or false", both)
            }
            Self::And | Self::Or => needs(truth(first) && truth(second), "true or false on both sides", Type::Boolean),
            Self::Not => needs(truth(first), "true or false", Type::Boolean),
            Self::Negate => needs(number(first), "a number", first.clone()),
            Self::Add => match (first, second) {
                (Type::List(left), Type::List(right)) => {
                    Ok(Type::List(if left == right { left.clone() } else { None }))
                }
                (Type::Any, other) | (other, Type::Any) if number(other) || text(other) || list(other) => Ok(Type::Any),
                _ if text(first) && text(second) => Ok(Type::String),
                _ => needs(
                    first == second && number(first),
                    "two integers, two numbers, two strings or two lists (convert with `double(…)`, `string(…)`)",
                    first.clone(),
                ),
            },
            Self::Subtract | Self::Multiply | Self::Divide | Self::Remainder => {
                let known = if *first == Type::Any { second } else { first };
                let alike = first == second || *first == Type::Any || *second == Type::Any;
                needs(
                    alike && number(first) && number(second),
                    "two integers or two numbers (convert with `double(…)`)",
                    known.clone(),
                )
            }
            Self::Equal | Self::NotEqual => {
                needs(first.accepts(second) || second.accepts(first), "two values that can be equal", Type::Boolean)
            }
            Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual => {
                let comparable = (number(first) && number(second))
                    || (text(first) && text(second))
                    || (truth(first) && truth(second));
                needs(comparable, "two numbers or two strings", Type::Boolean)
            }
            Self::In => {
                needs(list(second) || *second == Type::Object, "a list or an object on its right", Type::Boolean)
            }
            Self::At => match first {
                Type::List(element) => needs(
                    matches!(second, Type::Integer | Type::Any),
                    "an integer as the index",
                    element.as_deref().cloned().unwrap_or(Type::Any),
                ),
                _ => needs(matches!(first, Type::Object | Type::Any), "a list or an object", Type::Any),
            },
            Self::Size => {
                let sized = text(first) || list(first) || matches!(first, Type::Object | Type::File | Type::Directory);
                needs(sized, "a list, an object, a string, a file or a directory", Type::Integer)
            }
            Self::Contains | Self::StartsWith | Self::EndsWith | Self::Matches => {
                needs(text(first) && text(second), "strings", Type::Boolean)
            }
            Self::ToInteger => needs(text(first) || number(first), "a number or a string", Type::Integer),
            Self::ToNumber => needs(text(first) || number(first), "a number or a string", Type::Number),
            Self::ToText => {
                needs(text(first) || number(first) || truth(first), "a number, a boolean or a string", Type::String)
            }
            Self::ToBoolean => needs(text(first) || truth(first), "a boolean or a string", Type::Boolean),
            Self::Lower | Self::Upper | Self::Trim => needs(text(first), "a string", Type::String),
            Self::Replace => needs(arguments.iter().all(text), "strings", Type::String),
            Self::Split => needs(text(first) && text(second), "strings", Type::List(Some(Box::new(Type::String)))),
            Self::Join => {
                needs(list(first) && text(second), "a list of strings, and a string between them", Type::String)
            }
            Self::Sort | Self::Reverse | Self::Distinct => needs(list(first), "a list", first.clone()),
            Self::Flatten => match first {
                Type::List(Some(inner)) if list(inner) => Ok((**inner).clone()),
                _ => needs(list(first), "a list", Type::List(None)),
            },
            Self::Minimum | Self::Maximum => match (first, rest) {
                (Type::List(element), []) => Ok(element.as_deref().cloned().unwrap_or(Type::Any)),
                (Type::Any, _) => Ok(Type::Any),
                _ => needs(arguments.iter().all(number), "numbers, or a list of them", first.clone()),
            },
            Self::Sum => match first {
                Type::List(element) => Ok(element.as_deref().cloned().unwrap_or(Type::Any)),
                _ => needs(*first == Type::Any, "a list of numbers", Type::Any),
            },
            Self::Files => needs(
                matches!(first, Type::Directory | Type::Any) && text(second),
                "a directory, and a pattern like \"*.csv\"",
                Type::List(Some(Box::new(Type::File))),
            ),
            Self::Range => needs(
                matches!(first, Type::Integer | Type::Any),
                "an integer",
                Type::List(Some(Box::new(Type::Integer))),
            ),
        }
    }
}

fn listed(types: &[Type]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
