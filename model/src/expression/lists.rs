//! Functions over lists.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each operation names the kinds that it takes, and refuses all others alike"
)]

use std::cmp::Ordering;
use std::sync::Arc;

use super::evaluate::Budget;
use super::functions::Function;
use super::operators::{add, equal, order, refused, template_text};
use crate::value::Value;

pub(super) fn on_list(
    function: Function,
    first: Value,
    second: Option<Value>,
    budget: &mut Budget,
) -> Result<Value, String> {
    let Value::List(values) = &first else { return Err(refused(function, &[&first])) };
    budget.spend(values.len())?;
    match function {
        Function::Join => {
            let between = match &second {
                None => "",
                Some(Value::String(text)) => text,
                Some(other) => return Err(refused(function, &[&first, other])),
            };
            let parts = values.iter().map(template_text).collect::<Result<Vec<_>, _>>()?;
            budget.spend(parts.iter().map(|part| part.len() + between.len()).sum())?;
            Ok(Value::string(parts.join(between)))
        }
        Function::Reverse => Ok(Value::list(values.iter().rev().cloned().collect())),
        Function::Sort => sort(values, budget),
        Function::Distinct => {
            let mut distinct: Vec<Value> = Vec::new();
            for value in values.iter() {
                let mut known = false;
                for earlier in &distinct {
                    known = known || equal(value, earlier, budget)?;
                }
                if !known {
                    distinct.push(value.clone());
                }
            }
            Ok(Value::list(distinct))
        }
        Function::Flatten => {
            let mut flat = Vec::new();
            for value in values.iter() {
                match value {
                    Value::List(inner) => {
                        budget.spend(inner.len())?;
                        flat.extend(inner.iter().cloned());
                    }
                    other => flat.push(other.clone()),
                }
            }
            Ok(Value::list(flat))
        }
        _ => {
            let mut values = values.iter().cloned();
            let Some(mut total) = values.next() else { return Ok(Value::Integer(0)) };
            for value in values {
                total = add(total, value, budget)?;
            }
            match total {
                Value::Integer(_) | Value::Number(_) => Ok(total),
                other => Err(refused(function, &[&other])),
            }
        }
    }
}

fn sort(values: &Arc<Vec<Value>>, budget: &mut Budget) -> Result<Value, String> {
    let comparisons = values.len().saturating_mul(values.len().checked_ilog2().unwrap_or(0) as usize);
    budget.spend(comparisons)?;
    if let Some(pair) = values.windows(2).find(|pair| order(&pair[0], &pair[1]).is_none()) {
        return Err(refused(Function::Sort, &[&pair[0], &pair[1]]));
    }
    let mut sorted = values.to_vec();
    // Integers beside numbers are compared as numbers throughout: a comparison by pairs would not be transitive.
    let number = |value: &Value| match value {
        Value::Integer(integer) => Some(*integer as f64),
        Value::Number(number) => Some(*number),
        _ => None,
    };
    if sorted.iter().any(|value| matches!(value, Value::Number(_))) {
        sorted.sort_by(|left, right| number(left).partial_cmp(&number(right)).unwrap_or(Ordering::Equal));
    } else {
        sorted.sort_by(|left, right| order(left, right).unwrap_or(Ordering::Equal));
    }
    Ok(Value::list(sorted))
}

pub(super) fn extreme(function: Function, values: &[Value], budget: &mut Budget) -> Result<Value, String> {
    budget.spend(values.len())?;
    let mut values = values.iter();
    let first = values.next().ok_or_else(|| format!("`{}` of nothing has no value", function.shown()))?;
    let mut best = first;
    for value in values {
        let order = order(value, best).ok_or_else(|| refused(function, &[best, value]))?;
        if (function == Function::Minimum && order.is_lt()) || (function == Function::Maximum && order.is_gt()) {
            best = value;
        }
    }
    Ok(best.clone())
}
