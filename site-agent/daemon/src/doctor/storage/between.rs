//! Whether what one execution hands to the next can be moved and linked, or has to be copied: that depends on which of the
//! agent's folders share a file system.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::super::report::Check;
use crate::config::Config;

/// Which folders are on one file system, as far as their devices tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Between {
    /// The slots, where outputs are made, and the store.
    moved: bool,
    /// The store and the folder of inputs.
    linked: bool,
}

impl Between {
    pub(in super::super) fn see(config: &Config) -> Self {
        let store = device(&config.data_dir.join("store"));
        Self { moved: device(&config.slots_dir()) == store, linked: device(&config.data_dir.join("staged")) == store }
    }
}

/// Of the folder, or of the nearest one above it that is there.
fn device(folder: &Path) -> Option<u64> {
    folder.ancestors().find_map(|folder| folder.metadata().ok()).map(|found| found.dev())
}

pub(in super::super) fn judge_between(between: Between) -> Check {
    let name = "hand-over";
    let Between { moved, linked } = between;
    let check = match (moved, linked) {
        (true, true) => Check::ok(name, "outputs are moved into the store and inputs linked: nothing is copied"),
        (false, true) => {
            let found = "steps work on another file system than the store's: outputs are copied into it and compared; inputs are linked";
            Check::ok(name, found)
        }
        (_, false) => {
            let found = "the store is on another file system than the data directory: every input is copied";
            let advice = "let `store` be an ordinary folder of the data directory, and put the whole of that where there is room";
            Check::warning(name, found, advice)
        }
    };
    check.with("outputs_moved", moved).with("inputs_linked", linked)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::super::super::report::CheckState;
    use super::*;

    #[test]
    fn folders_of_several_file_systems_are_told() {
        let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let mut config = Config::for_data_dir(folder.path().join("not/there/yet"));
        assert_eq!(judge_between(Between::see(&config)).figures["outputs_moved"], true);
        config.work_dir = Some(memory.path().to_owned());
        let apart = device(folder.path()) != device(memory.path());
        assert_eq!(Between::see(&config), Between { moved: !apart, linked: true });
    }

    #[test]
    fn copied_inputs_are_warned_of_and_copied_outputs_said() {
        let state = |moved, linked| judge_between(Between { moved, linked }).state;
        assert_eq!((state(true, true), state(false, true)), (CheckState::Ok, CheckState::Ok));
        assert_eq!(state(false, false), CheckState::Warning);
    }
}
