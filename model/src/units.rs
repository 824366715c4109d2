//! Durations, sizes and CPUs as people write them.

use std::time::Duration;

use crate::workflow::Growth;

/// A text that is no such quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseQuantityError {
    pub text: String,
    /// What would be right, with examples.
    pub expected: &'static str,
}

const DURATION: &str = "a duration: write `250ms`, `30s`, `5m`, `1h30m` or `2d`";
const SIZE: &str = "a size: write `512MiB`, `10GB` or a number of bytes";
const AMOUNT: &str = "an amount: write `2` or `0.5`, at least one thousandth";
const FACTOR: &str = "a factor of growth: write `1.5x` or `2x`, more than 1x and at most 16x";
const CPUS: &str = "a number of CPUs: write `2`, `0.5` or `500m`, at least one thousandth";

/// Parses `250ms`, `5s`, `1.5h`, `1h30m`, `2d`; units go from large to small, each at most once.
///
/// # Errors
/// When the text is anything else; a number without a unit is not a duration, but for `0`.
pub fn parse_duration(text: &str) -> Result<Duration, ParseQuantityError> {
    let error = || ParseQuantityError { text: shown(text), expected: DURATION };
    const UNITS: [(&str, f64); 6] =
        [("d", 86_400.0), ("h", 3_600.0), ("m", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)];
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut next_unit = 0;
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or_else(error)?;
        let letters = after.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit = UNITS.iter().position(|(name, _)| *name == &after[..letters]).ok_or_else(error)?;
        if unit < next_unit {
            return Err(error());
        }
        let part = Duration::try_from_secs_f64(number * UNITS[unit].1).map_err(|_| error())?;
        total = total.checked_add(part).ok_or_else(error)?;
        next_unit = unit + 1;
        rest = &after[letters..];
    }
    if text.trim().is_empty() { Err(error()) } else { Ok(total) }
}

/// Writes a duration so that [`parse_duration`] reads it back, rounded to microseconds.
pub fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros == 0 {
        return "0s".to_owned();
    }
    let mut rest = micros;
    let mut text = String::new();
    for (unit, size) in
        [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)]
    {
        if rest >= size {
            text.push_str(&format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    text
}

/// Parses `512MiB`, `10GB`, `1.5GiB`, `100` (bytes), `3k`; units of 1,000 without an `i`, of 1,024 with it.
///
/// # Errors
/// When the text is anything else, or more than 2^63 bytes.
pub fn parse_size(text: &str) -> Result<u64, ParseQuantityError> {
    let error = || ParseQuantityError { text: shown(text), expected: SIZE };
    let trimmed = text.trim();
    if let Ok(bytes) = trimmed.parse::<u64>() {
        return if bytes <= 1 << 63 { Ok(bytes) } else { Err(error()) };
    }
    let (number, after) = leading_number(trimmed).ok_or_else(error)?;
    let unit = after.trim_start();
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let factor: u64 = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return Err(error()),
    };
    let bytes = number * factor as f64;
    let whole = trimmed.parse::<f64>().is_err() || number.fract() == 0.0;
    if whole && bytes <= (1u64 << 63) as f64 { Ok(bytes.round() as u64) } else { Err(error()) }
}

/// Writes a size with the largest binary unit that leaves at most one decimal place.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1_024.0 && unit + 1 < UNITS.len() {
        size /= 1_024.0;
        unit += 1;
    }
    if size.fract() == 0.0 || unit == 0 {
        format!("{size:.0} {}", UNITS[unit])
    } else {
        format!("{size:.1} {}", UNITS[unit])
    }
}

/// Parses CPUs into thousandths: `2`, `0.5`, `500m`.
///
/// # Errors
/// When the text is anything else, less than a thousandth, or more than a million CPUs.
pub fn parse_cpu(text: &str) -> Result<u32, ParseQuantityError> {
    let error = || ParseQuantityError { text: shown(text), expected: CPUS };
    let (number, unit) = leading_number(text.trim()).ok_or_else(error)?;
    let millis = match unit {
        "" => number * 1_000.0,
        "m" => number,
        _ => return Err(error()),
    };
    if (1.0..=1e9).contains(&millis) { Ok(millis.round() as u32) } else { Err(error()) }
}

/// Parses a number of something, `2` or `0.5`; the result is in thousandths.
///
/// # Errors
/// When the text is anything else, or less than one thousandth.
pub fn parse_amount(text: &str) -> Result<u32, ParseQuantityError> {
    let error = || ParseQuantityError { text: shown(text), expected: AMOUNT };
    let millis = text.trim().parse::<f64>().map_err(|_| error())? * 1_000.0;
    if (1.0..=1e9).contains(&millis) { Ok(millis.round() as u32) } else { Err(error()) }
}

/// Parses by how much something grows, `1.5x` or `2x`.
///
/// # Errors
/// When the text is anything else, or no growth: not more than 1x, or more than [`crate::limits::MEMORY_GROWTH_MAX`] times.
pub fn parse_growth(text: &str) -> Result<Growth, ParseQuantityError> {
    let error = || ParseQuantityError { text: shown(text), expected: FACTOR };
    let (number, "x") = leading_number(text.trim()).ok_or_else(error)? else { return Err(error()) };
    // Saturates, and is too much then.
    Growth::new((number * 1_000.0).round() as u32).ok_or_else(error)
}

fn leading_number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let number = &text[..end];
    if !number.starts_with(|first: char| first.is_ascii_digit()) || number.ends_with('.') {
        return None;
    }
    Some((number.parse().ok()?, &text[end..]))
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}
