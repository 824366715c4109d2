#!/usr/bin/env bash
# A real S3 server for tests: one Ceph monitor, one object store in memory, and radosgw.
#
#   tests/parts/ceph-up.sh DIR [PORT]      everything in DIR; PORT 0 or none takes a free one
#
# When it returns, S3 answers and has an empty bucket; DIR/env holds the variables that say where. Nothing survives
# tests/parts/ceph-down.sh DIR. ATOLL_TEST_S3_BYTES says how much it holds (2 GiB, in memory). Ordinary users can run it; it needs ceph-mon, ceph-osd, radosgw, ceph-common and curl.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 DIR [PORT]" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
parts=$(cd "$(dirname "$0")" && pwd)
access_key=ATOLLTESTS
secret_key=atoll-tests-secret
bucket=atoll-tests

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

port=${2:-0}
[ "$port" != 0 ] || port=$(free_port)
mon_port=$(free_port)

# Unix sockets stand in the directory, and their paths are short.
if [ ${#directory} -gt 80 ]; then
    echo "$0: $directory is too long a path for sockets" >&2
    exit 2
fi
if [ -e "$directory/ceph.conf" ]; then
    echo "$0: $directory was used before; run ceph-down.sh first" >&2
    exit 2
fi
mkdir -p "$directory"/{mon,osd,rgw,log}
log=$directory/log/start

fsid=$(cat /proc/sys/kernel/random/uuid)
osd_id=$(cat /proc/sys/kernel/random/uuid)
cat >"$directory/ceph.conf" <<CONFIG
[global]
fsid = $fsid
mon_initial_members = a
mon_host = v1:127.0.0.1:$mon_port
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = ${ATOLL_TEST_S3_BYTES:-2147483648}
osd_crush_update_on_start = false
osd_class_update_on_start = false
run_dir = $directory
log_file = $directory/log/\$name.log
admin_socket = $directory/\$name.asok
pid_file = $directory/\$name.pid
[mon.a]
mon_data = $directory/mon
# It would not start on a large disk of which little is free, though it needs next to nothing.
mon_data_avail_crit = 0
mon_data_avail_warn = 0
[osd.0]
osd_data = $directory/osd
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
[client.rgw.a]
rgw_data = $directory/rgw
rgw_frontends = beast endpoint=127.0.0.1:$port
rgw_dns_name = localhost
rgw_enable_apis = s3
rgw_thread_pool_size = 32
CONFIG

give_up() {
    echo "$0: $1; the logs are in $directory/log" >&2
    tail -n 20 "$log" >&2 || true
    # The daemons say why in logs of their own.
    grep -h ' -1 ' "$directory"/log/*.log 2>/dev/null | tail -n 20 >&2 || true
    bash "$parts/ceph-down.sh" --keep "$directory"
    exit 1
}
step() {
    timeout 60 "$@" </dev/null >>"$log" 2>&1 || give_up "failed: $*"
}

configuration=$directory/ceph.conf
map=$directory/monmap
step monmaptool --create --addv a "[v1:127.0.0.1:$mon_port]" --fsid "$fsid" "$map"
step ceph-mon --mkfs -i a --monmap "$map" -c "$configuration"
step ceph-mon -i a -c "$configuration"
# A monitor that has only just started may refuse everything; asking twice for the same one makes one.
deadline=$((SECONDS + 60))
until timeout 60 ceph -c "$configuration" osd create "$osd_id" </dev/null >>"$log" 2>&1; do
    [ $SECONDS -lt $deadline ] || give_up "the monitor does not answer"
    sleep 0.5
done
step ceph-osd -i 0 --mkfs --monmap "$map" --fsid "$fsid" --osd-uuid "$osd_id" -c "$configuration"
step ceph -c "$configuration" osd crush add osd.0 1.0 root=default host=atoll
step ceph-osd -i 0 -c "$configuration"
step radosgw -n client.rgw.a -c "$configuration"

deadline=$((SECONDS + 120))
until curl -s -o /dev/null "http://127.0.0.1:$port/"; do
    [ $SECONDS -lt $deadline ] || give_up "radosgw does not answer"
    sleep 0.1
done
step radosgw-admin -c "$configuration" user create --uid=atoll --display-name=atoll \
    --access-key="$access_key" --secret-key="$secret_key"
# The first bucket makes pools, and may be refused while they are made.
until python3 "$parts/make_bucket.py" "http://127.0.0.1:$port" "$bucket" "$access_key" "$secret_key" >>"$log" 2>&1; do
    [ $SECONDS -lt $deadline ] || give_up "no bucket can be made"
    sleep 0.2
done

cat >"$directory/env" <<VARIABLES
export ATOLL_TEST_S3=s3://$bucket
export ATOLL_TEST_S3_DIRECTORY=$directory
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_ACCESS_KEY_ID=$access_key
export AWS_SECRET_ACCESS_KEY=$secret_key
export AWS_REGION=us-east-1
export AWS_ALLOW_HTTP=true
VARIABLES
echo "S3 is at http://127.0.0.1:$port, bucket $bucket; the variables are in $directory/env"
