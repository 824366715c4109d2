//! Starts the processes of executions and reaps them, with no more than the kernel needs for it.
//!
//! The C library's `posix_spawn` asks for the disposition of every signal in each child and sets it, some 125 calls of the
//! system where two or three signals are other than by default. And `std::process::Command`, which stands on it, makes the
//! environment anew for each start and does not say what a process has used. Where a site runs thousands of short processes
//! a second this shows.
//!
//! A [`Program`] is made once and started as often as needed by a [`Spawner`], which gives a [`Child`] to wait for.

mod child;
mod confined;
mod enclosure;
mod filter;
mod identity;
mod program;
mod spawner;

pub use child::{Child, Ended};
pub use confined::{filters_of, give_up_rights};
pub use enclosure::{Enclosure, Taken};
pub use filter::Filter;
pub use identity::Identity;
pub use program::Program;
pub use spawner::{Circumstances, Spawner};
