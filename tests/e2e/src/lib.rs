//! Installations of the real binary, for tests: a control plane and sites as processes of their own, that can be killed,
//! started again, cut off and looked at through the command line, as a person would.

mod clock;
mod cluster;
mod database;
mod disk;
mod front;
mod git;
mod kubernetes;
mod link;
mod outside;
mod process;
mod slurm;
mod worker;

pub use clock::clock_shifter;
pub use cluster::{Cluster, Options, Run, Site, wait_for};
pub use database::Database;
pub use disk::SmallDisk;
pub use front::{Front, Mood};
pub use git::{GitServer, Repository};
pub use kubernetes::KubernetesCluster;
pub use link::Link;
pub use outside::{azurite, s3};
pub use process::{Output, atoll, binary};
pub use slurm::SlurmCluster;
pub use worker::{Machine, free_port};
