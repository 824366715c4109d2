//! Where a step comes from: who has asked for its run, and the trace that it is part of.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is said of a step beside what is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// W3C trace context of the run, handed to the process.
    pub traceparent: Option<String>,
    /// Nothing from a control plane that does not say it yet.
    pub requester: Option<Requester>,
}

/// Who has asked for a run, and in which project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requester {
    pub project: String,
    pub person: String,
}

/// Stands where it stood in what was written before requesters were, whether there is a trace context: more follows.
const EXTENDED: u8 = 2;

/// As a trace context ever was where nobody is named, so that journals of before are read.
impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { traceparent, requester } = self;
        match requester {
            None => traceparent.serialize(serializer),
            Some(requester) => (EXTENDED, traceparent, requester).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Origin;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("where a step comes from")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Origin, A::Error> {
                match next::<u8, A>(&mut fields)? {
                    0 => Ok(Origin::default()),
                    1 => Ok(Origin { traceparent: Some(next(&mut fields)?), requester: None }),
                    EXTENDED => Ok(Origin { traceparent: next(&mut fields)?, requester: Some(next(&mut fields)?) }),
                    other => Err(de::Error::custom(format!("{other} is no beginning of where a step comes from"))),
                }
            }
        }

        deserializer.deserialize_tuple(3, Fields)
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(fields: &mut A) -> Result<T, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("where a step comes from is cut off"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn what_was_written_before_requesters_were_is_read_and_what_names_one_too() {
        // Something follows, as in a journal.
        for former in [None, Some("00-1-2-01".to_owned())] {
            let written = postcard::to_stdvec(&(&former, 7u8)).unwrap();
            let (origin, after) = postcard::from_bytes::<(Origin, u8)>(&written).unwrap();
            assert_eq!((&origin.traceparent, &origin.requester, after), (&former, &None, 7));
            assert_eq!(postcard::to_stdvec(&(origin, 7u8)).unwrap(), written);
            let requester = Requester { project: "climate".to_owned(), person: "ada".to_owned() };
            let now = Origin { traceparent: former, requester: Some(requester) };
            let written = postcard::to_stdvec(&(&now, 7u8)).unwrap();
            assert_eq!(postcard::from_bytes::<(Origin, u8)>(&written).unwrap(), (now, 7));
        }
        assert!(postcard::from_bytes::<Origin>(&[3]).is_err());
    }
}
