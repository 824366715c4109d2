#!/usr/bin/env bash
# Starts a daemon of a cluster that slurm-up.sh has made in DIR, anew after it was killed:
#
#   tests/parts/slurm-daemon.sh DIR slurmctld|slurmd|slurmdbd|mariadbd [ARGUMENTS…]     slurmd: of each node
#
# The last two are those of a cluster with accounting; when they are started they answer.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 DIR slurmctld|slurmd|slurmdbd|mariadbd [ARGUMENTS…]" >&2; exit 2; }
directory=$1 daemon=$2
shift 2
# shellcheck disable=SC1091
. "$directory/cluster"
enter=()
[ -z "${namespace:-}" ] || enter=(nsenter --net="/run/netns/$namespace")
export SLURM_CONF=$directory/slurm.conf

# MariaDB, as an unprivileged user and without rights of its own: nobody else is in the network namespace.
start_database() {
    local files=$directory/database as_owner=(setpriv --reuid=mysql --regid=mysql --clear-groups) options pid
    options=(--no-defaults --datadir="$files/data")
    if [ ! -d "$files" ]; then
        mkdir -p "$files/data"
        chown -R mysql: "$files"
        "${as_owner[@]}" mariadb-install-db "${options[@]}" --skip-test-db >"$directory/log/database.out" 2>&1 </dev/null
    fi
    "${enter[@]}" "${as_owner[@]}" mariadbd "${options[@]}" --bind-address=127.0.0.1 --port="${database_port:?}" \
        --socket="$files/sock" --skip-grant-tables --skip-networking=0 --innodb-flush-log-at-trx-commit=0 \
        --innodb-buffer-pool-size=64M </dev/null >>"$directory/log/mariadbd.out" 2>&1 &
    pid=$!
    echo "$pid" >"$directory/run/mariadbd.pid"
    for _ in $(seq 600); do
        mariadb-admin --no-defaults --socket="$files/sock" ping >/dev/null 2>&1 && return
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.05
    done
    return 1
}

# The daemon of accounting goes to the background before it has made its tables.
start_accounting() {
    "${enter[@]}" timeout 60 slurmdbd "$@" </dev/null >>"$directory/log/slurmdbd.out" 2>&1
    for _ in $(seq 600); do
        timeout 5 sacctmgr --noheader --parsable2 list cluster >"$directory/log/sacctmgr.out" 2>&1 && return
        sleep 0.05
    done
    return 1
}

start() { "${enter[@]}" timeout 20 "$daemon" -f "$SLURM_CONF" "$@" </dev/null >>"$directory/log/$daemon.out" 2>&1; }
case $daemon in
    mariadbd) start_database; exit ;;
    slurmdbd) start_accounting "$@"; exit ;;
    slurmctld) start "$@"; exit ;;
esac
for node in ${nodes:?}; do
    start -N "$node" "$@"
done
