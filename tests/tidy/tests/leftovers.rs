//! Nothing is left half done, and nothing speaks of the machine that it was made on.
#![expect(clippy::unwrap_used, reason = "a file that can't be read fails the test")]

use std::path::Path;

use tidy_tests::source::sources;
use tidy_tests::workspace::{files, read};

#[test]
fn nothing_is_left_to_do() {
    let mut found = Vec::new();
    for source in sources().unwrap() {
        let everywhere = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"];
        for word in everywhere {
            for (at, _) in source.code.match_indices(word) {
                found.push(format!("{}:{}: {word}", source.path.display(), source.line_of(at)));
            }
        }
        if source.is_product() {
            for (at, _) in source.product_code().match_indices(".unwrap()") {
                found.push(format!("{}:{}: .unwrap()", source.path.display(), source.line_of(at)));
            }
        }
        if source.path.starts_with("tests/tidy") {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            if ["FIXME", "TODO", "XXX"].iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "left over:\n  {}", found.join("\n  "));
}

#[test]
fn no_file_names_a_folder_of_the_machine_it_was_made_on() {
    let written =
        [".rs", ".toml", ".md", ".yaml", ".yml", ".sh", ".service", ".proto", ".c", "justfile", "run", ".txt"];
    let mut found = Vec::new();
    for file in files(&written).unwrap() {
        if file.starts_with("tests/tidy") {
            continue;
        }
        for (number, line) in read(&file).unwrap().lines().enumerate() {
            if ["/work/", "/home/user", "/Users/"].iter().any(|folder| line.contains(folder)) {
                found.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "folders of one machine:\n  {}", found.join("\n  "));
}

/// Crates where unsafe code is denied, and allowed in a named place, instead of forbidden.
const OWN_LINTS: &[(&str, &str)] = &[
    ("site-agent/spawn/Cargo.toml", "no safe interface starts a process without calls that it does not need"),
    ("tests/wan/Cargo.toml", "TUN devices are made by two calls of the system that no safe interface offers"),
];

#[test]
fn unsafe_code_is_forbidden_or_gives_its_reason() {
    let workspace = read(Path::new("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    for file in files(&["Cargo.toml"]).unwrap() {
        let manifest: toml::Table = read(&file).unwrap().parse().unwrap();
        if manifest.contains_key("package") {
            let own = OWN_LINTS.iter().find(|(name, _)| Path::new(name) == file);
            if let Some((name, reason)) = own {
                let unsafe_code = manifest["lints"].get("rust").and_then(|rust| rust.get("unsafe_code"));
                assert_eq!(unsafe_code, Some(&toml::Value::String("deny".to_owned())), "{name}: {reason}");
                continue;
            }
            let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            assert_eq!(lints, Some(&toml::Value::Boolean(true)), "{} takes the workspace's lints", file.display());
        }
    }
}
