#!/bin/sh
# Where the time goes: `benches/profile.sh NAME ARGUMENTS…` runs `atoll bench ARGUMENTS…` under perf on all cores, and draws
# docs/pictures/NAME.svg. Wants perf (linux-perf) and the right to use it; builds the binary, unless ATOLL
# names one.
set -eu
name=$1
shift
cd "$(dirname "$0")/.."
. benches/atoll.sh
tools=$PWD/target/tools
[ -x "$tools/bin/inferno-flamegraph" ] ||
    cargo install --quiet --locked --root "$tools" --no-default-features --features cli inferno@0.12.6
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
perf record -q -a -F 997 --call-graph dwarf,4096 -o "$folder/data" -- "$atoll" bench "$@" --json
# What else ran on the machine, and the bare loop that a bench measures beside, do not belong to it.
perf script --no-inline -i "$folder/data" 2>/dev/null | "$tools/bin/inferno-collapse-perf" 2>/dev/null |
    grep -E '^(core|journal|atoll|tokio-rt-worker|sled)' | grep -v 'bench::machine' |
    "$tools/bin/inferno-flamegraph" --minwidth 0.3 --title "atoll bench $*" >"docs/pictures/$name.svg"
