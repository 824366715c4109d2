//! Columns: sets and lists of elements, repeats, masks, distances.

use atoll_model::elements::ElementSet;
use atoll_model::limits::FRAME_ELEMENTS_MAX;
use atoll_model::time::Timestamp;

use crate::error::WireError;
use crate::v1 as wire;

impl From<&ElementSet> for wire::ElementSet {
    fn from(set: &ElementSet) -> Self {
        let ranges = set.ranges();
        let mut message = Self { gaps: Vec::with_capacity(ranges.len()), lengths: Vec::with_capacity(ranges.len()) };
        let mut end = 0;
        for range in ranges {
            message.gaps.push(range.start - end);
            message.lengths.push(range.end - range.start);
            end = range.end;
        }
        message
    }
}

impl TryFrom<wire::ElementSet> for ElementSet {
    type Error = WireError;

    fn try_from(message: wire::ElementSet) -> Result<Self, WireError> {
        same_length("elements.lengths", message.gaps.len(), message.lengths.len())?;
        let mut set = Self::new();
        let mut end = 0u32;
        for (gap, length) in message.gaps.into_iter().zip(message.lengths) {
            let start = end.checked_add(gap);
            let range = start.and_then(|start| Some(start..start.checked_add(length)?));
            match range {
                Some(range) if !range.is_empty() => {
                    end = range.end;
                    set.insert_range(range);
                }
                Some(_) | None => return Err(WireError::OutOfRange { field: "elements" }),
            }
        }
        Ok(set)
    }
}

pub(crate) fn elements(elements: impl Iterator<Item = u32>) -> wire::Elements {
    let mut message = wire::Elements::default();
    let mut last = 0u32;
    for element in elements {
        match message.lengths.last_mut() {
            Some(length) if last.checked_add(1) == Some(element) && *length < u32::MAX => *length += 1,
            Some(_) | None => {
                message.distances.push(i64::from(element) - i64::from(last));
                message.lengths.push(1);
            }
        }
        last = element;
    }
    message
}

/// Elements one by one. How many there are is known before any of them is made.
#[derive(Debug)]
pub(crate) struct ElementsReader {
    stretches: Vec<(u32, u32)>,
    count: usize,
}

impl ElementsReader {
    pub(crate) fn new(message: Option<wire::Elements>, field: &'static str) -> Result<Self, WireError> {
        let message = message.unwrap_or_default();
        same_length(field, message.distances.len(), message.lengths.len())?;
        let mut stretches = Vec::with_capacity(message.lengths.len());
        let mut last = 0u32;
        let mut count = 0u64;
        for (distance, length) in message.distances.into_iter().zip(message.lengths) {
            let first = i64::from(last).checked_add(distance).and_then(|first| u32::try_from(first).ok());
            let stretch = first.and_then(|first| Some((first, first.checked_add(length.checked_sub(1)?)?)));
            let (first, end) = stretch.ok_or(WireError::OutOfRange { field })?;
            stretches.push((first, end));
            last = end;
            count += u64::from(length);
        }
        if count > FRAME_ELEMENTS_MAX as u64 {
            return Err(WireError::TooMany { field, limit: FRAME_ELEMENTS_MAX, found: count });
        }
        Ok(Self { stretches, count: count as usize })
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = u32> {
        self.stretches.into_iter().flat_map(|(first, last)| first..=last)
    }
}

pub(crate) fn runs(values: impl Iterator<Item = u64>) -> wire::Runs {
    let mut message = wire::Runs::default();
    for value in values {
        match (message.values.last(), message.counts.last_mut()) {
            (Some(last), Some(count)) if *last == value && *count < u32::MAX => *count += 1,
            (_, _) => {
                message.values.push(value);
                message.counts.push(1);
            }
        }
    }
    message
}

/// The numbers of a column, exactly `count` of them.
pub(crate) fn read_runs(
    message: Option<wire::Runs>,
    count: usize,
    field: &'static str,
) -> Result<impl Iterator<Item = u64>, WireError> {
    let message = message.unwrap_or_default();
    same_length(field, message.values.len(), message.counts.len())?;
    let found = message.counts.iter().map(|count| u64::from(*count)).sum::<u64>();
    if found != count as u64 {
        return Err(WireError::Count { field, expected: count as u64, found });
    }
    let pairs = message.values.into_iter().zip(message.counts);
    Ok(pairs.flat_map(|(value, count)| std::iter::repeat_n(value, count as usize)))
}

/// Nothing if every entry is absent.
pub(crate) fn mask(present: impl Iterator<Item = bool>) -> Option<wire::Mask> {
    let mut stretches = vec![0u32];
    let mut now = true;
    for entry in present {
        if entry != now {
            stretches.push(0);
            now = entry;
        }
        if let Some(length) = stretches.last_mut() {
            *length += 1;
        }
    }
    let any = stretches.iter().step_by(2).any(|length| *length > 0);
    any.then_some(wire::Mask { stretches })
}

/// Whether each of `count` entries is present, and how many are.
pub(crate) fn read_mask(
    message: Option<wire::Mask>,
    count: usize,
    field: &'static str,
) -> Result<(impl Iterator<Item = bool>, usize), WireError> {
    let stretches = match message {
        Some(message) => message.stretches,
        None => vec![0, u32::try_from(count).map_err(|_| WireError::OutOfRange { field })?],
    };
    let found = stretches.iter().map(|length| u64::from(*length)).sum::<u64>();
    if found != count as u64 {
        return Err(WireError::Count { field, expected: count as u64, found });
    }
    let present = stretches.iter().step_by(2).map(|length| *length as usize).sum();
    let entries = stretches.into_iter().enumerate();
    Ok((entries.flat_map(|(place, length)| std::iter::repeat_n(place % 2 == 0, length as usize)), present))
}

/// Each time as its distance from the one before. Wraps, so that no time is out of reach of another.
pub(crate) fn distances(times: impl Iterator<Item = Timestamp>) -> Vec<i64> {
    let mut last = 0i64;
    times.map(|at| at.micros().wrapping_sub(std::mem::replace(&mut last, at.micros()))).collect()
}

pub(crate) fn read_distances(
    distances: Vec<i64>,
    count: usize,
    field: &'static str,
) -> Result<impl Iterator<Item = Timestamp>, WireError> {
    same_length(field, count, distances.len())?;
    let mut last = 0i64;
    Ok(distances.into_iter().map(move |distance| {
        last = last.wrapping_add(distance);
        Timestamp::from_micros(last)
    }))
}

pub(crate) const fn same_length(field: &'static str, expected: usize, found: usize) -> Result<(), WireError> {
    if expected == found {
        Ok(())
    } else {
        Err(WireError::Count { field, expected: expected as u64, found: found as u64 })
    }
}
