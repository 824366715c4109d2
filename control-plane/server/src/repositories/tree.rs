//! The files of a commit as git lists them, and the folders of actions among them.

use std::collections::BTreeMap;

use atoll_model::action::MANIFEST_NAMES;

/// What is in a commit, or in a folder of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// By path, `.` for the repository itself; what is wrong with it, if that can be told.
    pub(super) folders: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// Reads what `git ls-tree -r -z -l` prints: mode, kind, object and size of each file, and its path.
    pub(super) fn read(listing: &[u8]) -> Self {
        let mut tree = Self::default();
        let mut submodules = Vec::new();
        for entry in listing.split(|byte| *byte == 0) {
            let Some((head, path)) = split_at_tab(entry) else { continue };
            let head = String::from_utf8_lossy(head);
            let mut words = head.split_ascii_whitespace();
            let (mode, size) = (words.next().unwrap_or_default(), words.nth(2).unwrap_or_default());
            tree.files += 1;
            tree.bytes += size.parse::<u64>().unwrap_or(0);
            let path = String::from_utf8_lossy(path).into_owned();
            if mode == "160000" {
                submodules.push(path);
                continue;
            }
            let (folder, name) = path.rsplit_once('/').unwrap_or((".", &path));
            if MANIFEST_NAMES.contains(&name) {
                let fault = tree.folders.entry(folder.to_owned()).or_default();
                if mode == "120000" {
                    *fault = Some(format!("{name} is a symbolic link"));
                }
            }
        }
        for (folder, fault) in &mut tree.folders {
            let within = |path: &&String| {
                folder == "." || path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
            };
            if let Some(submodule) = submodules.iter().find(within) {
                *fault =
                    Some(format!("{submodule} is a submodule, which is not fetched: put the files themselves there"));
            }
        }
        tree
    }
}

fn split_at_tab(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let tab = entry.iter().position(|byte| *byte == b'\t')?;
    Some((&entry[..tab], &entry[tab + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_with_a_manifest_are_found_and_what_git_would_not_bring_is_said() {
        let listing = "100644 blob aaaa      12\taction.yaml\0\
                       100755 blob bbbb       5\tlib/count/main.sh\0\
                       100644 blob cccc     100\tlib/count/action.yaml\0\
                       120000 blob dddd       9\tlib/link/action.yaml\0\
                       100644 blob eeee       1\tlib/counted/ryax_metadata.yaml\0\
                       160000 commit ffff       -\tlib/count/vendor\0";
        let tree = Tree::read(listing.as_bytes());
        assert_eq!((tree.files, tree.bytes), (6, 127));
        let fault = |folder: &str| tree.folders[folder].as_deref().unwrap_or_default();
        assert_eq!(tree.folders.keys().collect::<Vec<_>>(), [".", "lib/count", "lib/counted", "lib/link"]);
        assert!(fault(".").starts_with("lib/count/vendor is a submodule"), "{}", fault("."));
        assert!(fault("lib/count").starts_with("lib/count/vendor is a submodule"));
        assert_eq!(fault("lib/counted"), "");
        assert!(fault("lib/link").contains("symbolic link"));
        assert_eq!(Tree::read(b""), Tree::default());
    }
}
