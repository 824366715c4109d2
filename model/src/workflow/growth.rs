//! Memory that grows from attempt to attempt, and how a [`Retry`] is written.

use std::fmt;
use std::time::Duration;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Retry;

/// How many times as much memory the attempt after one that ran out of it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// More than 1,000.
    factor_thousandths: u32,
}

impl Growth {
    /// Nothing where that would not be more, or is above [`crate::limits::MEMORY_GROWTH_MAX`] times as much.
    pub fn new(factor_thousandths: u32) -> Option<Self> {
        let is_growth = (1_001..=crate::limits::MEMORY_GROWTH_MAX * 1_000).contains(&factor_thousandths);
        is_growth.then_some(Self { factor_thousandths })
    }

    /// What these bytes have become when they have grown so often, rounded up each time.
    pub fn of(self, bytes: u64, times: u32) -> u64 {
        let mut grown = u128::from(bytes);
        for _ in 0..times {
            if grown > u128::from(u64::MAX) {
                break;
            }
            grown = (grown * u128::from(self.factor_thousandths)).div_ceil(1_000);
        }
        u64::try_from(grown).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x", f64::from(self.factor_thousandths) / 1e3)
    }
}

/// Stands where the attempts stand in what was written before memory could grow, of which there is never none: the rest
/// follows.
const EXTENDED: u32 = 0;

/// As it ever was where memory does not grow, so that journals of before are read.
impl Serialize for Retry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { attempts, backoff, other_site, memory } = self;
        if memory.is_none() && *attempts != EXTENDED {
            return (attempts, backoff, other_site).serialize(serializer);
        }
        (EXTENDED, attempts, backoff, other_site, memory).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Retry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Retry;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("when a failed attempt is followed by another")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Retry, A::Error> {
                let first: u32 = next(&mut fields)?;
                let is_extended = first == EXTENDED;
                Ok(Retry {
                    attempts: if is_extended { next(&mut fields)? } else { first },
                    backoff: next::<Duration, A>(&mut fields)?,
                    other_site: next(&mut fields)?,
                    memory: if is_extended { next(&mut fields)? } else { None },
                })
            }
        }

        deserializer.deserialize_tuple(5, Fields)
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(fields: &mut A) -> Result<T, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("when attempts follow each other is cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_by_its_factor_each_time_and_is_rounded_up() {
        let growth = |thousandths| Growth::new(thousandths).expect("a growth");
        for (thousandths, bytes, times, expected) in [
            (2_000, 100, 0, 100),
            (2_000, 100, 1, 200),
            (2_000, 100, 3, 800),
            (1_500, 3, 1, 5),
            (1_500, 3, 2, 8),
            (16_000, u64::MAX, 1, u64::MAX),
            (16_000, 1, 100, u64::MAX),
        ] {
            assert_eq!(growth(thousandths).of(bytes, times), expected, "{bytes} after {times}");
        }
        for thousandths in [0, 999, 1_000, 16_001] {
            assert_eq!(Growth::new(thousandths), None, "{thousandths}");
        }
        assert_eq!(growth(1_500).to_string(), "1.5x");
    }

    #[test]
    fn retries_without_growth_are_written_as_they_were_before_there_was_any() {
        let former = postcard::to_stdvec(&((3u32, Duration::from_secs(5), true), 7u8)).expect("encoded");
        let (retry, after): (Retry, u8) = postcard::from_bytes(&former).expect("read");
        let expected = Retry { attempts: 3, backoff: Duration::from_secs(5), other_site: true, memory: None };
        assert_eq!((&retry, after), (&expected, 7));
        assert_eq!(postcard::to_stdvec(&(&retry, 7u8)).expect("encoded"), former);
        let growing = Retry { memory: Growth::new(2_000), ..retry };
        let written = postcard::to_stdvec(&(&growing, 7u8)).expect("encoded");
        assert_eq!(postcard::from_bytes::<(Retry, u8)>(&written).expect("read"), (growing, 7));
    }
}
