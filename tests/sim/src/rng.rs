//! The only source of chance: xoshiro256**, seeded by splitmix64.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut from = seed;
        Self { state: std::array::from_fn(|_| splitmix(&mut from)) }
    }

    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// From 0 up to, not including, `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    pub fn micros(&mut self, first: u64, last: u64) -> Duration {
        Duration::from_micros(self.between(first, last))
    }

    /// Between the two, each order of magnitude as likely as the others.
    pub fn spread(&mut self, first: u64, last: u64) -> Duration {
        let magnitudes = u64::from((last / first.max(1)).ilog2().max(1));
        let base = first << self.below(magnitudes + 1);
        Duration::from_micros(self.between(base, (base * 2).min(last.max(base))))
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let place = usize::try_from(self.below(from.len() as u64)).expect("a place in a slice");
        &from[place]
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// One number from several, the same whenever they are the same.
pub(crate) fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0x51_7c_c1_b7_27_22_0a_95, |mixed, number| {
        let mut state = mixed ^ number;
        splitmix(&mut state)
    })
}

/// FNV-1a over everything that was made durable: two runs of one seed must agree in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
