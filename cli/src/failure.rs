//! Why a command did not do what it was asked for, and the exit code that says so.

use std::fmt;
use std::process::ExitCode;

use atoll_model::diagnostic::Diagnostic;

/// Ends a command. Anything that is no `Failure` ends it as [`Failure::Failed`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The thing asked for failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The server has nothing of that name: exit code 1.
    #[error("{0}")]
    NotFound(String),
    /// Used wrongly: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A workflow file, or an action that it names, is wrong: exit code 2. What it speaks of is shown where it is at hand.
    #[error("{}", Many(.diagnostics))]
    Invalid { diagnostics: Vec<Diagnostic>, source_text: Option<SourceText> },
    /// The server cannot be reached: exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The server does not let us: exit code 3.
    #[error("{0}")]
    Unauthorised(String),
}

/// The text of the file that was checked, as it was when it was.
#[derive(Debug, Clone)]
pub(crate) struct SourceText {
    pub(crate) file: String,
    pub(crate) text: String,
}

struct Many<'a>(&'a [Diagnostic]);

impl fmt::Display for Many<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, diagnostic) in self.0.iter().enumerate() {
            if number > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{diagnostic}")?;
        }
        Ok(())
    }
}

/// The exit code for an error that ended a command.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Failure>() {
        Some(Failure::Usage(_) | Failure::Invalid { .. }) => ExitCode::from(2),
        Some(Failure::Unreachable(_) | Failure::Unauthorised(_)) => ExitCode::from(3),
        Some(Failure::Failed(_) | Failure::NotFound(_)) | None => ExitCode::from(1),
    }
}
