"""Atoll: default build, durable journal on both sides, mutual TLS."""

import json
import subprocess
import sys

from common import CALLS, CHAIN, PROCESSES, report


def bench(atoll, *arguments):
    done = subprocess.run([atoll, "bench", *arguments, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    atoll = sys.argv[1]
    processes = bench(atoll, "engine", "--executor", "process", "--executions", str(PROCESSES))
    nothing = bench(atoll, "engine", "--executor", "null", "--executions", "100000")
    calls = bench(atoll, "engine", "--executor", "python", "--executions", str(4 * CALLS))
    latency = bench(atoll, "latency")
    chain = bench(atoll, "chain", "--steps", str(CHAIN))
    chain_of_calls = bench(atoll, "chain", "--steps", str(CHAIN), "--executor", "python")
    report(
        "Atoll",
        processes["version"],
        processes_per_second=processes["results"]["per_second"],
        share_of_bare=processes["results"]["share_of_bare_spawns"],
        bare_per_second=processes["results"]["bare_spawns_per_second"],
        calls_per_second=calls["results"]["per_second"],
        nothing_per_second=nothing["results"]["per_second"],
        one_ms=latency["results"]["submit_to_finished_ms"]["p50"],
        hop_ms=chain["results"]["per_hop_ms_mean"],
        call_hop_ms=chain_of_calls["results"]["per_hop_ms_mean"],
    )


main()
