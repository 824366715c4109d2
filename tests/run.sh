#!/usr/bin/env bash
# Installs what the tests need, builds Atoll once, and runs everything: formatting, lints, unit tests, contract suites,
# simulator, end-to-end tests, house rules.
#
#   ./tests/run.sh                  as root, or as a user who may call sudo without a password
#   ./tests/run.sh --no-install     with what is there
#
# Wants Debian 12 or newer and Rust. Exits with 0 only if everything passed and nothing was left out.
set -uo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
export CI=1 CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}" RUST_BACKTRACE=0
# Optimising across the parts of each crate takes a quarter of the time of a build, and is worth a tenth of what the result
# takes: what is only tested does without.
export CARGO_PROFILE_RELEASE_LTO=off
# The same cases each time: new ones are sought by hand, and those that failed are kept.
export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-1}"

packages=(
    gcc libc6-dev                               # the linker, and the recorder of the power-loss tests
    ceph-mon ceph-osd radosgw ceph-common       # a real S3 server
    postgresql                                  # the store of several servers
    slurm-wlm slurm-wlm-basic-plugins munge     # two real clusters as sites
    slurmdbd mariadb-server                     # and the accounting of one
    openmpi-bin python3-mpi4py                  # programs that run on several of its nodes
    podman runc busybox-static docker-registry  # containers
    python3 python3-venv curl openssl           # the example, packages of actions, the scripts under tests/parts
    iproute2 iptables nftables                  # sites as network namespaces
    util-linux mount procps                     # file systems and processes of a test's own
)
# Where they came from elsewhere, they stay.
command -v kubectl >/dev/null || packages+=(kubernetes-client)   # asks the stand-in of a Kubernetes cluster
command -v git >/dev/null || packages+=(git)            # repositories that actions are imported from
command -v npm >/dev/null || packages+=(nodejs npm)     # the emulator of Azure's storage
install=yes
case "${1:-}" in
    "") ;;
    --no-install) install=no ;;
    *) echo "usage: $0 [--no-install]" >&2; exit 2 ;;
esac

scratch=$(mktemp -d /tmp/atoll-tests.XXXXXX)
failed=()
apt_job=
clean_up() {
    trap - EXIT INT TERM
    [ -z "$apt_job" ] || wait "$apt_job" 2>/dev/null
    bash tests/parts/ceph-down.sh "$scratch/s3"
    bash tests/parts/azurite-down.sh "$scratch/azure"
    bash tests/parts/postgres-down.sh "$scratch/postgres"
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# stage NAME COMMAND…: runs it, and remembers whether it failed.
stage() {
    local name=$1 begun=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if "$@"; then
        printf '== %s: passed in %d s\n' "$name" $((SECONDS - begun))
    else
        printf '== %s: FAILED after %d s\n' "$name" $((SECONDS - begun))
        failed+=("$name")
        return 1
    fi
}

# A site takes no new work on a disk that is nine tenths full: without room its tests would wait for ever.
room_for_sites() {
    local used free
    read -r used free < <(df --output=used,avail -k "$scratch" | tail -1)
    [ $((free * 100)) -ge $(((used + free) * 12)) ] && [ "$free" -ge $((6 * 1024 * 1024)) ] && return 0
    echo "$scratch: $((free / 1024)) MiB of $(((used + free) / 1024)) are free; the tests want 12 % of it, and 6 GiB."
    return 1
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed$' || echo "$package"
    done
}

install_packages() {
    local missing as_root=()
    mapfile -t missing < <(missing_packages)
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" != 0 ]; then
            as_root=(sudo -n)
        fi
        echo "installing ${missing[*]}"
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 update &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 \
                install -y --no-install-recommends "${missing[@]}" || return 1
    fi
    bash tests/parts/azurite-up.sh --install
}

command -v cargo >/dev/null || export PATH="$HOME/.cargo/bin:$PATH"
command -v cargo >/dev/null || { echo "$0: Rust is missing: https://rustup.rs" >&2; exit 1; }

# Packages install beside the build, unless the build itself waits for a compiler.
if [ $install = yes ]; then
    if command -v cc >/dev/null; then
        install_packages >"$scratch/apt.log" 2>&1 &
        apt_job=$!
    else
        stage "packages" install_packages || exit 1
    fi
fi

stage "room" room_for_sites || exit 1
nextest=no
cargo nextest --version >/dev/null 2>&1 && nextest=yes
build_tests() {
    if [ $nextest = yes ]; then
        cargo nextest run --release --locked --workspace --features atoll/wasm --no-run
    else
        cargo test --release --locked --workspace --features atoll/wasm --no-run
    fi
}

stage "formatting" cargo fmt --all --check
# The programs that tests start come with them: alone, they would be built from dependencies with fewer features, once more.
stage "build" build_tests
stage "lints" cargo clippy --release --locked --workspace --features atoll/wasm --all-targets -- -D warnings

if [ -n "$apt_job" ]; then
    wait_for_packages() { wait "$apt_job" || { cat "$scratch/apt.log"; return 1; }; }
    stage "packages" wait_for_packages
    apt_job=
fi
if stage "S3 server" bash tests/parts/ceph-up.sh "$scratch/s3"; then
    # shellcheck disable=SC1091
    . "$scratch/s3/env"
fi
if stage "Azure's emulator" bash tests/parts/azurite-up.sh "$scratch/azure"; then
    # shellcheck disable=SC1091
    . "$scratch/azure/env"
fi
if stage "PostgreSQL" bash tests/parts/postgres-up.sh "$scratch/postgres"; then
    # shellcheck disable=SC1091
    . "$scratch/postgres/env"
fi

run_tests() {
    local code
    if [ $nextest = yes ]; then
        cargo nextest run --release --locked --workspace --features atoll/wasm --no-fail-fast 2>&1 | tee "$scratch/tests.log"
    else
        cargo test --release --locked --workspace --features atoll/wasm --no-fail-fast 2>&1 | tee "$scratch/tests.log"
    fi
    code=${PIPESTATUS[0]}
    return "$code"
}
nothing_skipped() { ! grep -n 'SKIPPED' "$scratch/tests.log"; }

# The build has taken its part by now.
stage "room" room_for_sites || exit 1
stage "tests" run_tests
stage "nothing skipped" nothing_skipped

# The runner's own closing lines, then ours.
echo
if [ $nextest = yes ]; then
    sed -n '/^ *Summary \[/,$p' "$scratch/tests.log"
else
    grep '^test result:' "$scratch/tests.log" |
        awk '{ passed += $4; failed += $6; ignored += $8 }
             END { printf "test result: %d passed; %d failed; %d ignored\n", passed, failed, ignored }'
fi
minutes=$((SECONDS / 60)) seconds=$((SECONDS % 60))
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED after %d min %d s: %s\n' $minutes $seconds "$(IFS=,; echo "${failed[*]}" | sed 's/,/, /g')"
    exit 1
fi
printf 'Everything passed in %d min %d s.\n' $minutes $seconds
