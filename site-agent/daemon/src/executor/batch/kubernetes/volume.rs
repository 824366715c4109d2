//! The program of the agent on the volume, for pods whose image has none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::config::ShimProgram;

/// The program that pods start: that of this agent, in a folder that they see. What an earlier agent put there may be in
/// use, so it is replaced and never written over.
///
/// # Errors
/// When it cannot be put there.
pub(crate) fn on_volume(program: ShimProgram, data_dir: &Path) -> io::Result<ShimProgram> {
    let folder = data_dir.join("bin");
    let place = folder.join("atoll");
    let own = fs::metadata(&program.program)?;
    let is_same = fs::metadata(&place)
        .is_ok_and(|there| there.len() == own.len() && there.modified().ok() == own.modified().ok());
    if !is_same {
        fs::create_dir_all(&folder)?;
        let next = folder.join(".atoll.next");
        fs::copy(&program.program, &next)?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755))?;
        let file = File::options().append(true).open(&next)?;
        file.set_modified(own.modified()?)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&next, &place)?;
    }
    Ok(ShimProgram { program: place, ..program })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn pods_start_the_program_of_this_agent_and_not_of_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        fs::write(&own, "first").unwrap();
        let program = ShimProgram { program: own.clone(), arguments: vec!["shim".to_owned()] };
        let placed = on_volume(program.clone(), folder.path()).unwrap();
        assert_eq!((placed.program.clone(), &placed.arguments), (folder.path().join("bin/atoll"), &program.arguments));
        let in_use = File::open(&placed.program).unwrap();
        fs::write(&own, "second, and longer").unwrap();
        on_volume(program, folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&placed.program).unwrap(), "second, and longer");
        assert_eq!(io::read_to_string(in_use).unwrap(), "first");
    }
}
