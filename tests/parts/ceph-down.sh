#!/usr/bin/env bash
# Stops what ceph-up.sh started in DIR, and removes DIR; with --keep, the logs stay.
set -uo pipefail

keep=no
if [ "${1:-}" = --keep ]; then keep=yes; shift; fi
[ $# -eq 1 ] || { echo "usage: $0 [--keep] DIR" >&2; exit 2; }
directory=$1

# shellcheck disable=SC1091
. "$(dirname "$0")/stop.sh"
for name in client.rgw.a osd.0 mon.a; do
    stop "$directory/$name.pid" "$directory/ceph.conf"
done
[ $keep = yes ] || rm -rf "$directory"
