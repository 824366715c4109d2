#!/usr/bin/env bash
# Starts a daemon of a cluster that slurm-up.sh has made in DIR, anew after it was killed:
#
#   tests/parts/slurm-daemon.sh DIR slurmctld|slurmd [ARGUMENTS…]
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 DIR slurmctld|slurmd [ARGUMENTS…]" >&2; exit 2; }
directory=$1 daemon=$2
shift 2
# shellcheck disable=SC1091
. "$directory/cluster"
enter=()
[ -z "${namespace:-}" ] || enter=(nsenter --net="/run/netns/$namespace")
[ "$daemon" != slurmd ] || set -- -N "${name:?}" "$@"
SLURM_CONF=$directory/slurm.conf exec "${enter[@]}" timeout 20 "$daemon" -f "$directory/slurm.conf" "$@" \
    </dev/null >"$directory/log/$daemon.out" 2>&1
