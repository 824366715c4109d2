//! Does: the content-addressed site store, the canonical stream of an object, the bucket, and transfers between the two.
//!
//! It decides nothing: which bytes go where is the business of the cores. What it promises:
//!
//! - Nothing enters the site store under a name that is not the digest of its bytes, and nothing partial is ever visible
//!   there: bytes are hashed and durable before they get their name.
//! - What is handed over was verified on this machine, and its identity (device, inode, size, times) has not changed
//!   since; otherwise it is hashed again first, and quarantined if it is not what its name says.
//! - Every byte that arrives is verified before it is used, every byte that leaves while it is read.
//! - No key of a bucket is needed to move an object: URLs for one object and method are enough.
//!
//! [`store::SiteStore`] and [`publish::publish_at_path`] block and are called from threads made for that; [`bucket`],
//! [`direct`], [`outside`], the rest of [`publish`] and [`transfer`] are asynchronous.

pub mod action_folder;
pub mod bucket;
mod buffers;
pub mod direct;
pub mod encryption;
mod hash;
mod manifest;
pub mod outside;
pub mod publish;
pub mod signature;
pub mod store;
pub mod stream;
pub mod transfer;
mod walk;
