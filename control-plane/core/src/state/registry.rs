//! How facts about versions of actions change the state.

use std::sync::Arc;

use super::State;
use crate::fact::Fact;

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_registry(&mut self, fact: &Fact) {
        let registry = Arc::make_mut(&mut self.registry);
        match fact {
            Fact::ActionPushed { name, version } => registry.insert(name.clone(), Arc::clone(version)),
            Fact::ActionSigned { name, signature } => {
                registry.change(name, |version| version.signatures.push(*signature));
            }
            Fact::ActionDeprecated { name, deprecation } => {
                registry.change(name, |version| version.deprecated.clone_from(deprecation));
            }
            Fact::ActionRemoved { name } => {
                let bundle = registry.remove(name);
                self.drop_if_unknown(bundle);
            }
            _ => unreachable!("evolve hands over facts about actions only"),
        }
    }
}
