# Sourced at the top of the repository: `atoll` is the binary to measure, which ATOLL names, or else it is built. A path
# that begins here leads there from any folder.
[ -n "${ATOLL:-}" ] || cargo build --release --locked --bin atoll >&2
atoll=$(realpath "${ATOLL:-${CARGO_TARGET_DIR:-target}/release/atoll}")
