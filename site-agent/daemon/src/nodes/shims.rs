//! The shims of a worker's machine.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::ShimProgram;
use crate::executor::local::{AgentCgroups, conclude, launch, reach};
use crate::shim::protocol::{End, Key, SlotSetup};

/// Before it is looked again whether what a dead shim has left can be ended.
const CLEARING_PAUSE: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Shims {
    program: ShimProgram,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Those that this process has started, by slot.
    children: BTreeMap<u32, Child>,
    /// Made when the first slot comes.
    cgroups: Option<AgentCgroups>,
    /// One thing is done in a slot at a time.
    busy: BTreeMap<u32, Arc<Mutex<()>>>,
}

impl Shims {
    pub(super) fn new(program: ShimProgram) -> Self {
        Self { program, shared: Arc::default() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a shim in a slot in which none lives. Blocks.
    pub(super) fn start(
        &self,
        (slot, path): (u32, &Path),
        data_dir: &Path,
        setup: &str,
        forgotten: Vec<Key>,
    ) -> anyhow::Result<UnixStream> {
        let turn = Arc::clone(self.shared().busy.entry(slot).or_default());
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut setup: SlotSetup = serde_json::from_str(setup)?;
        setup.setup.cgroups = self.shared().cgroups.get_or_insert_with(|| AgentCgroups::make(data_dir)).for_slot(slot);
        let forgotten: BTreeSet<Key> = forgotten.into_iter().collect();
        let (stream, child) = launch(path, &forgotten, &self.program, &setup)?;
        if let Some(mut former) = self.shared().children.insert(slot, child) {
            // Its socket has closed, or there would be no other.
            let _ = former.kill();
            let _ = former.wait();
        }
        Ok(stream)
    }

    /// Connects to the shim of a slot; if it is gone, ends what it may have left, and says how its attempts have ended.
    /// Blocks until that is so.
    pub(super) fn reach(
        &self,
        (slot, path): (u32, &Path),
        data_dir: &Path,
    ) -> anyhow::Result<Result<UnixStream, Vec<(Key, End)>>> {
        let turn = Arc::clone(self.shared().busy.entry(slot).or_default());
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = reach(path)? {
            return Ok(Ok(stream));
        }
        self.reap();
        let cgroups = self.shared().cgroups.get_or_insert_with(|| AgentCgroups::make(data_dir)).for_slot(slot);
        let mut told = false;
        loop {
            match conclude(path, &cgroups) {
                Ok(ended) => {
                    if let Some(cgroups) = &self.shared().cgroups {
                        cgroups.remove_slot(slot);
                    }
                    return Ok(Err(ended));
                }
                // The slot stays out of use as long as something in it may still run.
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::error!(slot, %error, "a slot cannot be cleared yet");
                }
                Err(_) => {}
            }
            thread::sleep(CLEARING_PAUSE);
        }
    }

    /// Takes away what has ended.
    pub(super) fn reap(&self) {
        self.shared().children.retain(|_, child| matches!(child.try_wait(), Ok(None)));
    }

    /// What they ran ends when it is looked for what became of it.
    pub(super) fn kill_all(&self) {
        for child in self.shared().children.values_mut() {
            // One that has ended meanwhile needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
