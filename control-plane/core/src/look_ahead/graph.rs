//! What a look-ahead looks at: work that is still to be done, what it hands on, and the sites.

/// Sites that a look-ahead weighs at most.
pub const SITES_MAX: usize = 16;

/// A set of sites, by their places in [`Graph::sites`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteSet(u32);

impl SiteSet {
    pub const NONE: Self = Self(0);

    pub fn all(sites: usize) -> Self {
        assert!(sites <= SITES_MAX, "a look-ahead weighs few sites");
        Self((1 << sites) - 1)
    }

    pub fn only(site: usize) -> Self {
        Self(1 << site)
    }

    pub fn insert(&mut self, site: usize) {
        self.0 |= 1 << site;
    }

    pub fn contains(self, site: usize) -> bool {
        self.0 >> site & 1 == 1
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Work that is to be done at one site: an execution, or several that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// How long it runs.
    pub micros: u64,
    pub cpu_millis: u32,
    /// Where it may be done; where it is, if that is settled.
    pub sites: SiteSet,
    /// Units that end before it begins, makers of what it reads among them or not.
    pub needs: Vec<u32>,
}

/// Bytes that one unit makes, or that are there already, for some to read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub maker: Option<u32>,
    /// Where it is already.
    pub at: SiteSet,
    /// Ascending, each once.
    pub readers: Vec<u32>,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub cpu_millis: u32,
    /// Run time of work of the same whole that has ended there.
    pub spent_micros: u64,
    /// Until what others have there has ended, roughly.
    pub busy_micros: u64,
}

/// How fast bytes move between sites.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Links {
    pub bytes_per_second: f64,
    pub latency_micros: u64,
}

impl Links {
    pub fn micros(&self, bytes: u64) -> u64 {
        // Saturates.
        self.latency_micros.saturating_add((bytes as f64 / self.bytes_per_second * 1e6) as u64)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub units: Vec<Unit>,
    pub items: Vec<Item>,
    pub sites: Vec<Site>,
    pub links: Links,
}

impl Graph {
    /// Run time of all work, done and to be done.
    pub fn micros(&self) -> u64 {
        let spent: u64 = self.sites.iter().map(|site| site.spent_micros).sum();
        spent + self.units.iter().map(|unit| unit.micros).sum::<u64>()
    }

    /// Bytes that cross a border: each item once for each site that reads it and does not have it.
    pub fn crossing_bytes(&self, site_of: &[u8]) -> u64 {
        let crossing = |item: &Item| {
            let mut there = item.at;
            item.maker.iter().for_each(|maker| there.insert(usize::from(site_of[*maker as usize])));
            let mut bytes = 0;
            for reader in &item.readers {
                let site = usize::from(site_of[*reader as usize]);
                if !there.contains(site) {
                    there.insert(site);
                    bytes += item.bytes;
                }
            }
            bytes
        };
        self.items.iter().map(crossing).sum()
    }

    /// Run time at each site.
    pub fn loads(&self, site_of: &[u8]) -> Vec<u64> {
        let mut loads: Vec<_> = self.sites.iter().map(|site| site.spent_micros).collect();
        for (unit, site) in self.units.iter().zip(site_of) {
            loads[usize::from(*site)] += unit.micros;
        }
        loads
    }
}
