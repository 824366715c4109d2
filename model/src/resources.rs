//! What an execution asks of a machine, and what a site has.

mod spread;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::spread::{Launch, NODES_RUNTIME, SLURM_RUNTIME, Spread};

/// What one execution asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU, for each of its tasks; at least 1.
    pub cpu_millis: u32,
    /// Bytes of memory that it may use on each of its nodes, enforced; nothing means no limit of its own.
    pub memory_bytes: Option<u64>,
    /// How long one attempt may run; nothing means no limit.
    pub time: Option<Duration>,
    /// How it is kept from everything else, at least.
    pub confinement: Confinement,
    /// Processors of their own kind that nobody else uses meanwhile, on each of its nodes.
    pub gpus: Option<Gpus>,
    /// Thousandths of what a site has a number of, by name: licences, say.
    pub named: BTreeMap<String, u32>,
    /// Several nodes or tasks; without it, one task on one node.
    pub spread: Option<Spread>,
    /// Further options of its job at a site of Slurm, as they stand after `#SBATCH`.
    pub sbatch: Vec<String>,
}

/// GPUs that one execution asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Gpus {
    /// At least 1.
    pub count: u32,
    /// A kind, or one of the words that a kind is made of with `-` between them; whichever the site has most of if nothing.
    pub kind: Option<String>,
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
        Self {
            cpu_millis: 1_000,
            memory_bytes: None,
            time: None,
            confinement: Confinement::default(),
            gpus: None,
            named: BTreeMap::new(),
            spread: None,
            sbatch: Vec::new(),
        }
    }
}

impl fmt::Display for Gpus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(formatter, "{} GPUs of kind {kind}", self.count),
            None => write!(formatter, "{} GPUs", self.count),
        }
    }
}

impl Resources {
    /// How much it takes of what a site has beside CPUs and memory, in thousandths, by names that [`Capacity::others`] has too.
    /// Nothing if the site has no such GPU.
    pub fn others(&self, capacity: &Capacity) -> Option<BTreeMap<String, u64>> {
        let mut others: BTreeMap<String, u64> =
            self.named.iter().map(|(name, millis)| (name.clone(), u64::from(*millis))).collect();
        if let Some(gpus) = &self.gpus {
            let (kind, _) = capacity.gpus_of(gpus.kind.as_deref())?;
            others.insert(of_kind(kind), u64::from(gpus.count) * u64::from(self.nodes()) * 1_000);
        }
        Some(others)
    }
}

/// No named resource has a space in its name.
fn of_kind(kind: &str) -> String {
    format!("gpu {kind}")
}

/// Stands where CPUs stand in what was written before confinements were, of which none is 0: the rest follows.
const EXTENDED: u32 = 0;
/// Stands there in turn where a spread or options of a batch system follow, which were not at first either: nothing has so
/// many CPUs.
const SPREAD: u32 = u32::MAX;

/// As it ever was where nothing is asked for that there was not at first, so that journals of before are read.
impl Serialize for Resources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { cpu_millis, memory_bytes, time, confinement, gpus, named, spread, sbatch } = self;
        if self.is_for_batch_system() || *cpu_millis == SPREAD {
            let former = (cpu_millis, memory_bytes, time, confinement, gpus, named);
            return (EXTENDED, SPREAD, former, spread, sbatch).serialize(serializer);
        }
        let asks_no_more = *confinement == Confinement::default() && gpus.is_none() && named.is_empty();
        if asks_no_more && *cpu_millis != EXTENDED {
            return (cpu_millis, memory_bytes, time).serialize(serializer);
        }
        (EXTENDED, cpu_millis, memory_bytes, time, confinement, gpus, named).serialize(serializer)
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
                let cpu_millis = if is_extended { next(&mut fields)? } else { first };
                if is_extended && cpu_millis == SPREAD {
                    let (cpu_millis, memory_bytes, time, confinement, gpus, named) = next(&mut fields)?;
                    let (spread, sbatch) = (next(&mut fields)?, next(&mut fields)?);
                    return Ok(Resources { cpu_millis, memory_bytes, time, confinement, gpus, named, spread, sbatch });
                }
                Ok(Resources {
                    cpu_millis,
                    memory_bytes: next(&mut fields)?,
                    time: next(&mut fields)?,
                    confinement: if is_extended { next(&mut fields)? } else { Confinement::default() },
                    gpus: if is_extended { next(&mut fields)? } else { None },
                    named: if is_extended { next(&mut fields)? } else { BTreeMap::new() },
                    spread: None,
                    sbatch: Vec::new(),
                })
            }
        }

        deserializer.deserialize_tuple(7, Fields)
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(fields: &mut A) -> Result<T, A::Error> {
    fields.next_element()?.ok_or_else(|| de::Error::custom("what an execution asks for is cut off"))
}

