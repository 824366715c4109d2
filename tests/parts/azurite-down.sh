#!/usr/bin/env bash
# Stops what azurite-up.sh started in DIR, and removes DIR; with --keep, the log stays.
set -uo pipefail

keep=no
if [ "${1:-}" = --keep ]; then keep=yes; shift; fi
[ $# -eq 1 ] || { echo "usage: $0 [--keep] DIR" >&2; exit 2; }
directory=$1

# shellcheck disable=SC1091
. "$(dirname "$0")/stop.sh"
stop "$directory/pid" azurite
[ $keep = yes ] || rm -rf "$directory"
