//! What executions use: processors, memory, disks.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::sys::resource::{UsageWho, getrusage};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// In these the kernel counts what goes from and to disks.
const BLOCK_BYTES: u64 = 512;

/// What an attempt has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    pub cpu_micros: u64,
    pub max_rss_bytes: u64,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
}

/// What was used by processes up to a moment: it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub cpu_micros: u64,
    pub disk_read_bytes: u64,
    pub disk_written_bytes: u64,
}

impl Counted {
    /// Of everything that was ever reaped here.
    pub(super) fn of_children() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Self::default() };
        let cpu_micros = [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
            .sum();
        let bytes = |blocks: i64| u64::try_from(blocks).unwrap_or(0) * BLOCK_BYTES;
        let (disk_read_bytes, disk_written_bytes) = (bytes(usage.block_reads()), bytes(usage.block_writes()));
        Self { cpu_micros, disk_read_bytes, disk_written_bytes }
    }

    /// What a process that lives has read from disks and written to them, as its `/proc/PID/io` says; nothing where this
    /// process may not see that.
    pub(super) fn of_disks(io: &File) -> Self {
        let mut buffer = [0; 512];
        let read = io.read_at(&mut buffer, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..read]);
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0);
        Self { disk_read_bytes: field("read_bytes:"), disk_written_bytes: field("write_bytes:"), cpu_micros: 0 }
    }

    /// What has been used since.
    pub(super) fn since(self, former: Self) -> Self {
        Self {
            cpu_micros: self.cpu_micros.saturating_sub(former.cpu_micros),
            disk_read_bytes: self.disk_read_bytes.saturating_sub(former.disk_read_bytes),
            disk_written_bytes: self.disk_written_bytes.saturating_sub(former.disk_written_bytes),
        }
    }

    pub(super) fn with_memory(self, max_rss_bytes: u64) -> Spent {
        let Self { cpu_micros, disk_read_bytes, disk_written_bytes } = self;
        Spent { cpu_micros, max_rss_bytes, disk_read_bytes, disk_written_bytes }
    }
}

/// Stands where CPU time stands in what shims said before they measured disks, of which nobody has used so much: the rest
/// follows.
const EXTENDED: u64 = u64::MAX;

/// As it ever was where no disk was used, so that logs of slots and shims of before are read.
impl Serialize for Spent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { cpu_micros, max_rss_bytes, disk_read_bytes, disk_written_bytes } = self;
        if (*disk_read_bytes, *disk_written_bytes) == (0, 0) && *cpu_micros != EXTENDED {
            return (cpu_micros, max_rss_bytes).serialize(serializer);
        }
        (EXTENDED, cpu_micros, max_rss_bytes, disk_read_bytes, disk_written_bytes).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Spent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Spent;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("what an attempt has used")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Spent, A::Error> {
                let first = next(&mut fields)?;
                let is_extended = first == EXTENDED;
                Ok(Spent {
                    cpu_micros: if is_extended { next(&mut fields)? } else { first },
                    max_rss_bytes: next(&mut fields)?,
                    disk_read_bytes: if is_extended { next(&mut fields)? } else { 0 },
                    disk_written_bytes: if is_extended { next(&mut fields)? } else { 0 },
                })
            }
        }

        deserializer.deserialize_tuple(5, Fields)
    }
}

fn next<'de, A: SeqAccess<'de>>(fields: &mut A) -> Result<u64, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("what an attempt has used is cut off"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that fails here has failed")]

    use super::*;

    #[test]
    fn what_a_shim_of_before_says_of_an_end_is_understood() {
        let former = postcard::to_stdvec(&((5u64, 6u64), 9u8)).unwrap();
        let (spent, after): (Spent, u8) = postcard::from_bytes(&former).unwrap();
        assert_eq!((spent, after), (Spent { cpu_micros: 5, max_rss_bytes: 6, ..Spent::default() }, 9));
        assert_eq!(postcard::to_stdvec(&(spent, 9u8)).unwrap(), former);
        let spent = Spent { disk_written_bytes: 7, ..spent };
        let written = postcard::to_stdvec(&(spent, 9u8)).unwrap();
        assert_eq!(postcard::from_bytes::<(Spent, u8)>(&written).unwrap(), (spent, 9));
    }

    #[test]
    fn what_a_process_has_read_and_written_is_what_the_kernel_says_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let said = "rchar: 900\nwchar: 800\nread_bytes: 4096\nwrite_bytes: 12288\ncancelled_write_bytes: 5\n";
        std::fs::write(folder.path().join("io"), said).unwrap();
        let counted = Counted::of_disks(&File::open(folder.path().join("io")).unwrap());
        assert_eq!(counted, Counted { disk_read_bytes: 4_096, disk_written_bytes: 12_288, cpu_micros: 0 });
        let more = Counted { cpu_micros: 7, disk_read_bytes: 5_000, ..counted };
        let since = more.since(counted).with_memory(3);
        assert_eq!(since, Spent { cpu_micros: 7, max_rss_bytes: 3, disk_read_bytes: 904, disk_written_bytes: 0 });
    }
}
