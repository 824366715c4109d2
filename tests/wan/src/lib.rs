//! A wide-area network for tests: links with delay, jitter, loss, reordering, a rate with a bounded queue, damage and
//! cuts, between network namespaces of this machine, in user space, because a kernel may have no netem.
//!
//! A [`Network`] makes [`Site`]s, each a network namespace with one address. [`Network::join`] lays a [`Link`] between two
//! of them: a TUN device at either end, and a thread for each direction that carries packets from one to the other as a
//! [`Shape`] says, which can be changed at any time. What becomes of each packet is decided by a [`Shaper`], which has
//! neither clock nor device, so that the same seed and the same packets have the same fate.
//!
//! TCP and UDP hand over as many segments at once as the machine's own network cards would be given (64 KiB). The shaper
//! judges each segment of such a bundle by itself; those that survive side by side travel on as one bundle, and leave when
//! the last of them would have: at 1 Gbit/s that is half a millisecond's worth.
//!
//! It needs root. Where it cannot be had, [`Network::new`] says so loudly and gives nothing.

pub mod agents;
mod chance;
pub mod control;
mod device;
mod packet;
mod relay;
mod shape;
mod site;

pub use relay::{Carried, Link};
pub use shape::{Fate, Offered, Shape, Shaper};
pub use site::{Network, Site};
