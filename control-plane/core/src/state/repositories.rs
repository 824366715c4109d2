//! How facts about repositories change the state.

use std::sync::Arc;

use super::State;
use crate::fact::Fact;

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "`evolve` names every fact once")]
    pub(super) fn evolve_repositories(&mut self, fact: &Fact) {
        let repositories = Arc::make_mut(&mut self.repositories);
        match fact {
            Fact::RepositoryAdded { name, repository } => repositories.add(name.clone(), (**repository).clone()),
            Fact::RepositoryRemoved { name } => repositories.remove(name),
            Fact::ImportAsked { name, import } => repositories.ask(name, import.clone()),
            Fact::ImportEnded { name, at, report } => repositories.end(name, *at, (**report).clone()),
            Fact::ActionImported { name, origin } => repositories.note_origin(name.clone(), (**origin).clone()),
            _ => unreachable!("evolve hands over facts about repositories only"),
        }
    }
}
