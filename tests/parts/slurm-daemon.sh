#!/usr/bin/env bash
# Starts a daemon of a cluster that slurm-up.sh has made in DIR, anew after it was killed:
#
#   tests/parts/slurm-daemon.sh DIR slurmctld|slurmd [ARGUMENTS…]     slurmd: of each node
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 DIR slurmctld|slurmd [ARGUMENTS…]" >&2; exit 2; }
directory=$1 daemon=$2
shift 2
# shellcheck disable=SC1091
. "$directory/cluster"
enter=()
[ -z "${namespace:-}" ] || enter=(nsenter --net="/run/netns/$namespace")
export SLURM_CONF=$directory/slurm.conf
start() { "${enter[@]}" timeout 20 "$daemon" -f "$SLURM_CONF" "$@" </dev/null >>"$directory/log/$daemon.out" 2>&1; }
if [ "$daemon" != slurmd ]; then
    start "$@"
    exit
fi
for node in ${nodes:?}; do
    start -N "$node" "$@"
done
