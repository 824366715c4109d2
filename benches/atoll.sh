# Sourced at the top of the repository: `atoll` is the binary to measure, which ATOLL names, or else it is built.
[ -n "${ATOLL:-}" ] || cargo build --release --locked --bin atoll >&2
atoll=${ATOLL:-${CARGO_TARGET_DIR:-$PWD/target}/release/atoll}
