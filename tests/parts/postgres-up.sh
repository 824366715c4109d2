#!/usr/bin/env bash
# A real PostgreSQL server for tests, private, on loopback and on a Unix socket.
#
#   tests/parts/postgres-up.sh DIR [PORT]      everything in DIR; PORT 0 or none takes a free one
#
# When it returns, the database `atoll` is there, owned by the role of the same name; DIR/env holds the variables that say
# where. As root it runs as the system's `postgres` user, since PostgreSQL refuses to run as root. Nothing survives
# tests/parts/postgres-down.sh DIR.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 DIR [PORT]" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
parts=$(cd "$(dirname "$0")" && pwd)

binaries=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$binaries" ] || binaries=$(dirname "$(command -v pg_ctl 2>/dev/null || echo /nonexistent/pg_ctl)")
[ -x "$binaries/initdb" ] || { echo "$0: PostgreSQL is missing: apt-get install postgresql" >&2; exit 1; }
if [ -e "$directory/data" ]; then
    echo "$0: $directory was used before; run postgres-down.sh first" >&2
    exit 2
fi
if [ ${#directory} -gt 80 ]; then
    echo "$0: $directory is too long a path for sockets" >&2
    exit 2
fi
port=${2:-0}
[ "$port" != 0 ] ||
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

as_owner=()
if [ "$(id -u)" = 0 ]; then
    # Whoever owns the data must be able to reach it.
    chmod o+x "$directory"
    case "$(dirname "$directory")" in /tmp/*) chmod o+x "$(dirname "$directory")" ;; esac
    as_owner=(setpriv --reuid=postgres --regid=postgres --init-groups)
    mkdir "$directory/data" "$directory/log"
    chown postgres: "$directory/data" "$directory/log"
else
    mkdir "$directory/data" "$directory/log"
fi

give_up() {
    echo "$0: $1; the logs are in $directory/log" >&2
    tail -n 20 "$directory"/log/* >&2 || true
    bash "$parts/postgres-down.sh" --keep "$directory"
    exit 1
}

cd /
"${as_owner[@]}" "$binaries/initdb" --pgdata="$directory/data" --username=atoll --auth=trust --encoding=UTF8 \
    --locale=C --no-sync >"$directory/log.initdb" 2>&1 || { cat "$directory/log.initdb" >&2; give_up "initdb failed"; }
cat >>"$directory/data/postgresql.conf" <<CONFIG
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$directory/data'
max_connections = 200
shared_buffers = 256MB
max_wal_size = 4GB
logging_collector = off
CONFIG
"${as_owner[@]}" "$binaries/pg_ctl" --pgdata="$directory/data" --log="$directory/log/postgres.log" --wait --timeout=60 \
    start >"$directory/log.start" 2>&1 || give_up "PostgreSQL does not start"
"$binaries/createdb" --host=127.0.0.1 --port="$port" --username=atoll atoll || give_up "no database can be made"

cat >"$directory/env" <<VARIABLES
export ATOLL_TEST_POSTGRES=postgres://atoll@127.0.0.1:$port/atoll
export ATOLL_TEST_POSTGRES_DIR=$directory
VARIABLES
echo "PostgreSQL is at 127.0.0.1:$port, database atoll; the variables are in $directory/env"
