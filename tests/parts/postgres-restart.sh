#!/usr/bin/env bash
# Stops the server that postgres-up.sh started in DIR as a crash would, and starts it again.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
directory=$(cd "$1" && pwd)
binaries=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$binaries" ] || binaries=$(dirname "$(command -v pg_ctl)")
as_owner=()
[ "$(id -u)" != 0 ] || as_owner=(setpriv --reuid=postgres --regid=postgres --init-groups)
cd /
"${as_owner[@]}" "$binaries/pg_ctl" --pgdata="$directory/data" --log="$directory/log/postgres.log" --mode=immediate \
    --wait --timeout=60 restart </dev/null >/dev/null
