//! What a rule wants encrypted in the bucket, and by which key.

use std::sync::Arc;

use atoll_model::id::ObjectId;
use atoll_model::value::ObjectRef;

use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::encryption::{BucketCopy, Encryption, KeyId, WrappedKey};
use crate::fact::Fact;
use crate::state::ObjectState;

impl ControlPlane {
    /// How the copy of the object in the bucket is encrypted, or that on its way there.
    pub fn encryption_of(&self, object: ObjectId) -> Option<Encryption> {
        self.state.keys.of_copy(object).map(|key| self.encryption(key.clone()))
    }

    /// How what is sent in for a project is to be encrypted, if anything of it is.
    pub fn encryption_of_uploads(&self, project: &str, wanted: bool) -> Option<Encryption> {
        let rules = self.state.policy(project).map_or(&[][..], |applied| &applied.policy.rules);
        let of_input = rules.iter().any(|rule| rule.encrypt.is_some() && rule.matches.may_be_an_input());
        (wanted || of_input).then(|| self.encryption(self.state.keys.current(&Arc::from(project))))
    }

    /// Every key that was made.
    pub fn project_keys(&self) -> Vec<(KeyId, WrappedKey)> {
        self.state.keys.all().map(|(key, wrapped)| (key, wrapped.clone())).collect()
    }

    pub(crate) fn copy_of(&self, object: ObjectRef) -> BucketCopy {
        BucketCopy { object, encryption: self.encryption_of(object.id) }
    }

    fn encryption(&self, key: KeyId) -> Encryption {
        Encryption { wrapped: self.state.keys.wrapped(&key).cloned(), key }
    }

    /// The project of a run whose rules want the object encrypted, or of one of which somebody takes it out.
    pub(crate) fn encrypting(&self, object: &ObjectState) -> Option<Arc<str>> {
        let by_rule =
            self.rules_on(object).find(|(_, rules)| rules.encrypt.is_some()).map(|(run, _)| run.project.clone());
        let takers = self.agenda.clients.get(&object.reference.id).into_iter().flatten();
        by_rule.or_else(|| takers.filter_map(|taker| taker.encrypt.clone()).next())
    }

    /// A push was ordered: says how what it brings is encrypted, if it is to be.
    pub(crate) fn choose_encryption(&mut self, object: ObjectId) {
        if let Some(project) = self.state.objects.get(&object).and_then(|known| self.encrypting(known)) {
            let key = self.state.keys.current(&project);
            self.record(Fact::EncryptionChosen { object, key });
        }
    }

    /// Keeps a key that the shell has made, or wrapped anew. The one that is kept is answered: it is another if somebody was
    /// faster.
    pub(crate) fn keep_project_key(
        &mut self,
        key: KeyId,
        wrapped: WrappedKey,
        instead_of: Option<&WrappedKey>,
    ) -> Result<Response, Rejection> {
        let known = self.state.keys.wrapped(&key);
        let fits = match known {
            Some(_) => known == instead_of,
            None => instead_of.is_none() && self.state.keys.current(&key.project) == key,
        };
        if fits {
            self.record(Fact::ProjectKeyKept { key: key.clone(), wrapped });
        }
        match self.state.keys.wrapped(&key).cloned() {
            Some(wrapped) => Ok(Response::ProjectKey { wrapped }),
            None => Err(Rejection::NotFound(format!("there is no {key}"))),
        }
    }
}
