#!/usr/bin/env bash
# What a Slurm site takes beside bare `sbatch`, in one run on one cluster of its own: `benches/slurm.sh [JOBS]`, as root.
# Builds the binary, unless ATOLL names one.
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-200}
. benches/slurm-site.sh

# Each job writes down when it began; how many began in a second, and how long the one that began first and the median waited.
summary() {
    python3 - "$1" "$2" "$3" <<'PYTHON'
import statistics, sys
name, since, path = sys.argv[1], float(sys.argv[2]), sys.argv[3]
begun = sorted(float(line) for line in open(path))
waits = [at - since for at in begun]
print("| %s | %d | %.2f | %.2f | %.1f |" % (
    name, len(begun), waits[0], statistics.median(waits), len(begun) / waits[-1]))
PYTHON
}
wait_for() {
    for _ in $(seq 6000); do
        [ "$(wc -l <"$1")" -ge "$count" ] && return 0
        sleep 0.1
    done
    echo "$1: only $(wc -l <"$1") of $count" >&2
    return 1
}

echo "| jobs of one CPU on a node of 16 | jobs | first begins after, s | median, s | begun in a second |"
echo "|---|---:|---:|---:|---:|"
begun=$scratch/bare
: >"$begun"
printf '#!/bin/sh\ndate +%%s.%%N >>%s\n' "$begun" >"$scratch/job.sh"
since=$(date +%s.%N)
for _ in $(seq "$count"); do
    sbatch --parsable --output=/dev/null "$scratch/job.sh" >/dev/null
done
submitted=$(date +%s.%N)
rate=$(python3 -c 'import sys; a = sys.argv; print("%.0f" % (int(a[1]) / (float(a[3]) - float(a[2]))))' "$count" "$since" "$submitted")
wait_for "$begun"
summary "bare \`sbatch\`, one by one" "$since" "$begun"

begun=$scratch/array
: >"$begun"
printf '#!/bin/sh\ndate +%%s.%%N >>%s\n' "$begun" >"$scratch/job.sh"
array_since=$(date +%s.%N)
sbatch --parsable --array="0-$((count - 1))" --output=/dev/null "$scratch/job.sh" >/dev/null
wait_for "$begun"
summary "bare \`sbatch --array\`" "$array_since" "$begun"

printf 'executor = "slurm"\ncpus = 1000\nmemory = "100GiB"\n[slurm]\njobs_max = 1000\n' >"$scratch/agent.toml"
start_site
begun=$scratch/atoll
: >"$begun"
cat >"$scratch/workflow.yaml" <<WORKFLOW
workflow: bench
steps:
  a:
    site: hpc
    foreach: \${{ range($count) }}
    run: date +%s.%N >>$begun
WORKFLOW
since=$(date +%s.%N)
"$atoll" run "$scratch/workflow.yaml" --json >/dev/null
wait_for "$begun"
summary "Atoll, from \`atoll run\`" "$since" "$begun"
printf '\n`sbatch` itself took %s submissions in a second; Atoll makes one of a fan-out.\n' "$rate"
