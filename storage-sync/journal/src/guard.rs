//! Calls into a store, contained: a broken file can make sled panic or wait for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::error::IntegrityFault;
use crate::store::StoreError;

/// Runs `work` on a thread of its own, and gives up on it after `patience`.
pub(crate) fn with_watchdog<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, IntegrityFault> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("journal-open".to_owned()).spawn(move || {
        // The receiver is gone once the watchdog has given up; nobody wants the result then.
        let _ = sender.send(contained(work));
    });
    if let Err(error) = spawned {
        return Err(IntegrityFault::Store(format!("no thread to open it on: {error}")));
    }
    match receiver.recv_timeout(patience) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(message)) => Err(IntegrityFault::Store(message)),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(IntegrityFault::TimedOut(patience)),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(IntegrityFault::Store("opening it ended early".to_owned())),
    }
}

/// Runs `work` and turns its panic into an error.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "without a message".to_owned());
        format!("the store panicked: {message}")
    })
}

/// The same for a call that answers with a result of its own.
pub(crate) fn contained_store<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    contained(work).unwrap_or_else(|message| Err(StoreError::Failed(message)))
}
