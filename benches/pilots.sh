#!/usr/bin/env bash
# Short executions through one Slurm job of two CPUs, beside what `sbatch` alone reaches, in one run on one cluster of its own:
# `benches/pilots.sh [EXECUTIONS] [JOBS] [ROUNDS]`, as root. Builds the binary, unless ATOLL names one.
set -euo pipefail
cd "$(dirname "$0")/.."
executions=${1:-20000}
jobs=${2:-100}
rounds=${3:-3}
. benches/atoll.sh
atoll=$(readlink -f "$atoll")
scratch=$(mktemp -d /tmp/atoll-pilots-bench.XXXXXX)
chmod 755 "$scratch"
server=
agent=
clean_up() {
    trap - EXIT
    [ -z "$agent" ] || kill "$agent" 2>/dev/null
    [ -z "$server" ] || kill "$server" 2>/dev/null
    wait
    bash tests/parts/slurm-down.sh "$scratch/slurm"
    rm -rf "$scratch"
}
trap clean_up EXIT
bash tests/parts/slurm-up.sh bench "$scratch/slurm" >&2
export SLURM_CONF=$scratch/slurm/slurm.conf
now() { date +%s.%N; }
per_second() { python3 -c 'import sys; a = sys.argv; print("%.1f" % (int(a[1]) / (float(a[3]) - float(a[2]))))' "$@"; }

echo "| executions of \`true\` | how many | in a second |"
echo "|---|---:|---:|"
since=$(now)
for _ in $(seq "$jobs"); do
    sbatch --parsable --mem=64M --output=/dev/null --chdir=/ --wrap=true >/dev/null
done
while [ -n "$(squeue --noheader)" ]; do sleep 0.1; done
echo "| \`sbatch\`, one by one, until the last has ended | $jobs | $(per_second "$jobs" "$since" "$(now)") |"
since=$(now)
sbatch --parsable --array="0-$((jobs - 1))" --mem=64M --output=/dev/null --chdir=/ --wrap=true >/dev/null
while [ -n "$(squeue --noheader)" ]; do sleep 0.1; done
echo "| \`sbatch --array\` | $jobs | $(per_second "$jobs" "$since" "$(now)") |"

"$atoll" server --data-dir "$scratch/server" --ready-file "$scratch/ready" --bucket "$scratch/bucket" \
    --listen 127.0.0.1:0 --agent-listen 127.0.0.1:0 >"$scratch/server.log" 2>&1 &
server=$!
for _ in $(seq 200); do [ ! -s "$scratch/ready" ] || break; sleep 0.1; done
read -r ATOLL_URL ATOLL_TOKEN < <(python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); print(d["url"], d["token"])' "$scratch/ready")
export ATOLL_URL ATOLL_TOKEN
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$scratch/agent.toml" <<CONFIG
executor = "slurm"
cpus = 1000
memory = "100GiB"
[slurm]
poll_seconds = 1
pilots = { max = 1, cpus = 2, memory = "1GiB", time = "1h", idle = "2m", short = "10s" }
[workers]
listen = "127.0.0.1:$port"
CONFIG
token=$("$atoll" site token create hpc --ttl 10m --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')
"$atoll" agent join "$token" --data-dir "$scratch/agent" --config "$scratch/agent.toml" >/dev/null 2>&1
"$atoll" agent run --data-dir "$scratch/agent" --config "$scratch/agent.toml" >"$scratch/agent.log" 2>&1 &
agent=$!

# The first run has the pilot come, and is not counted.
run() {
    printf 'workflow: short\nsteps:\n  work:\n    foreach: ${{ range(%d) }}\n    resources: { cpu: 1, memory: 64MiB, time: 10s }\n    run: "true"\n' \
        "$1" >"$scratch/workflow.yaml"
    "$atoll" run "$scratch/workflow.yaml" --wait --json >"$scratch/run.json"
}
run 10
for _ in $(seq "$rounds"); do
    run "$executions"
    python3 - "$scratch/run.json" "$executions" <<'PYTHON'
import datetime, json, sys
run = json.load(open(sys.argv[1]))
assert run["state"] == "succeeded", run
at = lambda name: datetime.datetime.fromisoformat(run[name].replace("Z", "+00:00")).timestamp()
taken = at("finished_at") - at("submitted_at")
print("| Atoll, one pilot of two CPUs | %s | %.0f |" % (format(int(sys.argv[2]), ","), int(sys.argv[2]) / taken))
PYTHON
done
[ "$(squeue --noheader --format=%j | grep -c '^atoll\.pilot\.')" = 1 ] || { echo "$0: that was not one pilot" >&2; exit 1; }
