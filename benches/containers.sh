#!/usr/bin/env bash
# What Atoll adds to the start of a container: a chain of containers that do nothing, each a step of its own, beside as many
# `podman run` one after the other, by turns: `benches/containers.sh [STEPS] [ROUNDS]`. Wants podman, a static busybox and tar.
# Builds the binary, unless ATOLL names one.
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-20}
rounds=${2:-5}
. benches/atoll.sh
atoll=$(readlink -f "$atoll")
scratch=$(mktemp -d /tmp/atoll-container-bench.XXXXXX)
image=localhost/atoll-bench-$$
dev=
id=
clean_up() {
    trap - EXIT
    [ -z "$dev" ] || { kill "$dev" 2>/dev/null; wait "$dev" || true; }
    # By its id it goes with the name that the site has given it.
    [ -z "$id" ] || podman rmi --force "$id" >/dev/null
    rm -rf "$scratch"
}
trap clean_up EXIT

mkdir -p "$scratch/root/bin" "$scratch/action"
cp /bin/busybox "$scratch/root/bin/"
ln -s busybox "$scratch/root/bin/true"
echo "$$" >"$scratch/root/unique"
id=$(tar -C "$scratch/root" -c . | podman import --quiet - "$image")
podman save --quiet --output "$scratch/action/image.tar" "$image"
printf 'name: nothing\nversion: "1"\nruntime: container\nimage: ./image.tar\ncommand: ["true"]\n' >"$scratch/action/action.yaml"
{
    printf 'workflow: chain\nsteps:\n  s1: { action: ./action }\n'
    for number in $(seq 2 "$steps"); do
        printf '  s%d: { action: ./action, after: [s%d] }\n' "$number" $((number - 1))
    done
} >"$scratch/chain.yaml"

"$atoll" dev --sites edge --data-dir "$scratch/dev" --ready-file "$scratch/ready" >"$scratch/dev.log" 2>&1 &
dev=$!
for _ in $(seq 300); do [ -s "$scratch/ready" ] && break; sleep 0.1; done
ATOLL_URL=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["url"])' "$scratch/ready")
ATOLL_TOKEN=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["token"])' "$scratch/ready")
export ATOLL_URL ATOLL_TOKEN

# The same limits as those of Atoll: an engine's own are more than some users may have.
limits=(--ulimit "nofile=$(ulimit -Sn):$(ulimit -Hn)" --ulimit nproc=4096:4096)
now() { date +%s.%N; }
bare() {
    local began
    began=$(now)
    for _ in $(seq "$steps"); do
        podman run --rm --network none --cpus 1 "${limits[@]}" "$image" true
    done
    echo "bare $began $(now)" >>"$scratch/times"
}
ours() {
    (cd "$scratch" && "$atoll" run chain.yaml --wait --json) >"$scratch/run.json"
    python3 - "$scratch/run.json" >>"$scratch/times" <<'PYTHON'
import datetime, json, sys
run = json.load(open(sys.argv[1]))
assert run["state"] == "succeeded", run
at = lambda text: datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
print("atoll", at(run["submitted_at"]), at(run["finished_at"]))
PYTHON
}
# Both are warm then: the image is loaded, and everything has run once.
ours
bare
: >"$scratch/times"
for _ in $(seq "$rounds"); do
    ours
    bare
done
python3 - "$scratch/times" "$steps" <<'PYTHON'
import statistics, sys
taken = {"bare": [], "atoll": []}
for line in open(sys.argv[1]):
    who, began, ended = line.split()
    taken[who].append((float(ended) - float(began)) / int(sys.argv[2]) * 1000)
print("| containers one after the other, ms each | median | least | most |")
print("|---|---:|---:|---:|")
for who, name in (("bare", "`podman run`"), ("atoll", "steps of a run")):
    times = taken[who]
    print("| %s | %.0f | %.0f | %.0f |" % (name, statistics.median(times), min(times), max(times)))
bare, ours = (statistics.median(taken[who]) for who in ("bare", "atoll"))
print("| more | %.1f %% | | |" % ((ours / bare - 1) * 100))
PYTHON
