//! Files and directories that a site holds, given as inputs without being sent.

use serde::{Deserialize, Serialize};

use crate::id::SiteName;
use crate::yaml::{self, Kind, Node};

/// What was given for an input beside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// Nothing; its default stands.
    Nothing,
    /// A value, which the run brings along: a default that is held at a site is not taken in.
    Value,
    /// A file or directory that a site holds.
    Held(HeldAt),
}

/// A file or directory where a site holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldAt {
    pub site: SiteName,
    /// Absolute at the site, or relative to where the site's administrator lets such paths begin.
    pub path: String,
}

/// The text of a workflow file in which the relative paths of inputs that a site holds are joined to a directory.
/// A text that is no such file stays as it is.
pub fn with_absolute_paths(source: &str, directory: &str) -> String {
    let Ok(root) = yaml::parse(source) else { return source.to_owned() };
    let mut paths = Vec::new();
    for input in field(&root, "inputs").map(entries).unwrap_or_default() {
        let default = field(&input.value, "default");
        if let Some(default) = default
            && field(default, "site").is_some()
            && let Some(path) = field(default, "path")
            && let Kind::Scalar { text, .. } = &path.kind
            && !text.starts_with('/')
        {
            paths.push((path.place, text));
        }
    }
    let mut result = source.to_owned();
    // From the last to the first, so that the places of those before stay right.
    paths.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
    for (place, text) in paths {
        let range = place.start as usize..place.end as usize;
        let written = source.get(range.clone()).map(str::trim_end).unwrap_or_default();
        let absolute = format!("{}/{}", directory.trim_end_matches('/'), text.trim_start_matches("./"));
        let quoted = serde_json::Value::String(absolute).to_string();
        result.replace_range(range.start..range.start + written.len(), &quoted);
    }
    result
}

fn entries(node: &Node) -> &[yaml::Entry] {
    match &node.kind {
        Kind::Mapping(entries) => entries,
        Kind::Scalar { .. } | Kind::Sequence(_) => &[],
    }
}

fn field<'node>(node: &'node Node, name: &str) -> Option<&'node Node> {
    entries(node).iter().find(|entry| entry.key == name).map(|entry| &entry.value)
}
