//! What an execution asks of a machine, and what a site has.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What one execution asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU; at least 1.
    pub cpu_millis: u32,
    /// Bytes of memory that it may use, enforced; nothing means no limit of its own.
    pub memory_bytes: Option<u64>,
    /// How long one attempt may run; nothing means no limit.
    pub time: Option<Duration>,
    /// How it is kept from everything else, at least.
    pub confinement: Confinement,
}

/// How an execution is kept from everything else, as its author asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Nothing leaves it to the site, which may always take a stricter one.
    pub isolation: Option<IsolationProfile>,
    /// Whether it is to reach the network although its isolation or its container would keep it from that.
    pub network: bool,
    /// Bytes that it may write to its own folders, enforced; nothing leaves it to the site.
    pub scratch_bytes: Option<u64>,
}

/// How far what runs is kept from the machine and from others. The later is the stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationProfile {
    /// The agent's folders cannot be changed, where the machine allows that.
    None,
    /// Nor can rights be gained, or the kernel be changed.
    Standard,
    /// Nor is anything to be seen but the machine's programs and what is its own: no network, no other process, no file of
    /// another execution.
    Strict,
}

impl IsolationProfile {
    pub const ALL: [Self; 3] = [Self::None, Self::Standard, Self::Strict];
    /// The runtime that sites have which can give the strictest.
    pub const STRICT_RUNTIME: &'static str = "isolation-strict";

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
            Self::Strict => "strict",
        }
    }
}

impl fmt::Display for IsolationProfile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for IsolationProfile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|profile| profile.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no isolation: none, standard or strict"))
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 1_000, memory_bytes: None, time: None, confinement: Confinement::default() }
    }
}

/// Stands where CPUs stand in what was written before confinements were, of which none is 0: the rest follows.
const EXTENDED: u32 = 0;

/// As it ever was where nothing is asked for that there was not at first, so that journals of before are read.
impl Serialize for Resources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { cpu_millis, memory_bytes, time, confinement } = self;
        if *confinement == Confinement::default() && *cpu_millis != EXTENDED {
            return (cpu_millis, memory_bytes, time).serialize(serializer);
        }
        (EXTENDED, cpu_millis, memory_bytes, time, confinement).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Resources;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("what an execution asks for")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Resources, A::Error> {
                let first: u32 = next(&mut fields)?;
                let is_extended = first == EXTENDED;
                Ok(Resources {
                    cpu_millis: if is_extended { next(&mut fields)? } else { first },
                    memory_bytes: next(&mut fields)?,
                    time: next(&mut fields)?,
                    confinement: if is_extended { next(&mut fields)? } else { Confinement::default() },
                })
            }
        }

        deserializer.deserialize_tuple(5, Fields)
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(fields: &mut A) -> Result<T, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("what an execution asks for is cut off"))
}

/// What a site has in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// Bytes that the site's store may still take.
    pub disk_free_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_no_more_than_there_was_at_first_is_written_as_then() {
        let former = (2_000u32, Some(5u64), Some(Duration::from_secs(3)));
        let written = postcard::to_stdvec(&(&former, 7u8)).expect("encoded");
        let (resources, after): (Resources, u8) = postcard::from_bytes(&written).expect("read");
        let expected = Resources {
            cpu_millis: 2_000,
            memory_bytes: Some(5),
            time: Some(Duration::from_secs(3)),
            confinement: Confinement::default(),
        };
        assert_eq!((&resources, after), (&expected, 7));
        assert_eq!(postcard::to_stdvec(&(&resources, 7u8)).expect("encoded"), written);
    }

    #[test]
    fn what_asks_for_more_comes_back_whole_and_takes_nothing_of_what_follows() {
        for isolation in IsolationProfile::ALL.map(Some).into_iter().chain([None]) {
            let confinement = Confinement { isolation, network: true, scratch_bytes: Some(1 << 30) };
            let resources = Resources { confinement, ..Resources::default() };
            let written = postcard::to_stdvec(&(&resources, 7u8)).expect("encoded");
            assert_eq!(postcard::from_bytes::<(Resources, u8)>(&written).expect("read"), (resources, 7));
        }
    }
}
