#!/usr/bin/env bash
# Stops what postgres-up.sh started in DIR, and removes DIR; with --keep, the logs stay.
set -uo pipefail

keep=no
if [ "${1:-}" = --keep ]; then keep=yes; shift; fi
[ $# -eq 1 ] || { echo "usage: $0 [--keep] DIR" >&2; exit 2; }
directory=$1

if [ -s "$directory/data/postmaster.pid" ]; then
    pid=$(head -n 1 "$directory/data/postmaster.pid")
    # A number that came to another process since is left alone.
    if grep -qz "$directory/data" "/proc/$pid/cmdline" 2>/dev/null; then
        kill -QUIT "$pid" 2>/dev/null
        for _ in $(seq 100); do
            [ -e "/proc/$pid" ] || break
            sleep 0.1
        done
    fi
fi
[ $keep = yes ] || rm -rf "$directory"
