//! Carries packets between two devices: one thread for each direction.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::packet::{VNET_HEADER, damage, offered, part};
use crate::shape::{Shape, Shaper};

const PACKET_BYTES_MAX: usize = VNET_HEADER + (64 << 10);
/// Packets that are read before those that are due are written.
const BATCH: usize = 32;

/// What one direction has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Segments that came to the link.
    pub offered: u64,
    /// Segments that arrived at its other end.
    pub delivered: u64,
    /// Bytes that arrived, from the IP header on.
    pub bytes: u64,
    /// Segments lost by chance, to a full queue, or to a cut.
    pub lost: u64,
    pub damaged: u64,
    /// What the thread has used of a processor.
    pub busy_micros: u64,
}

#[derive(Debug, Default)]
struct Counters {
    offered: AtomicU64,
    delivered: AtomicU64,
    bytes: AtomicU64,
    damaged: AtomicU64,
    lost: AtomicU64,
    busy_micros: AtomicU64,
}

/// A link between two devices. Ends when it is dropped.
#[derive(Debug)]
pub struct Link {
    directions: [Direction; 2],
}

#[derive(Debug)]
struct Direction {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    shape: Mutex<Shape>,
    changed: AtomicBool,
    stopped: AtomicBool,
    counters: Counters,
    bell: OwnedFd,
}

fn locked(mutex: &Mutex<Shape>) -> MutexGuard<'_, Shape> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) fn start(devices: [File; 2], shapes: [Shape; 2], seed: u64) -> io::Result<Self> {
        let [first, second] = devices;
        let (back_first, back_second) = (first.try_clone()?, second.try_clone()?);
        let there = Direction::start(first, back_second, shapes[0], seed)?;
        let back = Direction::start(second, back_first, shapes[1], seed ^ u64::MAX)?;
        Ok(Self { directions: [there, back] })
    }

    /// How it treats packets from the first site to the second, and back.
    pub fn shapes(&self) -> [Shape; 2] {
        [0, 1].map(|direction| *locked(&self.directions[direction].shared.shape))
    }

    /// Changes both directions.
    pub fn reshape(&self, change: impl Fn(Shape) -> Shape) {
        self.reshape_there(&change);
        self.reshape_back(&change);
    }

    /// Changes the direction from the first site to the second.
    pub fn reshape_there(&self, change: impl Fn(Shape) -> Shape) {
        self.directions[0].reshape(&change);
    }

    /// Changes the direction from the second site to the first.
    pub fn reshape_back(&self, change: impl Fn(Shape) -> Shape) {
        self.directions[1].reshape(&change);
    }

    pub fn cut(&self) {
        self.reshape(|shape| Shape { cut: true, ..shape });
    }

    pub fn mend(&self) {
        self.reshape(|shape| Shape { cut: false, ..shape });
    }

    /// What went from the first site to the second, and back.
    pub fn carried(&self) -> [Carried; 2] {
        [0, 1].map(|direction| self.directions[direction].shared.counters.read())
    }
}

impl Counters {
    fn read(&self) -> Carried {
        Carried {
            offered: self.offered.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            busy_micros: self.busy_micros.load(Ordering::Relaxed),
        }
    }
}

