//! What becomes of each packet of one direction of a link: decided here, without a clock or a device.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::chance::Chance;

const NANOS: u64 = 1_000_000_000;
/// Bytes on their way at most where no rate bounds them: beyond, packets are dropped.
const IN_FLIGHT_MAX: u64 = 256 << 20;

/// How one direction of a link treats packets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// One way.
    pub delay_micros: u64,
    /// At most this much is added to the delay, evenly spread. It does not change the order of packets.
    pub jitter_micros: u64,
    /// The share of segments that vanish.
    pub loss: f64,
    /// The share of packets that are held back by `reorder_micros`, so that later ones overtake them.
    pub reorder: f64,
    pub reorder_micros: u64,
    /// The share of packets of which one bit is flipped, in a place that no checksum of the network notices.
    pub damage: f64,
    /// Bits of a second, of whole packets from the IP header on.
    pub rate: Option<u64>,
    /// Bytes that may wait for their turn when there is a rate; what comes beyond is dropped.
    pub queue_bytes: u64,
    /// Nothing passes, and what was on its way is lost.
    pub cut: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            delay_micros: 0,
            jitter_micros: 0,
            loss: 0.0,
            reorder: 0.0,
            reorder_micros: 1_000,
            damage: 0.0,
            rate: None,
            queue_bytes: 4 << 20,
            cut: false,
        }
    }
}

impl Shape {
    /// Half of this round trip, at this rate, with a queue of one round trip's worth.
    pub fn wide_area(rate: u64, round_trip_micros: u64) -> Self {
        let queue_bytes = (rate / 8 * round_trip_micros / 1_000_000).max(64 << 10);
        Self { delay_micros: round_trip_micros / 2, rate: Some(rate), queue_bytes, ..Self::default() }
    }

    pub fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }
}

/// A packet, or a bundle of segments that travel as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    pub segments: u32,
    /// Of each segment, headers included; the last may be shorter.
    pub segment_bytes: u32,
    /// Of all segments, headers included.
    pub bytes: u64,
}

/// What becomes of the segments that survive side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    pub segments: Range<u32>,
    /// When it arrives.
    pub due_nanos: u64,
    /// Chosen among its bits: this one is flipped.
    pub damaged: Option<u64>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Shaper {
    shape: Shape,
    chance: Chance,
    /// When the line has sent everything that it was given.
    free_at: u64,
    /// No packet arrives before the one that was sent before it, but for those that are held back.
    last_due: u64,
    in_flight: u64,
}

