//! Copies that sites were told to have, because a rule wants so.

use atoll_model::id::{ExecutionId, ObjectId, SiteId};
use atoll_model::value::ObjectRef;
use serde::{Deserialize, Serialize};

use super::{Outgoing, State};
use crate::fact::{Fact, RuleText};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplicaOrder {
    pub(crate) object: ObjectRef,
    /// What made it.
    pub(crate) execution: ExecutionId,
    pub(crate) rule: RuleText,
}

impl State {
    /// Sites that were told to have a copy of the object, and do not have it yet.
    pub(crate) fn copying(&self, object: ObjectId) -> impl Iterator<Item = SiteId> {
        let of_object = (object, SiteId(0))..=(object, SiteId(u32::MAX));
        self.replicas.range(of_object).map(|((_, site), _)| *site)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_replicas(&mut self, fact: &Fact) {
        match fact {
            Fact::ReplicaOrdered { object, site, execution, rule } => {
                let order = ReplicaOrder { object: *object, execution: *execution, rule: rule.clone() };
                self.replicas.insert((object.id, *site), order);
                self.site_mut(*site).log.push(Outgoing::Replicate { object: *object, execution: *execution });
            }
            Fact::ReplicaEnded { object, site, made } => {
                let Some(order) = self.replicas.remove(&(*object, *site)) else { return };
                if *made && self.objects.contains_key(object) {
                    self.add_replica(order.object, *site);
                }
                self.drop_if_unknown(*object);
            }
            _ => unreachable!("evolve hands over facts about replicas only"),
        }
    }
}
