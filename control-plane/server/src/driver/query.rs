//! Questions to the core's state: asked on its thread, answered on the journal's.

use std::fmt;

use control_plane_core::ControlPlane;
use tokio::sync::oneshot;

use super::batch::Answer;

/// A question whose answer's type only its asker knows.
pub(super) trait Query: Send + fmt::Debug {
    /// Looks at the core, and returns what hands the answer over.
    fn ask(self: Box<Self>, core: &ControlPlane) -> Answer;
}

struct Asked<F, R> {
    ask: F,
    answer: oneshot::Sender<R>,
}

pub(super) fn prepare<F, R>(ask: F) -> (Box<dyn Query>, oneshot::Receiver<R>)
where
    F: FnOnce(&ControlPlane) -> R + Send + 'static,
    R: Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    (Box::new(Asked { ask, answer }), answered)
}

impl<F, R> Query for Asked<F, R>
where
    F: FnOnce(&ControlPlane) -> R + Send + 'static,
    R: Send + 'static,
{
    fn ask(self: Box<Self>, core: &ControlPlane) -> Answer {
        let Self { ask, answer } = *self;
        if answer.is_closed() {
            return Box::new(|| ());
        }
        let seen = ask(core);
        Box::new(move || {
            // Whoever asked may be gone.
            let _ = answer.send(seen);
        })
    }
}

impl<F, R> fmt::Debug for Asked<F, R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Query")
    }
}