impl Direction {
    fn start(from: File, to: File, shape: Shape, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            shape: Mutex::new(shape),
            changed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            counters: Counters::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let carrying = Carrying {
            from,
            to,
            shared: Arc::clone(&shared),
            shaper: Shaper::new(shape, seed),
            underway: BinaryHeap::new(),
            began: Instant::now(),
            sequence: 0,
        };
        let thread = std::thread::Builder::new().name("wan-link".to_owned()).spawn(|| carrying.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn reshape(&self, change: &impl Fn(Shape) -> Shape) {
        let mut shape = locked(&self.shared.shape);
        *shape = change(*shape);
        self.shared.changed.store(true, Ordering::Release);
        drop(shape);
        self.ring();
    }

    fn ring(&self) {
        // A counter that is full rings as well.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.ring();
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A packet on its way; ordered by when it is due, then by when it came.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Underway {
    due_nanos: u64,
    sequence: u64,
    segments: u32,
    bytes: u64,
    packet: Vec<u8>,
}

struct Carrying {
    from: File,
    to: File,
    shared: Arc<Shared>,
    shaper: Shaper,
    underway: BinaryHeap<Reverse<Underway>>,
    began: Instant,
    sequence: u64,
}

impl Carrying {
    fn run(mut self) {
        // Timeouts to the microsecond, not to the 50 that a thread is given otherwise.
        let _ = nix::sys::prctl::set_timerslack(1_000);
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !self.shared.stopped.load(Ordering::Acquire) {
            if self.shared.changed.swap(false, Ordering::AcqRel) {
                let shape = *locked(&self.shared.shape);
                self.shaper.reshape(shape);
                if shape.cut {
                    self.lose_underway();
                }
            }
            self.deliver();
            self.take(&mut buffer);
            if let Err(error) = self.wait() {
                eprintln!("a link of the test network cannot wait: {error}");
                return;
            }
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn wait(&self) -> Result<(), Errno> {
        let timeout = self.underway.peek().map(|Reverse(next)| {
            let left = next.due_nanos.saturating_sub(self.now());
            Timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 }
        });
        let mut sources = [PollFd::new(&self.from, PollFlags::IN), PollFd::new(&self.shared.bell, PollFlags::IN)];
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if !sources[1].revents().is_empty() {
            let mut count = [0; 8];
            // Somebody rang; how often does not matter.
            let _ = rustix::io::read(&self.shared.bell, &mut count);
        }
        if let Ok(used) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID) {
            let micros = used.tv_sec() as u64 * 1_000_000 + used.tv_nsec() as u64 / 1_000;
            self.shared.counters.busy_micros.store(micros, Ordering::Relaxed);
        }
        Ok(())
    }

    fn take(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            // A device that is down has nothing to read, and is looked at again when it has.
            let Ok(length) = self.from.read(buffer) else { return };
            if length > VNET_HEADER {
                self.offer(&buffer[..length]);
            }
        }
    }

    fn offer(&mut self, packet: &[u8]) {
        let counters = &self.shared.counters;
        let whole = offered(packet);
        counters.offered.fetch_add(whole.segments.into(), Ordering::Relaxed);
        let now = self.began.elapsed().as_nanos() as u64;
        let mut lost = u64::from(whole.segments);
        for fate in self.shaper.offer(now, whole) {
            let segments = fate.segments.end - fate.segments.start;
            lost -= u64::from(segments);
            let mut packet = part(packet, &fate.segments);
            if fate.damaged.is_some_and(|choice| damage(&mut packet, choice)) {
                counters.damaged.fetch_add(1, Ordering::Relaxed);
            }
            let bytes = offered(&packet).bytes;
            self.sequence += 1;
            let (due_nanos, sequence) = (fate.due_nanos, self.sequence);
            self.underway.push(Reverse(Underway { due_nanos, sequence, segments, bytes, packet }));
        }
        counters.lost.fetch_add(lost, Ordering::Relaxed);
    }

    fn deliver(&mut self) {
        let mut now = self.now();
        while self.underway.peek().is_some_and(|Reverse(next)| next.due_nanos <= now) {
            let Some(Reverse(next)) = self.underway.pop() else { return };
            self.shaper.arrived(next.bytes);
            let counters = &self.shared.counters;
            // A device that is down takes nothing.
            if self.to.write(&next.packet).is_ok() {
                counters.delivered.fetch_add(next.segments.into(), Ordering::Relaxed);
                counters.bytes.fetch_add(next.bytes, Ordering::Relaxed);
            } else {
                counters.lost.fetch_add(next.segments.into(), Ordering::Relaxed);
            }
            now = self.now();
        }
    }

    fn lose_underway(&mut self) {
        for Reverse(lost) in self.underway.drain() {
            self.shaper.arrived(lost.bytes);
            self.shared.counters.lost.fetch_add(lost.segments.into(), Ordering::Relaxed);
        }
    }
}
