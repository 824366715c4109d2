//! The epoch under which this process leads, for whatever writes beside the journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StoreError;
use crate::session::Session;

/// Cheap to clone; all clones know the same epoch, from the time that the standby that it is of takes the lead.
#[derive(Debug, Clone, Default)]
pub struct Fence(Arc<AtomicU64>);

/// A process that is held up in the middle of it must not hold up the next leader, which writes the same rows.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '2s'";
/// Nothing if another server leads; else the leader's row stays as it is to the end of the transaction. Epoch 0 is nobody's.
const FENCE: &str = "SELECT 1 FROM leader WHERE epoch = $1 AND epoch > 0 FOR SHARE";

impl Fence {
    pub(crate) fn lead(&self, epoch: u64) {
        self.0.store(epoch, Ordering::Release);
    }

    fn epoch(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Carries out `write` in one transaction, which is undone if another server leads. The leader's row is locked last:
    /// a takeover waits for a commit at most, never for what is written.
    pub(crate) fn within(
        &self,
        session: &mut Session,
        write: impl FnOnce(&mut Session) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        session.execute_all(BEGIN)?;
        write(session)?;
        let epoch = self.epoch();
        if session.query(FENCE, &[&(epoch as i64)])?.is_empty() {
            session.execute_all("ROLLBACK")?;
            return Err(StoreError::Superseded { epoch });
        }
        session.execute_all("COMMIT")
    }
}
