//! End to end: real programs between hosts that share nothing.
//!
//! Each test runs in a world of its own (see `tests/harness`), against the commands as a person uses them, and compares whole
//! outputs with those of a plain run. `cargo test --test e2e -- FILTER` runs some of them.

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod calls;
mod doctor;
mod faults;
mod five_by_five;
mod hosts;
mod ipc;
mod jobs;
mod many;
mod moves;
mod peer;
mod real;
mod security;
mod vrun;

use libtest_mimic::{Arguments, Trial};

fn main() {
    peer::become_peer_if_asked();
    real::become_tokio_if_asked();
    harness::host::become_keeper_if_asked();
    let arguments = Arguments::from_args();
    let modules = [
        hosts::trials(),
        vrun::trials(),
        five_by_five::trials(),
        moves::trials(),
        many::trials(),
        bad_input::trials(),
        security::trials(),
        calls::trials(),
        faults::trials(),
        real::trials(),
        doctor::trials(),
        ipc::trials(),
    ];
    let trials: Vec<Trial> = modules.into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit();
}
