//! Whole steps that are delegated, and what an agent says when it is done with one.

use atoll_model::expression::Expression;
use atoll_model::id::{RunId, StepIndex};
use atoll_model::session::{Delegation, GivenInput, Need, Report};
use atoll_model::workflow::Retry;
use serde::{Deserialize, Serialize};

use crate::bindings::read_run;
use crate::error::{WireError, required};
use crate::types::{read_attempt, read_step, step};
use crate::v1 as wire;

/// What a delegation consists of beside the step's template.
#[derive(Serialize, Deserialize)]
struct Terms {
    retry: Retry,
    needs: Vec<Need>,
    inputs: Vec<(String, GivenInput)>,
    when: Option<Expression>,
    foreach: Option<Expression>,
    shared: Vec<(String, Expression)>,
    own: Vec<(String, Expression)>,
}

impl From<Delegation> for wire::Delegation {
    fn from(delegation: Delegation) -> Self {
        let Delegation { template, attempt, retry, needs, inputs, when, foreach, shared, own } = delegation;
        let terms = Terms { retry, needs, inputs, when, foreach, shared, own };
        let terms = postcard::to_stdvec(&terms).expect("what a journal keeps can be written into memory");
        Self { template: Some(template.into()), attempt: attempt.0, terms: terms.into() }
    }
}

impl TryFrom<wire::Delegation> for Delegation {
    type Error = WireError;

    fn try_from(message: wire::Delegation) -> Result<Self, WireError> {
        let template = required(message.template, "delegation.template")?.try_into()?;
        let terms = postcard::from_bytes(&message.terms);
        let Terms { retry, needs, inputs, when, foreach, shared, own } =
            terms.map_err(|_| WireError::UnknownKind { field: "delegation.terms" })?;
        let attempt = read_attempt(u64::from(message.attempt))?;
        Ok(Self { template, attempt, retry, needs, inputs, when, foreach, shared, own })
    }
}

pub(crate) fn write_ended(
    run: RunId,
    index: StepIndex,
    kept: Vec<(atoll_model::id::Attempt, atoll_model::elements::ElementSet)>,
    reason: String,
) -> wire::DelegationEnded {
    let kept = kept
        .into_iter()
        .map(|(attempt, elements)| wire::KeptElements { attempt: attempt.0, elements: Some((&elements).into()) });
    wire::DelegationEnded { run: Some(run.into()), step: step(index), kept: kept.collect(), reason }
}

pub(crate) fn read_ended(message: wire::DelegationEnded) -> Result<Report, WireError> {
    let mut kept = Vec::with_capacity(message.kept.len());
    for of_attempt in message.kept {
        let elements = required(of_attempt.elements, "delegation_ended.kept")?.try_into()?;
        kept.push((read_attempt(u64::from(of_attempt.attempt))?, elements));
    }
    let (run, step) = (read_run(message.run)?, read_step(message.step)?);
    Ok(Report::DelegationEnded { run, step, kept, reason: message.reason })
}
