//! Repositories: added and removed, looked at when somebody or the clock asks, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use atoll_model::id::ObjectId;
use atoll_model::limits::{REPOSITORIES_MAX, REPOSITORY_PERIOD_MAX, REPOSITORY_PERIOD_MIN};
use atoll_model::repository::{RepositoryName, RepositorySource};

use crate::agenda::Timer;
use crate::command::{Rejection, Response};
use crate::control_plane::ControlPlane;
use crate::fact::Fact;
use crate::registry::{ActionName, ActionVersion};
use crate::repositories::{Finding, Import, ImportMode, ImportOutcome, ImportReport, Origin, Repositories, Repository};

impl ControlPlane {
    /// Every repository, and what goes on with it. Cheap: it is shared until it changes.
    pub fn repositories(&self) -> Arc<Repositories> {
        Arc::clone(&self.state.repositories)
    }

    /// What is to be said of a version that was found at this place with this content.
    pub fn finding(&self, name: &ActionName, bundle: ObjectId, place: &Origin) -> Finding {
        let registry = &self.state.registry;
        match (registry.get(name).map(|known| known.bundle.id), registry.removed(name)) {
            (Some(former), _) | (None, Some(former)) if former != bundle => {
                Finding::Failed(self.other_content(name, former, place))
            }
            (Some(_), _) => Finding::Known,
            (None, Some(_)) => Finding::Removed,
            (None, None) => Finding::New,
        }
    }

    /// Adds a repository and has it looked at: imported if the clock is to import it, else scanned.
    pub(crate) fn add_repository(
        &mut self,
        name: RepositoryName,
        source: RepositorySource,
        every: Option<Duration>,
        by: String,
    ) -> Result<Response, Rejection> {
        if let Some(known) = self.state.repositories.get(&name) {
            if known.source == source && known.every == every {
                // Its answer was lost, or somebody wants what is so already.
                return Ok(Response::Done);
            }
            let reason = format!(
                "project {} has a repository {} already, of {}: remove it first, or give this one another name",
                name.project, name.name, known.source.url
            );
            return Err(Rejection::Conflict(reason));
        }
        if every.is_some_and(|every| !(REPOSITORY_PERIOD_MIN..=REPOSITORY_PERIOD_MAX).contains(&every)) {
            let (least, most) = (REPOSITORY_PERIOD_MIN.as_secs(), REPOSITORY_PERIOD_MAX.as_secs());
            return Err(Rejection::Invalid(format!("a repository is imported every {least} to {most} seconds")));
        }
        if self.state.repositories.len() >= REPOSITORIES_MAX {
            let reason = format!("no more than {REPOSITORIES_MAX} repositories can be kept: remove one");
            return Err(Rejection::Unavailable(reason));
        }
        let mode = if every.is_some() { ImportMode::Import } else { ImportMode::Scan };
        let repository = Repository {
            source,
            every,
            added_by: by.clone(),
            added_at: self.now,
            imported_at: None,
            under_way: None,
            last: None,
        };
        self.record(Fact::RepositoryAdded { name: name.clone(), repository: Box::new(repository) });
        self.ask_import(name, mode, Some(by));
        Ok(Response::Done)
    }

    /// Forgets a repository. What came from it stays; what goes on with it counts no more.
    pub(crate) fn remove_repository(&mut self, name: RepositoryName) -> Result<Response, Rejection> {
        self.known_repository(&name)?;
        self.record(Fact::RepositoryRemoved { name });
        Ok(Response::Done)
    }

    /// Has a repository looked at, if that is not being done.
    pub(crate) fn look_at_repository(
        &mut self,
        name: RepositoryName,
        mode: ImportMode,
        by: String,
    ) -> Result<Response, Rejection> {
        match &self.known_repository(&name)?.under_way {
            None => self.ask_import(name, mode, Some(by)),
            Some(import) if import.mode == mode => {}
            Some(_) => {
                let (doing, name) = (if mode == ImportMode::Import { "scanned" } else { "imported" }, &name.name);
                let reason = format!("repository {name} is being {doing}: wait for the end of it, or cancel it");
                return Err(Rejection::Conflict(reason));
            }
        }
        Ok(Response::Done)
    }

