//! Attempts that ended for want of memory: what the next one asks for.

use atoll_model::id::StepIndex;
use atoll_model::units::format_size;

use crate::control_plane::ControlPlane;
use crate::state::Run;

impl ControlPlane {
    /// What is said of an end for want of memory that another attempt follows.
    ///
    /// # Errors
    /// What is said of it where that attempt would ask for more than any site will have: the execution ends with it.
    pub(super) fn next_with_more(
        &self,
        run: &Run,
        step: StepIndex,
        element: u32,
        message: &str,
    ) -> Result<String, String> {
        let grown = run.steps[step.index()].grown(element);
        let (last, next) = (run.workflow.step(step).memory_after(grown), run.grown_step(step, grown + 1));
        let shown = |bytes: Option<u64>| format_size(bytes.unwrap_or_default());
        let more = shown(next.resources.memory_bytes);
        let message = format!("{message} ({}): the next attempt asks for {more}", shown(last));
        match self.nowhere(run, &next, &[]) {
            Some(nowhere) => Err(format!("{message}; {}", nowhere.reason)),
            None => Ok(message),
        }
    }
}
