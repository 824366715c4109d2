//! The binary, started, killed, cut off, given bad input: as people and machines do it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod actions;
mod bad_input;
mod batch;
mod bucket_moods;
mod containers;
mod cut_off;
mod data;
mod demo;
mod doctor;
mod encrypted;
mod example;
mod executable;
mod failover;
mod fleet;
mod history;
mod kills;
mod kubernetes;
mod ledger;
mod publish;
mod python;
mod repositories;
mod restored;
mod reuse;
mod ryax;
mod sample;
mod server_process;
mod services;
mod shown;
mod slurm;
mod slurm_faults;
mod sources;
mod transfers;
mod workers;
