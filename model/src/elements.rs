//! Sets of elements, kept as ranges, so that a fan-out of a million costs what one range costs until its elements differ.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A set of element numbers: sorted, disjoint, non-adjacent, non-empty ranges.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementSet {
    ranges: Vec<Range<u32>>,
}

impl ElementSet {
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    pub fn from_range(range: Range<u32>) -> Self {
        let mut set = Self::new();
        set.insert_range(range);
        set
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn len(&self) -> u32 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    pub fn contains(&self, element: u32) -> bool {
        let after = self.ranges.partition_point(|range| range.start <= element);
        after > 0 && self.ranges[after - 1].end > element
    }

    pub fn first(&self) -> Option<u32> {
        self.ranges.first().map(|range| range.start)
    }

    /// Adds an element; whether it was new.
    pub fn insert(&mut self, element: u32) -> bool {
        let new = !self.contains(element);
        if new {
            self.insert_range(element..element + 1);
        }
        new
    }

    pub fn insert_range(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        let from = self.ranges.partition_point(|known| known.end < range.start);
        let to = self.ranges.partition_point(|known| known.start <= range.end);
        let merged = match self.ranges.get(from..to) {
            Some([first, .., last]) => first.start.min(range.start)..last.end.max(range.end),
            Some([only]) => only.start.min(range.start)..only.end.max(range.end),
            Some([]) | None => range,
        };
        self.ranges.splice(from..to, [merged]);
    }

    /// Removes an element; whether it was there.
    pub fn remove(&mut self, element: u32) -> bool {
        let there = self.contains(element);
        if there {
            self.remove_range(element..element + 1);
        }
        there
    }

    pub fn remove_range(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        let from = self.ranges.partition_point(|known| known.end <= range.start);
        let to = self.ranges.partition_point(|known| known.start < range.end);
        if from >= to {
            return;
        }
        let left = self.ranges[from].start..range.start;
        let right = range.end..self.ranges[to - 1].end;
        self.ranges.splice(from..to, [left, right].into_iter().filter(|rest| !rest.is_empty()));
    }

    /// Takes the lowest `count` elements out (all of them if there are fewer).
    #[must_use]
    pub fn take_first(&mut self, count: u32) -> Self {
        let mut taken = Self::new();
        let mut left = count;
        let mut whole = 0;
        for range in &mut self.ranges {
            let length = range.end - range.start;
            if length > left {
                if left > 0 {
                    taken.ranges.push(range.start..range.start + left);
                    range.start += left;
                }
                break;
            }
            taken.ranges.push(range.clone());
            left -= length;
            whole += 1;
        }
        self.ranges.drain(..whole);
        taken
    }

    pub fn insert_all(&mut self, other: &Self) {
        other.ranges.iter().for_each(|range| self.insert_range(range.clone()));
    }

    pub fn remove_all(&mut self, other: &Self) {
        other.ranges.iter().for_each(|range| self.remove_range(range.clone()));
    }

    /// The elements that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::new();
        let (mut left, mut right) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        while let (Some(one), Some(two)) = (left.peek(), right.peek()) {
            let shared = one.start.max(two.start)..one.end.min(two.end);
            if !shared.is_empty() {
                common.ranges.push(shared);
            }
            if one.end <= two.end {
                left.next();
            } else {
                right.next();
            }
        }
        common
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<u32>> + '_ {
        self.ranges.iter().cloned()
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().cloned().flatten()
    }
}

impl FromIterator<u32> for ElementSet {
    fn from_iter<I: IntoIterator<Item = u32>>(elements: I) -> Self {
        let mut set = Self::new();
        for element in elements {
            match set.ranges.last_mut() {
                Some(last) if last.end == element => last.end += 1,
                Some(last) if last.end > element => set.insert_range(element..element + 1),
                Some(_) | None => set.ranges.push(element..element + 1),
            }
        }
        set
    }
}

impl fmt::Debug for ElementSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.ranges).finish()
    }
}
