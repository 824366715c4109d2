//! Tables and small texts for people.

use std::fmt::Write as _;
use std::time::Duration;

use atoll_model::time::Timestamp;
use serde_json::Value;

use crate::output;

/// Prints rows below their headings, each column as wide as it must be.
pub(crate) fn print(headings: &[&str], rows: &[Vec<String>]) {
    output::text(&render(headings, rows));
}

fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let bold = anstyle::Style::new().bold();
    let mut text = String::new();
    let _ = write!(text, "{bold}");
    line(&mut text, &headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<_>>(), &widths);
    // The style must end before the line does, or a pager carries it on.
    let end = text.pop();
    let _ = write!(text, "{bold:#}");
    text.extend(end);
    for row in rows {
        line(&mut text, row, &widths);
    }
    text
}

fn line(text: &mut String, cells: &[String], widths: &[usize]) {
    let mut row = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let _ = write!(row, "{cell:<width$}  ");
    }
    text.push_str(row.trim_end());
    text.push('\n');
}

/// Bytes with a unit that a person reads at a glance.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1_000.0 && unit + 1 < UNITS.len() {
        size /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds => format!("{} min {:.0} s", (seconds / 60.0) as u64, seconds % 60.0),
    }
}

/// The text of a field, or a dash where there is none.
pub(crate) fn field(document: &Value, name: &str) -> String {
    match &document[name] {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    }
}

/// A point in time without the fractions of its second.
pub(crate) fn time(document: &Value, name: &str) -> String {
    match document[name].as_str() {
        Some(text) => text.split('.').next().unwrap_or(text).trim_end_matches('Z').replace('T', " "),
        None => "–".to_owned(),
    }
}

/// From one field's time to another's.
pub(crate) fn between(document: &Value, from: &str, to: &str) -> String {
    let at = |name: &str| document[name].as_str().and_then(|text| Timestamp::parse_rfc3339(text).ok());
    match (at(from), at(to)) {
        (Some(from), Some(to)) => duration(to.saturating_since(from)),
        (Some(_) | None, Some(_) | None) => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        let plain = anstream::adapter::strip_str(&render(&["n", "what"], &rows)).to_string();
        assert_eq!(plain, "n    what\na    long cell\nbcd  x\n");
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(2_000_000_000), "2.0 GB");
        assert_eq!(duration(Duration::from_millis(12)), "12 ms");
        assert_eq!(duration(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(duration(Duration::from_secs(61)), "1 min 1 s");
    }
}
