#!/usr/bin/env bash
# Stops what ceph-up.sh started in DIR, and removes DIR; with --keep, the logs stay.
set -uo pipefail

keep=no
if [ "${1:-}" = --keep ]; then keep=yes; shift; fi
[ $# -eq 1 ] || { echo "usage: $0 [--keep] DIR" >&2; exit 2; }
directory=$1

# Gone, or dead and not yet reaped.
is_over() {
    local state
    state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1) || return 0
    [ -z "$state" ] || [ "$state" = Z ]
}

for name in client.rgw.a osd.0 mon.a; do
    file=$directory/$name.pid
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    # A number that came to another process since is left alone.
    grep -qz "$directory/ceph.conf" "/proc/$pid/cmdline" 2>/dev/null || continue
    kill "$pid" 2>/dev/null
    for _ in $(seq 100); do
        is_over "$pid" && break
        sleep 0.1
    done
    is_over "$pid" || kill -9 "$pid" 2>/dev/null
done
[ $keep = yes ] || rm -rf "$directory"
