#!/usr/bin/env bash
# Three sites on one machine: `edge`, in a network namespace of its own, with containers; `hpc`, in another, with a real Slurm; `cloud`
# with warm Python. Runs examples/three-sites through all of them, shows what ran where and what crossed, and ends everything.
#
#   deploy/demo.sh [--keep]      with --keep they stay until Ctrl-C, to be looked at
#
# As root. ATOLL names the program; without it, it is built.
set -euo pipefail

keep=
[ "${1:-}" != --keep ] || { keep=yes; shift; }
[ $# -eq 0 ] || { echo "usage: $0 [--keep]" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" = 0 ] || { echo "$0: network namespaces and a Slurm node want root: sudo $0" >&2; exit 1; }
missing=
for program in ip:iproute2 nsenter:util-linux podman:podman runc:runc busybox:busybox-static slurmctld:slurm-wlm munged:munge \
    python3:python3; do
    command -v "${program%:*}" >/dev/null || missing+=" ${program#*:}"
done
[ -z "$missing" ] || { echo "$0: missing: apt-get install --no-install-recommends$missing" >&2; exit 1; }
if [ -z "${ATOLL:-}" ]; then
    cargo build --release --locked --manifest-path "$repository/Cargo.toml" --bin atoll
    ATOLL=$(cargo metadata --format-version 1 --no-deps --manifest-path "$repository/Cargo.toml" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/atoll
fi

# Paths of Slurm's sockets are short.
directory=$(mktemp -d "${TMPDIR:-/tmp}/atoll-demo-XXXXXX")
chmod 755 "$directory"
number=$(($$ % 100))
pids=()

end() {
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    [ ! -e "$directory/slurm/slurm.conf" ] || bash "$repository/tests/parts/slurm-down.sh" "$directory/slurm" >/dev/null
    for site in edge hpc; do ip netns delete "atoll-$site-$$" 2>/dev/null || true; done
    rm -rf "$directory" "/run/atoll-demo-$$"
}
trap end EXIT
trap 'exit 130' INT TERM

# A namespace for a site, with an address that this one reaches, and the other way round.
enter_network() {
    local namespace=atoll-$1-$$ net=10.80.$((number + $2))
    ip netns add "$namespace"
    ip link add "atd$2-$$" type veth peer name eth0 netns "$namespace"
    ip addr add "$net.1/24" dev "atd$2-$$"
    ip link set "atd$2-$$" up
    ip -n "$namespace" addr add "$net.2/24" dev eth0
    ip -n "$namespace" link set lo up
    ip -n "$namespace" link set eth0 up
    ip -n "$namespace" route add default via "$net.1"
}
enter_network edge 0
enter_network hpc 100

echo "a control plane"
address=10.80.$number.1
"$ATOLL" server --data-dir "$directory/server" --bucket "$directory/bucket" --listen 127.0.0.1:0 --agent-listen "$address:0" \
    --ready-file "$directory/ready" >"$directory/server.log" 2>&1 &
pids+=($!)
until [ -e "$directory/ready" ]; do
    kill -0 "${pids[0]}" 2>/dev/null || { cat "$directory/server.log" >&2; exit 1; }
    sleep 0.1
done
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
ATOLL_URL=$(field url <"$directory/ready") ATOLL_TOKEN=$(field token <"$directory/ready")
export ATOLL_URL ATOLL_TOKEN

# A site's agent, in the namespace of its own if it has one.
start_site() {
    local site=$1 namespace=${2:-} token
    token=$("$ATOLL" site token create "$site" --json | field token)
    local agent=("$ATOLL" agent join - --run --data-dir "$directory/$site" --config "$directory/$site.toml")
    [ -z "$namespace" ] || agent=(nsenter --net="/run/netns/$namespace" "${agent[@]}")
    env -u ATOLL_TOKEN -u ATOLL_URL "${agent[@]}" <<<"$token" >"$directory/$site.log" 2>&1 &
    pids+=($!)
}

echo "edge: containers, in a network of its own"
mkdir -p "$directory/image" "$directory/example"
# Images of its own, so that none stays on the machine. Paths of sockets are short here too: else each end is waited for.
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$directory/images" "/run/atoll-demo-$$" \
    >"$directory/storage.conf"
export CONTAINERS_STORAGE_CONF=$directory/storage.conf
cp "$(command -v busybox)" "$directory/image/busybox"
printf 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n' >"$directory/image/Containerfile"
cp -r "$repository/examples/three-sites/." "$directory/example"
podman build --quiet --tag "localhost/atoll-demo:$$" "$directory/image" >/dev/null
podman save --quiet --output "$directory/example/gauge/image.tar" "localhost/atoll-demo:$$"
podman rmi --force "localhost/atoll-demo:$$" >/dev/null
echo "stop_work_on_exit = true" >"$directory/edge.toml"
start_site edge "atoll-edge-$$"

echo "hpc: a Slurm cluster, in another"
bash "$repository/tests/parts/slurm-up.sh" demo "$directory/slurm" "atoll-hpc-$$" "10.80.$((number + 100)).2"
printf 'executor = "slurm"\ncpus = 16\nmemory = "8GiB"\n[slurm]\nconf = "%s"\npoll_seconds = 1\n' "$directory/slurm/slurm.conf" \
    >"$directory/hpc.toml"
start_site hpc "atoll-hpc-$$"

echo "cloud: Python functions"
echo "stop_work_on_exit = true" >"$directory/cloud.toml"
start_site cloud

for _ in $(seq 300); do
    ready=$("$ATOLL" sites --json | python3 -c \
        'import json, sys; print(sum(site["state"] == "ready" for site in json.load(sys.stdin)["sites"]))')
    [ "$ready" != 3 ] || break
    sleep 0.1
done
[ "$ready" = 3 ] || { tail -n 20 "$directory"/*.log >&2; echo "$0: the sites do not get ready" >&2; exit 1; }
"$ATOLL" sites

echo
run=$("$ATOLL" run "$directory/example/workflow.yaml" --wait --json | tee "$directory/run.json" | field run) || {
    cat "$directory/run.json" >&2
    exit 1
}
"$ATOLL" show "$run"
echo
"$ATOLL" ledger --run "$run"
echo
"$ATOLL" get "$run" report -o "$directory/report.txt"
cat "$directory/report.txt"
if [ -n "$keep" ]; then
    printf '\nIn another terminal, until Ctrl-C here:\n    export ATOLL_URL=%s ATOLL_TOKEN=%s\n' "$ATOLL_URL" "$ATOLL_TOKEN"
    wait "${pids[0]}"
fi
