//! From the bytes of a log to lines of JSON.

use atoll_model::id::ExecutionId;
use atoll_model::time::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::views::time;

/// A line that is longer is given in pieces: whoever writes without an end must not fill the memory.
const LINE_BYTES_MAX: usize = 64 << 10;

/// One line of a log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogLineBody<'a> {
    /// When the line was read, for an execution that runs; when it ended, for one that has.
    at: String,
    execution: String,
    /// `stdout` or `stderr`.
    stream: &'static str,
    /// What is not UTF-8 in it is replaced.
    line: std::borrow::Cow<'a, str>,
}

/// Puts lines together out of pieces.
#[derive(Debug)]
pub(super) struct Lines {
    execution: ExecutionId,
    stream: &'static str,
    rest: Vec<u8>,
}

impl Lines {
    pub(super) const fn new(execution: ExecutionId, stream: &'static str) -> Self {
        Self { execution, stream, rest: Vec::new() }
    }

    /// The lines that end in these bytes, as JSON.
    pub(super) fn push(&mut self, bytes: &[u8], at: Timestamp) -> Vec<u8> {
        let mut json = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                self.take(at, &mut json);
            }
            while self.rest.len() >= LINE_BYTES_MAX {
                let after = self.rest.split_off(LINE_BYTES_MAX);
                self.take(at, &mut json);
                self.rest = after;
            }
        }
        json
    }

    /// What stands after the last end of a line.
    pub(super) fn finish(mut self, at: Timestamp) -> Vec<u8> {
        let mut json = Vec::new();
        if !self.rest.is_empty() {
            self.take(at, &mut json);
        }
        json
    }

    fn take(&mut self, at: Timestamp, json: &mut Vec<u8>) {
        let body = LogLineBody {
            at: time(at),
            execution: self.execution.to_string(),
            stream: self.stream,
            line: String::from_utf8_lossy(&self.rest),
        };
        serde_json::to_writer(&mut *json, &body).expect("texts can be encoded");
        json.push(b'\n');
        self.rest.clear();
    }
}

#[cfg(test)]
mod tests {
    use atoll_model::id::{RunId, StepIndex};

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let execution = ExecutionId { run: RunId::from_bits(1), step: StepIndex(0), element: 2 };
        let mut lines = Lines::new(execution, "stdout");
        let mut json: Vec<u8> = pieces.iter().flat_map(|piece| lines.push(piece, Timestamp::ZERO)).collect();
        json.extend(lines.finish(Timestamp::ZERO));
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            assert_eq!((&line["stream"], &line["execution"]), (&"stdout".into(), &execution.to_string().into()));
            line["line"].as_str().expect("a text").to_owned()
        };
        String::from_utf8(json).expect("JSON").lines().map(line).collect()
    }

    #[test]
    fn lines_are_put_together_whatever_the_pieces() {
        assert_eq!(lines(&[b"one\ntw", b"o\n", b"\nthree"]), ["one", "two", "", "three"]);
        assert_eq!(lines(&["Grüße".as_bytes().split_at(3).0, &"Grüße\n".as_bytes()[3..]]), ["Grüße"]);
        assert_eq!(lines(&[b"\xff\n"]), ["\u{fffd}"]);
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn a_line_without_an_end_is_given_in_pieces() {
        let found = lines(&[&vec![b'x'; 2 * LINE_BYTES_MAX + 5]]);
        assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, LINE_BYTES_MAX, 5]);
    }
}