impl Shaper {
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, chance: Chance::new(seed), free_at: 0, last_due: 0, in_flight: 0 }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What is on its way keeps its fate.
    pub fn reshape(&mut self, shape: Shape) {
        if shape.rate.is_none() {
            self.free_at = 0;
        }
        self.shape = shape;
    }

    /// Decides. Segments that are in no fate are lost.
    pub fn offer(&mut self, now_nanos: u64, offered: Offered) -> Vec<Fate> {
        let mut fates: Vec<Fate> = Vec::new();
        if self.shape.cut {
            return fates;
        }
        let mut left = offered.bytes;
        for segment in 0..offered.segments {
            let bytes = if segment + 1 == offered.segments { left } else { u64::from(offered.segment_bytes).min(left) };
            left -= bytes;
            if self.chance.happens(self.shape.loss) {
                continue;
            }
            let Some(sent_at) = self.send(now_nanos, bytes) else { continue };
            match fates.last_mut() {
                Some(fate) if fate.segments.end == segment => {
                    fate.segments.end += 1;
                    fate.due_nanos = sent_at;
                }
                _ => fates.push(Fate { segments: segment..segment + 1, due_nanos: sent_at, damaged: None }),
            }
        }
        for fate in &mut fates {
            let jitter = match self.shape.jitter_micros {
                0 => 0,
                micros => (self.chance.share() * (micros * 1_000) as f64) as u64,
            };
            let due = fate.due_nanos + self.shape.delay_micros * 1_000 + jitter;
            fate.due_nanos = due.max(self.last_due);
            if self.chance.happens(self.shape.reorder) {
                fate.due_nanos += self.shape.reorder_micros * 1_000;
            } else {
                self.last_due = fate.due_nanos;
            }
            if self.chance.happens(self.shape.damage) {
                fate.damaged = Some(self.chance.next());
            }
        }
        fates
    }

    /// The packets of so many bytes have arrived, or were dropped after all.
    pub fn arrived(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// When the line has sent a segment; nothing if there is no room to wait.
    fn send(&mut self, now: u64, bytes: u64) -> Option<u64> {
        let sent_at = match self.shape.rate {
            Some(rate) => {
                let rate = rate.max(1);
                let begins = self.free_at.max(now);
                let waiting = u128::from(begins - now) * u128::from(rate) / 8 / u128::from(NANOS);
                if waiting + u128::from(bytes) > u128::from(self.shape.queue_bytes) {
                    return None;
                }
                self.free_at = begins + bytes * 8 * NANOS / rate;
                self.free_at
            }
            None if self.in_flight + bytes > IN_FLIGHT_MAX => return None,
            None => now,
        };
        self.in_flight += bytes;
        Some(sent_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: Offered = Offered { segments: 1, segment_bytes: 1_500, bytes: 1_500 };
    const BUNDLE: Offered = Offered { segments: 40, segment_bytes: 1_500, bytes: 60_000 };

    fn fates(shape: Shape, seed: u64, count: u64, offered: Offered, gap_nanos: u64) -> Vec<Vec<Fate>> {
        let mut shaper = Shaper::new(shape, seed);
        (0..count)
            .map(|index| {
                let fates = shaper.offer(index * gap_nanos, offered);
                shaper
                    .arrived(fates.iter().map(|fate| u64::from(fate.segments.end - fate.segments.start) * 1_500).sum());
                fates
            })
            .collect()
    }

    fn survivors(fates: &[Vec<Fate>]) -> u64 {
        fates.iter().flatten().map(|fate| u64::from(fate.segments.end - fate.segments.start)).sum()
    }

    #[test]
    fn the_same_seed_and_packets_have_the_same_fate() {
        let shape = Shape {
            jitter_micros: 500,
            reorder: 0.1,
            damage: 0.01,
            ..Shape::wide_area(100_000_000, 50_000).with_loss(0.05)
        };
        let first = fates(shape, 7, 2_000, BUNDLE, 1_000_000);
        assert_eq!(first, fates(shape, 7, 2_000, BUNDLE, 1_000_000));
        assert_ne!(first, fates(shape, 8, 2_000, BUNDLE, 1_000_000));
    }

    #[test]
    fn each_segment_of_a_bundle_is_lost_by_itself() {
        let lost = Shape::default().with_loss(0.01);
        let alone = 200_000 - survivors(&fates(lost, 1, 200_000, PACKET, 1_000));
        let bundled = 200_000 - survivors(&fates(lost, 1, 5_000, BUNDLE, 1_000));
        assert!((1_800..2_200).contains(&alone), "{alone}");
        assert_eq!(bundled, alone, "the draws are the same");
    }

    #[test]
    fn a_packet_waits_for_the_line_and_then_for_the_delay() {
        let mut shaper = Shaper::new(Shape::wide_area(8_000_000, 20_000), 1);
        assert_eq!(shaper.offer(0, PACKET)[0].due_nanos, 1_500_000 + 10_000_000);
        assert_eq!(shaper.offer(0, PACKET)[0].due_nanos, 3_000_000 + 10_000_000);
        assert_eq!(shaper.offer(100_000_000, PACKET)[0].due_nanos, 111_500_000);
    }

    #[test]
    fn what_finds_no_room_in_the_queue_is_dropped() {
        let shape = Shape { queue_bytes: 6_000, ..Shape::wide_area(8_000_000, 0) };
        let mut shaper = Shaper::new(shape, 1);
        let fates = shaper.offer(0, BUNDLE);
        assert_eq!(fates.len(), 1);
        assert_eq!(fates[0].segments, 0..4);
        assert!(shaper.offer(0, PACKET).is_empty());
        assert_eq!(shaper.offer(1_500_000, PACKET).len(), 1, "one has been sent meanwhile");
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_changes_it() {
        let due = |shape| -> Vec<u64> {
            fates(shape, 3, 1_000, PACKET, 10_000).into_iter().flatten().map(|fate| fate.due_nanos).collect()
        };
        let jitter = due(Shape { delay_micros: 1_000, jitter_micros: 5_000, ..Shape::default() });
        assert!(jitter.is_sorted());
        let reordered = due(Shape { delay_micros: 1_000, reorder: 0.1, ..Shape::default() });
        let held = reordered.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((60..140).contains(&held), "{held}");
    }

    #[test]
    fn nothing_passes_a_cut() {
        let mut shaper = Shaper::new(Shape { cut: true, ..Shape::default() }, 1);
        assert!(shaper.offer(0, BUNDLE).is_empty());
        shaper.reshape(Shape::default());
        assert_eq!(shaper.offer(0, BUNDLE)[0].segments, 0..40);
    }
}
