//! Copies the core and plants faults in the copy.

fn main() {
    planted::plant("site-agent/core/src");
}
