//! The shared vocabulary of Atoll: ids, time, values, workflows, policies, the frames that the control plane and the
//! agents exchange, and every limit of the product.
//!
//! No I/O, no clock, no thread, no `async`. What a type holds is valid by construction: text is parsed once, at the
//! edge, and what cannot be valid is refused there with a [`diagnostic::Diagnostic`] that names file, line and column.
//!
//! Everything that travels in a journal or over the wire derives `serde` and is encoded with `postcard`; so a variant or
//! a field is only ever added at the end, and never changes its meaning.

pub mod action;
pub mod diagnostic;
pub mod digest;
pub mod elements;
pub mod expression;
pub mod id;
pub mod limits;
pub mod placement;
pub mod policy;
mod reading;
pub mod repository;
pub mod resources;
pub mod session;
pub mod suggestion;
pub mod ticket;
pub mod time;
pub mod units;
pub mod value;
pub mod workflow;
mod yaml;

/// The only document of a YAML text as JSON, by YAML's core schema.
///
/// # Errors
/// What is wrong with it first, with its line and column.
pub fn yaml_to_json(source: &str) -> Result<serde_json::Value, String> {
    let first = |problems: Vec<yaml::Problem>| {
        let problem = problems.into_iter().next();
        problem.map_or_else(String::new, |problem| {
            format!("{}:{}: {}", problem.place.line, problem.place.column, problem.message)
        })
    };
    yaml::parse(source).map(|root| root.to_value().to_json()).map_err(first)
}
