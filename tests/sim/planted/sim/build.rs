//! Copies the simulator and plants faults in the copy.

fn main() {
    planted::plant("tests/sim/src");
}
