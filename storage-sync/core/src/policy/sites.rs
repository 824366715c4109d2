//! Which sites the confinements leave.

use std::collections::{BTreeMap, BTreeSet};

use atoll_model::policy::Location;

use super::{Layer, RuleId, confinement};

/// The sites where the data may not be, each with every rule that says so.
pub(super) fn forbidden(
    layers: &[Layer<'_>],
    confined_by: &BTreeSet<RuleId>,
    sites: &[Location<'_>],
) -> BTreeMap<usize, BTreeSet<RuleId>> {
    let mut forbidden: BTreeMap<usize, BTreeSet<RuleId>> = BTreeMap::new();
    for id in confined_by {
        let Some(confine) = confinement(layers, *id) else { continue };
        for (number, site) in sites.iter().enumerate() {
            if !confine.to.admits(*site) {
                forbidden.entry(number).or_default().insert(*id);
            }
        }
    }
    forbidden
}
