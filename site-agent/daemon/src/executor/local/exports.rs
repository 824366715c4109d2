//! Files and directories that are published: at a path of this machine, or in a bucket. Everything here blocks.

use std::path::{Path, PathBuf};

use atoll_model::id::ObjectId;
use atoll_model::session::{FailureReason, StepTemplate, TemplateWork};
use atoll_model::value::Value;
use atoll_model::workflow::{Outside, OutsideUrl};
use site_agent_core::command::{StartInput, StartValue};
use storage_sync_engine::publish::{PathTarget, publish_at_path, publish_in_bucket};
use tokio_util::sync::CancellationToken;

use super::orders;
use super::staging::{StagingFailure, full_message};
use crate::config::Exports;
use crate::shim::protocol::Key;
use crate::withheld::Withheld;

/// What is to be published.
#[derive(Debug)]
pub(super) struct Export {
    target: Outside,
    overwrite: bool,
    object: ObjectId,
    /// Where it stands, in the folder of the attempt's inputs.
    staged: PathBuf,
}

/// What the site's administrator has to say of it.
#[derive(Debug, Clone)]
pub(super) struct ExportRules {
    pub(super) exports: Exports,
    pub(super) withheld: Withheld,
    /// Where the agent keeps everything of its own.
    pub(super) data_dir: PathBuf,
}

impl Export {
    /// What an execution of the step publishes; nothing where its work is another.
    pub(super) fn of(template: &StepTemplate, inputs: &[StartInput]) -> Option<Result<Self, StagingFailure>> {
        let TemplateWork::Export { target, overwrite } = &template.work else { return None };
        let value = match inputs {
            [StartInput { value: StartValue::Value(value), .. }] => Some(value),
            // What may be published was committed before.
            [] | [StartInput { value: StartValue::Sealed { .. }, .. }] | [_, _, ..] => None,
        };
        let object = match value {
            Some(Value::File(file)) => file.object,
            Some(Value::Directory(tree)) => tree.object,
            Some(
                Value::Null
                | Value::Boolean(_)
                | Value::Integer(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::List(_)
                | Value::Object(_),
            )
            | None => {
                let message = format!("only a file or a directory is published, and {target} would be neither");
                return Some(Err(refuse(message)));
            }
        };
        let entry = orders::entries(inputs).into_iter().next()?;
        Some(Ok(Self { target: target.clone(), overwrite: *overwrite, object, staged: entry.path }))
    }

    /// Publishes it; `folder` is where the inputs of the attempt stand.
    pub(super) fn publish(
        &self,
        key: Key,
        folder: &Path,
        rules: &ExportRules,
        given_up: &CancellationToken,
    ) -> Result<(), StagingFailure> {
        let from = folder.join(&self.staged);
        match &self.target {
            Outside::Path(path) => {
                let unfinished = format!(".atoll-{}.", key.execution);
                let target = PathTarget {
                    path: Path::new(path),
                    roots: &rules.exports.roots,
                    never: &rules.data_dir,
                    overwrite: self.overwrite,
                    unfinished: &unfinished,
                    attempt: &key.attempt.to_string(),
                };
                publish_at_path(&from, target, given_up).map_err(|error| refuse(full_message(&error)))
            }
            Outside::Url(url) => self.upload(url, &from, rules, given_up),
        }
    }

    fn upload(
        &self,
        url: &OutsideUrl,
        from: &Path,
        rules: &ExportRules,
        given_up: &CancellationToken,
    ) -> Result<(), StagingFailure> {
        if !rules.exports.allows(url) {
            return Err(refuse(format!(
                "the site publishes nothing at {url}: its administrator lists where it does under exports"
            )));
        }
        if let Some(reason) = rules.withheld.object_to(self.object, url.as_str()) {
            return Err(refuse(format!("it is not published at {url}: {reason}")));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            StagingFailure::new(FailureReason::Agent, format!("nothing can be sent: {}", full_message(&error)))
        })?;
        let publishing = publish_in_bucket(from, url, self.overwrite, given_up);
        runtime.block_on(publishing).map_err(|error| refuse(full_message(&error)))
    }
}

fn refuse(message: String) -> StagingFailure {
    StagingFailure::new(FailureReason::ExportFailed, message)
}
