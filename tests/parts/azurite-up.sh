#!/usr/bin/env bash
# Azurite, the emulator of Azure Blob Storage, for tests.
#
#   tests/parts/azurite-up.sh DIR [PORT]      everything in DIR; PORT 0 or none takes a free one
#   tests/parts/azurite-up.sh --install       only what is installed once and kept: the emulator itself
#
# When it returns, it answers and has an empty container; DIR/env holds the variables that say where. What it holds is in
# memory: nothing survives tests/parts/azurite-down.sh DIR. It is installed from npm into ATOLL_TEST_AZURITE (`azurite` in
# Cargo's target directory), unless it is there. Ordinary users can run it; it needs Node.js with npm, python3 and curl.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 DIR [PORT] | --install" >&2; exit 2; }
version=3.35.0
parts=$(cd "$(dirname "$0")" && pwd)
installed=${ATOLL_TEST_AZURITE:-${CARGO_TARGET_DIR:-$parts/../../target}/azurite}/$version

install() {
    [ ! -e "$installed/whole" ] || return 0
    command -v npm >/dev/null || { echo "$0: npm is missing: apt-get install npm" >&2; exit 1; }
    mkdir -p "$installed"
    # Two that install at once wait for each other.
    (
        flock 9
        [ ! -e "$installed/whole" ] || exit 0
        npm install --prefix "$installed" --no-audit --no-fund --no-save --ignore-scripts --loglevel=error \
            "azurite@$version" >"$installed/log" 2>&1 || { cat "$installed/log" >&2; exit 1; }
        touch "$installed/whole"
    ) 9>"$installed/lock"
}

install
[ "$1" != --install ] || exit 0

mkdir -p "$1"
directory=$(cd "$1" && pwd)
if [ -e "$directory/pid" ]; then
    echo "$0: $directory was used before; run azurite-down.sh first" >&2
    exit 2
fi
port=${2:-0}
[ "$port" != 0 ] ||
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
account=atolltests
container=atoll-tests
key=$(head -c 64 /dev/urandom | base64 -w 0)
url=http://127.0.0.1:$port/$account

give_up() {
    echo "$0: $1; the log is $directory/log" >&2
    tail -n 20 "$directory"/log* >&2 || true
    bash "$parts/azurite-down.sh" --keep "$directory"
    exit 1
}

AZURITE_ACCOUNTS="$account:$key" setsid node "$installed/node_modules/azurite/dist/src/blob/main.js" \
    --blobHost 127.0.0.1 --blobPort "$port" --inMemoryPersistence --skipApiVersionCheck --silent --disableTelemetry \
    </dev/null >"$directory/log" 2>&1 &
echo $! >"$directory/pid"

deadline=$((SECONDS + 60))
until python3 "$parts/make_container.py" "$url" "$container" "$account" "$key" >"$directory/log.container" 2>&1; do
    [ $SECONDS -lt $deadline ] || give_up "no container can be made"
    kill -0 "$(cat "$directory/pid")" 2>/dev/null || give_up "Azurite does not start"
    sleep 0.1
done

cat >"$directory/env" <<VARIABLES
export ATOLL_TEST_AZURE=az://$container
export AZURE_STORAGE_CONNECTION_STRING='AccountName=$account;AccountKey=$key;BlobEndpoint=$url'
VARIABLES
echo "Azure Blob Storage is at $url, container $container; the variables are in $directory/env"
