//! Ids are numbers and bytes where programs read them, and texts where people do.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ObjectId;

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.digest().serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(TextOrBytes)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self::from_digest)
        }
    }
}

/// Sites hold notes of earlier versions, which wrote a list of bytes.
struct TextOrBytes;

impl<'de> Visitor<'de> for TextOrBytes {
    type Value = ObjectId;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the id of an object (b3:…)")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ObjectId, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<ObjectId, A::Error> {
        let mut digest = [0; 32];
        for (place, byte) in digest.iter_mut().enumerate() {
            *byte = sequence.next_element()?.ok_or_else(|| A::Error::invalid_length(place, &self))?;
        }
        Ok(ObjectId::from_digest(digest))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::id::RunId;

    #[test]
    fn ids_are_texts_for_people_and_numbers_for_programs() {
        let (run, object) = (RunId::from_bits(7), ObjectId::from_digest([7; 32]));
        let text = serde_json::to_string(&(run, object)).unwrap();
        assert_eq!(text, format!("[\"{run}\",\"{object}\"]"));
        assert_eq!(serde_json::from_str::<(RunId, ObjectId)>(&text).unwrap(), (run, object));
        let bytes = postcard::to_stdvec(&(run, object)).unwrap();
        assert_eq!(bytes, [&[7][..], &[7; 32]].concat());
        assert_eq!(postcard::from_bytes::<(RunId, ObjectId)>(&bytes).unwrap(), (run, object));
    }

    #[test]
    fn an_object_that_was_written_as_a_list_of_bytes_is_read() {
        let list = serde_json::to_string(&[7; 32]).unwrap();
        assert_eq!(serde_json::from_str::<ObjectId>(&list).unwrap(), ObjectId::from_digest([7; 32]));
        assert!(serde_json::from_str::<ObjectId>("[1, 2]").is_err());
    }
}
