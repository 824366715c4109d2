//! Runs components of WebAssembly: one in a process of its own for each execution, which sees the folders and variables that it
//! is given, and nothing else of the machine.
//!
//! The agent has a component compiled once; what runs it finds it compiled.

mod run;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use run::{Component, ended};

/// `probe` answers that components can be run; `prepare CACHE FILE` compiles one; `run CACHE none|network FILE ARGUMENT…` runs
/// it: with the variables of this process, in its work directory, with the folders that `ATOLL_OUTPUTS` and `TMPDIR` name, and to
/// read those that `ATOLL_INPUTS` and `ATOLL_ACTION` name. It ends as the component does, and with 134 if that is stopped for
/// what it does.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().take(3).filter_map(|word| word.to_str()).collect();
    match (words.as_slice(), arguments) {
        (["probe"], _) => ExitCode::SUCCESS,
        (["prepare", ..], [_, cache, file]) => match Component::read(Path::new(cache), Path::new(file)) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => refuse(&format!("{error:#}")),
        },
        (["run", _, network @ ("none" | "network")], [_, cache, _, file, arguments @ ..]) => {
            match Component::read(Path::new(cache), Path::new(file)) {
                Ok(component) => ended(component.run(*network == "network", file, arguments)),
                Err(error) => refuse(&format!("{error:#}")),
            }
        }
        _ => refuse("it takes `probe`, `prepare CACHE FILE`, or `run CACHE none|network FILE ARGUMENT…`"),
    }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(2)
}
