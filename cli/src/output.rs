//! Standard output: what a command was asked for, and nothing else.

use std::io::Write as _;

use serde_json::Value;

/// Writes a line for people; styles are dropped where no terminal reads it.
macro_rules! outln {
    () => { $crate::output::text("\n") };
    ($($argument:tt)*) => { $crate::output::text(&format!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use outln;

/// Writes text for people; styles are dropped where no terminal reads it.
pub(crate) fn text(text: &str) {
    end_if_nobody_reads(anstream::stdout().lock().write_all(text.as_bytes()));
}

/// Writes one JSON document, whole, on a line of its own.
pub(crate) fn json(document: &Value) {
    end_if_nobody_reads(writeln!(std::io::stdout().lock(), "{document}"));
}

/// Ends the process where standard output cannot be written: whoever closed it (`… | head`) has all that was wanted.
pub(crate) fn end_if_nobody_reads(written: std::io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("error: cannot write to standard output: {error}");
            std::process::exit(1);
        }
    }
}
