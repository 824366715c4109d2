#!/usr/bin/env bash
# Many small files by way of an S3 server: Atoll beside `rclone copy` with its defaults, on this machine, in turns.
#
#   benches/rclone.sh [ROUNDS] [FILES] [BYTES]        (3 rounds of 10,000 files of 11,264 bytes by default)
#
# Starts a real S3 server (tests/parts/ceph-up.sh) and installs rclone if it is not there. Both begin with the files on the
# disk of one side and end when the other side has all of them: rclone copies them into the bucket and out of it, Atoll
# hands a directory from one site to another by way of the bucket. Run it on a machine that does nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
files=${2:-10000}
bytes=${3:-11264}
scratch=$(mktemp -d /var/tmp/atoll-rclone.XXXXXX)
clean_up() {
    trap - EXIT
    bash tests/parts/ceph-down.sh "$scratch/s3"
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

if ! command -v rclone >/dev/null; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo='sudo -n'
    $sudo apt-get install -y -qq rclone >&2
fi
. benches/atoll.sh
bash tests/parts/ceph-up.sh "$scratch/s3" >&2
. "$scratch/s3/env"

# rclone is told where S3 is, and nothing else.
export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_S3_TYPE=s3 RCLONE_CONFIG_S3_PROVIDER=Ceph
export RCLONE_CONFIG_S3_ENDPOINT=$AWS_ENDPOINT_URL RCLONE_CONFIG_S3_ENV_AUTH=true
# Older versions refuse to start with a bundle of certificates, which nobody needs on loopback.
unset AWS_CA_BUNDLE
bucket=${ATOLL_TEST_S3#s3://}

seconds_of() { python3 -c 'import sys, time, subprocess
began = time.monotonic()
for command in " ".join(sys.argv[1:]).split(" then "):
    subprocess.run(command.split(), check=True, stdout=sys.stderr)
print(time.monotonic() - began)' "$@"; }

mkdir "$scratch/made"
head -c $((files * bytes)) /dev/urandom | split -b "$bytes" -a 6 - "$scratch/made/"
for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    rm -rf "$scratch/got"
    rclone purge "s3:$bucket/rclone" >&2 2>/dev/null || true
    up=$(seconds_of rclone copy "$scratch/made" "s3:$bucket/rclone")
    down=$(seconds_of rclone copy "s3:$bucket/rclone" "$scratch/got")
    [ "$(find "$scratch/got" -type f | wc -l)" = "$files" ]
    "$atoll" bench transfer --size "$((files * bytes))" --files "$files" --route bucket --bucket "$ATOLL_TEST_S3/atoll" \
        --data-dir "$scratch/atoll" --json >"$scratch/atoll.json"
    python3 - "$up" "$down" "$scratch/atoll.json" <<'PYTHON'
import json, sys
up, down = map(float, sys.argv[1:3])
atoll = json.load(open(sys.argv[3]))["results"]["seconds"]
print(json.dumps({"rclone_up": up, "rclone_down": down, "atoll": atoll, "times_as_fast": (up + down) / atoll}))
PYTHON
    rm -rf "$scratch/atoll"
done