/// What a site has in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    /// Bytes that the site's store may still take.
    pub disk_free_bytes: u64,
    /// How many GPUs, by kind.
    pub gpus: BTreeMap<String, u32>,
    /// What else there is a number of, in thousandths.
    pub named: BTreeMap<String, u32>,
}

impl Capacity {
    /// The kind of GPU that somebody means who names this, and how many there are: of several the one with most.
    pub fn gpus_of(&self, wanted: Option<&str>) -> Option<(&str, u32)> {
        let is_meant = |kind: &str| wanted.is_none_or(|word| kind == word || kind.split('-').any(|part| part == word));
        let meant = self.gpus.iter().filter(|(kind, _)| is_meant(kind));
        meant.max_by_key(|(_, count)| **count).map(|(kind, count)| (kind.as_str(), *count))
    }

    /// All that there is beside CPUs and memory, in thousandths.
    pub fn others(&self) -> BTreeMap<String, u64> {
        let gpus = self.gpus.iter().map(|(kind, count)| (of_kind(kind), u64::from(*count) * 1_000));
        self.named.iter().map(|(name, millis)| (name.clone(), u64::from(*millis))).chain(gpus).collect()
    }

    /// What an execution asks for that there is not, beside CPUs and memory: that, and what there is of it.
    pub fn lacks(&self, wanted: &Resources) -> Option<(String, String)> {
        if let Some(gpus) = &wanted.gpus {
            let (kind, there) = self.gpus_of(gpus.kind.as_deref()).unwrap_or(("", 0));
            let all = Gpus { count: gpus.count.saturating_mul(wanted.nodes()), kind: gpus.kind.clone() };
            if there < all.count {
                let most = if there == 0 { "none".to_owned() } else { format!("{there} of kind {kind}") };
                return Some((all.to_string(), most));
            }
        }
        let there = |name: &String| self.named.get(name).copied().unwrap_or(0);
        let shown = |millis: u32| (f64::from(millis) / 1e3).to_string();
        wanted.named.iter().find(|(name, millis)| there(name) < **millis).map(|(name, millis)| {
            (
                format!("{} {name}", shown(*millis)),
                if there(name) == 0 { "none".to_owned() } else { shown(there(name)) },
            )
        })
    }

    /// How many executions of this shape there is room for at once, as far as this goes beside CPUs and memory.
    pub fn times(&self, wanted: &Resources) -> u32 {
        let (Some(wanted), there) = (wanted.others(self), self.others()) else { return 0 };
        let times = |(name, millis): (&String, &u64)| there.get(name).copied().unwrap_or(0) / (*millis).max(1);
        wanted.iter().map(times).min().map_or(u32::MAX, |times| u32::try_from(times).unwrap_or(u32::MAX))
    }
}

/// Stands where CPUs stand in what was written before there were GPUs, of which no site has so many: the rest follows.
const CAPACITY_EXTENDED: u32 = u32::MAX;

