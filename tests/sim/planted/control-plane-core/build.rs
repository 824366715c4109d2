//! Copies the core and plants faults in the copy.

fn main() {
    planted::plant("control-plane/core/src");
}
