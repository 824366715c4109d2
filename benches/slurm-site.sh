# Sourced at the top of the repository, as root: a Slurm cluster of its own, and `start_site` for a control plane with a site on it,
# once what its agent reads stands in $scratch/agent.toml. All of it goes with the script.
. benches/atoll.sh
scratch=$(mktemp -d /tmp/atoll-slurm-bench.XXXXXX)
chmod 755 "$scratch"
server=
agent=
clean_up() {
    trap - EXIT
    [ -z "$agent" ] || kill "$agent" 2>/dev/null
    [ -z "$server" ] || kill "$server" 2>/dev/null
    wait
    bash tests/parts/slurm-down.sh "$scratch/slurm"
    rm -rf "$scratch"
}
trap clean_up EXIT
bash tests/parts/slurm-up.sh bench "$scratch/slurm" >&2
export SLURM_CONF=$scratch/slurm/slurm.conf

start_site() {
    local token
    "$atoll" server --data-dir "$scratch/server" --ready-file "$scratch/ready" --bucket "$scratch/bucket" \
        --listen 127.0.0.1:0 --agent-listen 127.0.0.1:0 >"$scratch/server.log" 2>&1 &
    server=$!
    for _ in $(seq 200); do [ ! -s "$scratch/ready" ] || break; sleep 0.1; done
    read -r ATOLL_URL ATOLL_TOKEN < <(python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); print(d["url"], d["token"])' "$scratch/ready")
    export ATOLL_URL ATOLL_TOKEN
    token=$("$atoll" site token create hpc --ttl 10m --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')
    "$atoll" agent join "$token" --data-dir "$scratch/agent" --config "$scratch/agent.toml" >/dev/null 2>&1
    "$atoll" agent run --data-dir "$scratch/agent" --config "$scratch/agent.toml" >"$scratch/agent.log" 2>&1 &
    agent=$!
}