/// As [`Resources`] are.
impl Serialize for Capacity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { cpu_millis, memory_bytes, disk_free_bytes, gpus, named } = self;
        if gpus.is_empty() && named.is_empty() && *cpu_millis != CAPACITY_EXTENDED {
            return (cpu_millis, memory_bytes, disk_free_bytes).serialize(serializer);
        }
        (CAPACITY_EXTENDED, cpu_millis, memory_bytes, disk_free_bytes, gpus, named).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Capacity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Capacity;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("what a site has")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Capacity, A::Error> {
                let first: u32 = next(&mut fields)?;
                let is_extended = first == CAPACITY_EXTENDED;
                Ok(Capacity {
                    cpu_millis: if is_extended { next(&mut fields)? } else { first },
                    memory_bytes: next(&mut fields)?,
                    disk_free_bytes: next(&mut fields)?,
                    gpus: if is_extended { next(&mut fields)? } else { BTreeMap::new() },
                    named: if is_extended { next(&mut fields)? } else { BTreeMap::new() },
                })
            }
        }

        deserializer.deserialize_tuple(6, Fields)
    }
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
            ..Resources::default()
        };
        assert_eq!((&resources, after), (&expected, 7));
        assert_eq!(postcard::to_stdvec(&(&resources, 7u8)).expect("encoded"), written);
    }

    #[test]
    fn what_asks_for_more_comes_back_whole_and_takes_nothing_of_what_follows() {
        for isolation in IsolationProfile::ALL.map(Some).into_iter().chain([None]) {
            let confinement = Confinement { isolation, network: true, scratch_bytes: Some(1 << 30) };
            let gpus = Some(Gpus { count: 2, kind: Some("a100".to_owned()) });
            let named = BTreeMap::from([("licences".to_owned(), 500)]);
            let resources = Resources { confinement, gpus, named, ..Resources::default() };
            let written = postcard::to_stdvec(&(&resources, 7u8)).expect("encoded");
            assert_eq!(postcard::from_bytes::<(Resources, u8)>(&written).expect("read"), (resources, 7));
        }
    }

    #[test]
    fn what_is_spread_comes_back_whole_and_what_is_not_is_written_as_before_there_were_any() {
        let gpus = Some(Gpus { count: 2, kind: None });
        let plain = Resources { gpus, ..Resources::default() };
        let former = (0u32, 1_000u32, None::<u64>, None::<Duration>, Confinement::default(), plain.gpus.clone());
        let former = postcard::to_stdvec(&((former, BTreeMap::<String, u32>::new()), 7u8)).expect("encoded");
        assert_eq!(postcard::from_bytes::<(Resources, u8)>(&former).expect("read"), (plain.clone(), 7));
        assert_eq!(postcard::to_stdvec(&(&plain, 7u8)).expect("encoded"), former);
        let spread = Spread { nodes: 2, tasks_per_node: 4, launch: Some(Launch::Srun) };
        for (spread, sbatch) in [(Some(spread), vec!["--exclusive".to_owned()]), (Some(spread), Vec::new())] {
            let resources = Resources { spread, sbatch, ..plain.clone() };
            let written = postcard::to_stdvec(&(&resources, 7u8)).expect("encoded");
            assert_eq!(postcard::from_bytes::<(Resources, u8)>(&written).expect("read"), (resources, 7));
        }
    }

    fn capacity() -> Capacity {
        let gpus = [("nvidia-a100-80gb", 2), ("v100", 3)].map(|(kind, count)| (kind.to_owned(), count));
        let named = BTreeMap::from([("licences".to_owned(), 4_000)]);
        Capacity { cpu_millis: 8_000, gpus: gpus.into(), named, ..Capacity::default() }
    }

    #[test]
    fn what_a_site_has_is_written_as_it_was_where_it_has_no_more() {
        let former = postcard::to_stdvec(&(&(5u32, 6u64, 7u64), 8u8)).expect("encoded");
        let (plain, after): (Capacity, u8) = postcard::from_bytes(&former).expect("read");
        assert_eq!((plain.cpu_millis, plain.memory_bytes, plain.disk_free_bytes, after), (5, 6, 7, 8));
        assert_eq!(postcard::to_stdvec(&(&plain, 8u8)).expect("encoded"), former);
        let written = postcard::to_stdvec(&(capacity(), 8u8)).expect("encoded");
        assert_eq!(postcard::from_bytes::<(Capacity, u8)>(&written).expect("read"), (capacity(), 8));
    }

    #[test]
    fn who_names_no_kind_of_gpu_gets_that_of_which_there_is_most() {
        let asks = |count, kind: Option<&str>| Resources {
            gpus: Some(Gpus { count, kind: kind.map(str::to_owned) }),
            ..Resources::default()
        };
        for (wanted, times, lacks) in [
            (asks(1, None), 3, None),
            (asks(2, Some("a100")), 1, None),
            (asks(3, Some("a100")), 0, Some(("3 GPUs of kind a100", "2 of kind nvidia-a100-80gb"))),
            (asks(1, Some("h100")), 0, Some(("1 GPUs of kind h100", "none"))),
            (Resources { named: BTreeMap::from([("licences".to_owned(), 1_500)]), ..Resources::default() }, 2, None),
            (
                Resources { named: BTreeMap::from([("seats".to_owned(), 500)]), ..Resources::default() },
                0,
                Some(("0.5 seats", "none")),
            ),
            (Resources::default(), u32::MAX, None),
        ] {
            assert_eq!(capacity().times(&wanted), times, "{wanted:?}");
            assert_eq!(capacity().lacks(&wanted), lacks.map(|(what, there)| (what.to_owned(), there.to_owned())));
        }
    }
}
