//! How a [`Usage`] is written.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Usage;

/// Stands where CPU time stands in what was written before disks were measured, of which nobody has used so much: the rest
/// follows.
const EXTENDED: u64 = u64::MAX;

/// As it ever was where no disk was used, so that journals and histories of before are read.
impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { cpu_micros, max_rss_bytes, bytes_in, bytes_out, disk_read_bytes, disk_written_bytes } = self;
        if (*disk_read_bytes, *disk_written_bytes) == (0, 0) && *cpu_micros != EXTENDED {
            return (cpu_micros, max_rss_bytes, bytes_in, bytes_out).serialize(serializer);
        }
        let disks = (disk_read_bytes, disk_written_bytes);
        (EXTENDED, cpu_micros, max_rss_bytes, bytes_in, bytes_out, disks).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Usage;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("what an attempt used")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Usage, A::Error> {
                let first = next(&mut fields)?;
                let is_extended = first == EXTENDED;
                Ok(Usage {
                    cpu_micros: if is_extended { next(&mut fields)? } else { first },
                    max_rss_bytes: next(&mut fields)?,
                    bytes_in: next(&mut fields)?,
                    bytes_out: next(&mut fields)?,
                    disk_read_bytes: if is_extended { next(&mut fields)? } else { 0 },
                    disk_written_bytes: if is_extended { next(&mut fields)? } else { 0 },
                })
            }
        }

        deserializer.deserialize_tuple(7, Fields)
    }
}

fn next<'de, A: SeqAccess<'de>>(fields: &mut A) -> Result<u64, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("what an attempt used is cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_used_no_disk_is_written_as_it_was_before_disks_were_measured() {
        let former = postcard::to_stdvec(&((5u64, 6u64, 7u64, 8u64), 9u8)).expect("encoded");
        let (usage, after): (Usage, u8) = postcard::from_bytes(&former).expect("read");
        let expected = Usage { cpu_micros: 5, max_rss_bytes: 6, bytes_in: 7, bytes_out: 8, ..Usage::default() };
        assert_eq!((usage, after), (expected, 9));
        assert_eq!(postcard::to_stdvec(&(usage, 9u8)).expect("encoded"), former);
        for (disk_read_bytes, disk_written_bytes) in [(0, 1), (1, 0), (u64::MAX, 3)] {
            let usage = Usage { disk_read_bytes, disk_written_bytes, ..usage };
            let written = postcard::to_stdvec(&(usage, 9u8)).expect("encoded");
            assert_eq!(postcard::from_bytes::<(Usage, u8)>(&written).expect("read"), (usage, 9));
        }
    }
}
