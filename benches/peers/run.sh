#!/usr/bin/env bash
# Measures Atoll beside what people would use instead, on this machine, in turns, and prints one table.
#
#   benches/peers/run.sh [ROUNDS]        (3 by default)
#
# Installs the peers from their registries into a folder that is removed again. Run it on a machine that does nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
scratch=$(mktemp -d /tmp/atoll-peers.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

. benches/atoll.sh
python3 -m venv "$scratch/venv"
# Parsl looks for its own programs in PATH.
export PATH="$scratch/venv/bin:$PATH"
pip --quiet --disable-pip-version-check install -r benches/peers/requirements.txt >&2
export PYTHONPATH=$PWD/benches/peers
# Some peers write to where they are started.
mkdir "$scratch/work"
cd "$scratch/work"
for round in $(seq "$rounds"); do
    for system in atoll hyperqueue parsl dask; do
        echo "round $round of $rounds: $system" >&2
        if ! python -m "measure_$system" "$atoll" >"$scratch/said" 2>"$scratch/log"; then
            tail -n 20 "$scratch/log" >&2
            exit 1
        fi
        # Some peers talk.
        grep '^{' "$scratch/said" >>"$scratch/results.jsonl"
    done
done
python -m table "$scratch/results.jsonl"
