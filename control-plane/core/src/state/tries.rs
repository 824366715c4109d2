//! What went before, of executions that were tried more than once.

use std::fmt;
use std::sync::Arc;

use atoll_model::id::{Attempt, SiteId};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tries {
    /// The highest attempt that was ever given out, or is waiting to be.
    pub(crate) highest: Attempt,
    pub(crate) failures: u32,
    pub(crate) crashes: u32,
    pub(crate) not_started: u32,
    pub(crate) recomputed: u32,
    /// Where the last attempt went wrong.
    pub(crate) last_site: Option<SiteId>,
    pub(crate) last_error: Option<Arc<str>>,
    /// Of the failures, those after which the next attempt asks for more memory.
    pub(crate) grown: u32,
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            highest: Attempt::FIRST,
            failures: 0,
            crashes: 0,
            not_started: 0,
            recomputed: 0,
            last_site: None,
            last_error: None,
            grown: 0,
        }
    }
}

/// Stands where the highest attempt stands in what was written before memory could grow, and is none: the rest follows.
const EXTENDED: Attempt = Attempt(0);

/// As it ever was where no memory has grown, so that journals and histories of before are read.
impl Serialize for Tries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { highest, failures, crashes, not_started, recomputed, last_site, last_error, grown } = self;
        if *grown == 0 && *highest != EXTENDED {
            return (highest, failures, crashes, not_started, recomputed, last_site, last_error).serialize(serializer);
        }
        let further = (failures, crashes, not_started, recomputed, last_site, last_error, grown);
        (EXTENDED, highest, further).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Tries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Tries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("what went before")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Tries, A::Error> {
                let first: Attempt = next(&mut fields)?;
                let is_extended = first == EXTENDED;
                Ok(Tries {
                    highest: if is_extended { next(&mut fields)? } else { first },
                    failures: next(&mut fields)?,
                    crashes: next(&mut fields)?,
                    not_started: next(&mut fields)?,
                    recomputed: next(&mut fields)?,
                    last_site: next(&mut fields)?,
                    last_error: next(&mut fields)?,
                    grown: if is_extended { next(&mut fields)? } else { 0 },
                })
            }
        }

        deserializer.deserialize_tuple(9, Fields)
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(fields: &mut A) -> Result<T, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("what went before is cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_without_growing_is_written_as_it_was_before_memory_could_grow() {
        let (site, error) = (Some(SiteId(4)), Some(Arc::<str>::from("no luck")));
        let former = (Attempt(3), 2u32, 0u32, 1u32, 0u32, site, &error);
        let former = postcard::to_stdvec(&(former, 7u8)).expect("encoded");
        let (tries, after): (Tries, u8) = postcard::from_bytes(&former).expect("read");
        let expected = Tries {
            highest: Attempt(3),
            failures: 2,
            not_started: 1,
            last_site: site,
            last_error: error.clone(),
            ..Tries::default()
        };
        assert_eq!((&tries, after), (&expected, 7));
        assert_eq!(postcard::to_stdvec(&(&tries, 7u8)).expect("encoded"), former);
        let grown = Tries { grown: 2, ..tries };
        let written = postcard::to_stdvec(&(&grown, 7u8)).expect("encoded");
        assert_eq!(postcard::from_bytes::<(Tries, u8)>(&written).expect("read"), (grown, 7));
    }
}
