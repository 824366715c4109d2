#!/usr/bin/env bash
# Short executions through one Slurm job of two CPUs, beside what `sbatch` alone reaches, in one run on one cluster of its own:
# `benches/pilots.sh [EXECUTIONS] [JOBS] [ROUNDS]`, as root. Builds the binary, unless ATOLL names one.
set -euo pipefail
cd "$(dirname "$0")/.."
executions=${1:-20000}
jobs=${2:-100}
rounds=${3:-3}
. benches/slurm-site.sh
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
start_site

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
