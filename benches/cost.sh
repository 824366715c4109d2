#!/bin/sh
# What an execution costs as there are more of them: `benches/cost.sh [ROUNDS]` prints a table, medians of so many rounds.
# Builds the binary, unless ATOLL names one. Wants a machine that does nothing else.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3}
. benches/atoll.sh
echo "| shape | executions | executions/s | server, µs each | agent, µs each | server's memory, MiB |"
echo "|---|---:|---:|---:|---:|---:|"
for shape in fan chains layers; do
    for executions in 10000 100000 1000000; do
        for round in $(seq "$rounds"); do
            "$atoll" bench engine --shape "$shape" --executions "$executions" --json
        done | python3 -c '
import json, statistics, sys
results = [json.loads(line)["results"] for line in sys.stdin]
median = lambda of: statistics.median(of(result) for result in results)
each = lambda name: median(lambda result: result[name] / result["executions"] * 1e6)
print("| %s | %s | %s | %.2f | %.2f | %.0f |" % (
    sys.argv[1], format(int(sys.argv[2]), ","), format(round(median(lambda result: result["per_second"])), ","),
    each("server_cpu_seconds"), each("agent_cpu_seconds"),
    median(lambda result: result["server_max_rss_bytes"]) / 2**20))' "$shape" "$executions"
    done
done
