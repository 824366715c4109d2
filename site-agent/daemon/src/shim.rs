//! (in work)
use std::ffi::OsString;
use std::process::ExitCode;

pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let _ = arguments;
    ExitCode::from(2)
}
