#!/usr/bin/env bash
# Stops what slurm-up.sh started in DIR, with the jobs that run, and removes DIR; with --keep, the logs stay.
set -uo pipefail

keep=no
if [ "${1:-}" = --keep ]; then keep=yes; shift; fi
[ $# -eq 1 ] || { echo "usage: $0 [--keep] DIR" >&2; exit 2; }
directory=$1
# shellcheck disable=SC1091
. "$(dirname "$0")/stop.sh"

if [ -s "$directory/cluster" ]; then
    # shellcheck disable=SC1091
    . "$directory/cluster"
    export SLURM_CONF=$directory/slurm.conf
    jobs=$(timeout 5 squeue --noheader --format=%A 2>/dev/null | sort -u)
    if [ -n "$jobs" ]; then
        # shellcheck disable=SC2086
        timeout 10 scancel $jobs 2>/dev/null
        for _ in $(seq 100); do
            [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
            sleep 0.1
        done
    fi
    stop "$directory/run/slurmctld.pid" slurmctld
    for node in ${nodes:?}; do
        stop "$directory/run/$node.pid" slurmd
    done
    stop "$directory/run/slurmdbd.pid" slurmdbd
    stop "$directory/run/mariadbd.pid" mariadbd
    stop "$directory/munge/pid" munged
    # What watches over a job goes on for as long as the controller has not heard of its end.
    for process in /proc/[0-9]*; do
        grep -qx slurmstepd "$process/comm" 2>/dev/null || continue
        grep -qzxF "SLURM_CONF=$SLURM_CONF" "$process/environ" 2>/dev/null && kill -9 "${process#/proc/}"
    done
    for node in $nodes; do
        for groups in /sys/fs/cgroup/{cpuacct,cpuset,freezer,memory}/"slurm_$node"; do
            [ ! -d "$groups" ] || find "$groups" -depth -type d -exec rmdir {} \; 2>/dev/null
        done
    done
fi
[ $keep = yes ] || rm -rf "$directory"