    /// Ends what goes on with a repository. What it has pushed by now stays pushed.
    pub(crate) fn cancel_import(&mut self, name: RepositoryName, by: String) -> Result<Response, Rejection> {
        if self.known_repository(&name)?.under_way.is_some() {
            let outcome = ImportOutcome::Cancelled { by };
            let report = ImportReport { commit: None, outcome, actions: Vec::new(), log: String::new() };
            self.end_of_import(name, report);
        }
        Ok(Response::Done)
    }

    /// What a shell has found. Of what was cancelled, or belongs to a repository that was removed, nothing counts.
    pub(crate) fn import_ended(
        &mut self,
        name: RepositoryName,
        number: u64,
        report: ImportReport,
    ) -> Result<Response, Rejection> {
        if self.is_under_way(&name, number) {
            self.end_of_import(name, report.bounded());
        }
        Ok(Response::Done)
    }

    /// Pushes a version that an import has found, while that goes on.
    pub(crate) fn push_imported(
        &mut self,
        number: u64,
        name: ActionName,
        version: ActionVersion,
        origin: Origin,
    ) -> Result<Response, Rejection> {
        let repository = RepositoryName { project: name.project.clone(), name: origin.repository.clone() };
        if !self.is_under_way(&repository, number) {
            return Err(Rejection::Conflict("the import was cancelled".to_owned()));
        }
        match self.finding(&name, version.bundle.id, &origin) {
            Finding::Failed(reason) => return Err(Rejection::Conflict(reason)),
            Finding::Removed => return Err(Rejection::Conflict(format!("{} was removed", name.reference))),
            Finding::Known | Finding::New | Finding::Imported | Finding::Invalid(_) => {}
        }
        self.push_action(name.clone(), version)?;
        if self.state.repositories.origin(&name).is_none() {
            self.record(Fact::ActionImported { name, origin: Box::new(origin) });
        }
        Ok(Response::Done)
    }

    /// What is wrong with a version that stands for something else already, which this commit has other content for.
    fn other_content(&self, name: &ActionName, former: ObjectId, new: &Origin) -> String {
        let came = match (self.state.repositories.origin(name), self.state.registry.get(name)) {
            (Some(Origin { repository, commit, path, .. }), _) => {
                format!("came from commit {commit} of repository {repository} ({path})")
            }
            (None, Some(version)) => format!("was pushed by {}", version.pushed_by),
            (None, None) => "was removed".to_owned(),
        };
        format!(
            "{} is {former}, which {came}, and never changes; commit {} has something else in {}: give it another version",
            name.reference, new.commit, new.path
        )
    }

    /// The time of an import by the clock may have come.
    pub(crate) fn look_at_schedule(&mut self) {
        while let Some((_, name)) = self.state.repositories.next_due().filter(|(due, _)| *due <= self.now) {
            self.ask_import(name, ImportMode::Import, None);
        }
        self.set_schedule();
    }

    pub(crate) fn set_schedule(&mut self) {
        if let Some((due, _)) = self.state.repositories.next_due() {
            self.agenda.set(due, Timer::Repositories);
        }
    }

    fn ask_import(&mut self, name: RepositoryName, mode: ImportMode, by: Option<String>) {
        let import = Import { number: self.state.repositories.next_number(), mode, by, at: self.now };
        self.record(Fact::ImportAsked { name, import });
    }

    fn end_of_import(&mut self, name: RepositoryName, report: ImportReport) {
        self.record(Fact::ImportEnded { name, at: self.now, report: Box::new(report) });
        self.set_schedule();
    }

    fn is_under_way(&self, name: &RepositoryName, number: u64) -> bool {
        let under_way = self.state.repositories.get(name).and_then(|repository| repository.under_way.as_ref());
        under_way.is_some_and(|import| import.number == number)
    }

    fn known_repository(&self, name: &RepositoryName) -> Result<&Repository, Rejection> {
        let repositories = &self.state.repositories;
        repositories.get(name).ok_or_else(|| Rejection::NotFound(repositories.why_missing(name)))
    }
}
