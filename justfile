# What a person does here, in the order of the continuous integration. `just --list` shows it.

# Everything that the continuous integration runs, with the packages that it needs.
ci:
    ./.ci/run

# Formatting, as rustfmt wants it.
fmt:
    cargo fmt --all --check

# Warnings are errors.
lint:
    cargo clippy --workspace --all-targets --release --locked -- -D warnings

# The one binary, as it is shipped.
build:
    cargo build --release --locked --bin atoll

# Whether everything compiles, quickly.
check:
    cargo check --workspace --all-targets

# Every test; installs nothing.
test: build
    ./tests/run.sh --no-install

# The simulator: SEEDS of them, from FIRST on.
sim SEEDS="2000" FIRST="1":
    ATOLL_SIM_SEEDS={{SEEDS}} ATOLL_SIM_FIRST={{FIRST}} cargo test --release --locked -p sim-tests -- --nocapture

# Which pairs of state and event the simulator reaches.
sim-coverage SEEDS="2000" FIRST="0":
    ATOLL_SIM_SEEDS={{SEEDS}} ATOLL_SIM_FIRST={{FIRST}} cargo test --release --locked -p planted-sim-tests --test coverage -- --nocapture

# What catches each planted fault, and after how many seeds.
sim-faults:
    cargo test --release --locked -p planted-sim-tests --test faults -- --nocapture

# The stores against their contract: power loss, corruption, full disks.
contract:
    cargo test --release --locked -p contract-tests -- --nocapture

# The binary, started, killed and cut off for real.
e2e FILTER="": build
    cargo test --release --locked -p e2e-tests -- {{FILTER}}

# The house rules.
tidy: build
    cargo test --release --locked -p tidy-tests

# Writes the table of docs/reliability.md from the tests that exist.
reliability-table:
    cargo run --release --locked -p tidy-tests --bin reliability-table

# Licences, advisories, banned crates; wants cargo-deny.
deny:
    cargo deny --all-features check

# What Atoll costs on this machine.
bench: build
    target/release/atoll bench engine
    target/release/atoll bench latency
    target/release/atoll bench chain
    target/release/atoll bench handoff
    cargo run --release --locked -p storage-sync-journal --example journal_throughput
