#!/usr/bin/env bash
# A real Slurm cluster for tests, private, with a munge of its own, of one node or, with NODES=2, of so many. As root.
# With ACCOUNTING=yes a slurmdbd on a MariaDB of its own keeps its books: what `sacct` tells of.
#
#   tests/parts/slurm-up.sh NAME DIR [NETNS ADDRESS]     everything in DIR; in the network namespace, if one is named
#
# The nodes are called NAME, NAME-2, NAME-3 …; all are daemons of this machine with ports of their own.
# When it returns the nodes are idle. DIR/slurm.conf is what SLURM_CONF has to name, from whichever namespace; jobs run in the
# one named. DIR/log/jobcomp.txt has a line for each job that has ended. Nothing survives tests/parts/slurm-down.sh DIR.
# Memory is limited by control groups, where jobs can have them (version 1, as a hybrid machine has).
set -euo pipefail

[ $# -eq 2 ] || [ $# -eq 4 ] || { echo "usage: $0 NAME DIR [NETNS ADDRESS]" >&2; exit 2; }
name=$1 namespace=${3:-} address=${4:-127.0.0.1} count=${NODES:-1} accounting=${ACCOUNTING:-no}
mkdir -p "$2"
directory=$(cd "$2" && pwd)
parts=$(cd "$(dirname "$0")" && pwd)

for program in slurmctld slurmd munged sbatch; do
    command -v $program >/dev/null ||
        { echo "$0: $program is missing: apt-get install slurm-wlm slurm-wlm-basic-plugins munge" >&2; exit 1; }
done
if [ "$accounting" = yes ]; then
    for program in slurmdbd mariadbd mariadb-install-db sacct; do
        command -v $program >/dev/null || { echo "$0: $program is missing: apt-get install slurmdbd mariadb-server" >&2; exit 1; }
    done
fi
[ "$(id -u)" = 0 ] || { echo "$0: a node's daemon runs as root" >&2; exit 1; }
if [ -e "$directory/slurm.conf" ]; then
    echo "$0: $directory was used before; run slurm-down.sh first" >&2
    exit 2
fi
if [ ${#directory} -gt 80 ]; then
    echo "$0: $directory is too long a path for sockets" >&2
    exit 2
fi

in_namespace() {
    # `ip netns exec` would hide the control groups.
    if [ -n "$namespace" ]; then nsenter --net="/run/netns/$namespace" "$@"; else "$@"; fi
}

mkdir -p "$directory"/{spool,state,log,run,munge}
chmod 755 "$directory" "$directory/munge"
dd if=/dev/urandom bs=1 count=1024 of="$directory/munge/key" status=none
chmod 600 "$directory/munge/key"
in_namespace munged --key-file="$directory/munge/key" --socket="$directory/munge/sock" --pid-file="$directory/munge/pid" \
    --log-file="$directory/munge/log" --seed-file="$directory/munge/seed" --num-threads=2 --force \
    </dev/null >"$directory/log/munged.out" 2>&1

limits=linux
if [ -d /sys/fs/cgroup/memory ] && mkdir "/sys/fs/cgroup/memory/slurm-try-$$" 2>/dev/null; then
    rmdir "/sys/fs/cgroup/memory/slurm-try-$$"
    limits=cgroup
fi
cat >"$directory/cgroup.conf" <<CONFIG
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=yes
ConstrainRAMSpace=yes
CONFIG
nodes=("$name") port=0
for more in $(seq 2 "$count"); do nodes+=("$name-$more"); done
plugins=$(find /usr/lib /usr/lib64 -maxdepth 2 -type d \( -name slurm-wlm -o -name slurm \) 2>/dev/null | head -n 1)
cat >"$directory/slurm.conf" <<CONFIG
ClusterName=$name
SlurmctldHost=$(hostname -s)($address)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge/sock
CryptoType=crypto/munge
SlurmctldPort=6817
SlurmdPort=6818
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool/%n
SlurmctldPidFile=$directory/run/slurmctld.pid
SlurmdPidFile=$directory/run/%n.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/%n.log
ProctrackType=proctrack/$([ $limits = cgroup ] && echo cgroup || echo linuxproc)
TaskPlugin=task/$([ $limits = cgroup ] && echo cgroup || echo none)
MpiDefault=none
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
$(if [ "$accounting" = yes ]; then
    echo "AccountingStorageType=accounting_storage/slurmdbd"
    echo "AccountingStorageHost=$address"
    echo "AccountingStoragePort=6819"
    echo "AccountingStoragePass=$directory/munge/sock"
else
    echo "AccountingStorageType=accounting_storage/none"
fi)
JobCompType=jobcomp/filetxt
JobCompLoc=$directory/log/jobcomp.txt
JobAcctGatherType=jobacct_gather/$limits
JobAcctGatherFrequency=1
KillWait=2
OverTimeLimit=0
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
PluginDir=$plugins
$(for node in "${nodes[@]}"; do
    echo "NodeName=$node NodeAddr=$address NodeHostname=$node Port=$((6818 + port++)) CPUs=16 RealMemory=8000 State=UNKNOWN"
done)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=100 State=UP
PartitionName=small Nodes=ALL MaxTime=5 MaxMemPerNode=64 State=UP
CONFIG
cat >"$directory/cluster" <<CLUSTER
name=$name
nodes="${nodes[*]}"
namespace=$namespace
CLUSTER

give_up() {
    echo "$0: $1; the logs are in $directory/log" >&2
    tail -n 20 "$directory"/log/*.out "$directory"/log/*.log >&2 || true
    bash "$parts/slurm-down.sh" --keep "$directory"
    exit 1
}
if [ "$accounting" = yes ]; then
    database_port=$(in_namespace python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    echo "database_port=$database_port" >>"$directory/cluster"
    cat >"$directory/slurmdbd.conf" <<CONFIG
AuthType=auth/munge
AuthInfo=$directory/munge/sock
DbdHost=$(hostname -s)
DbdAddr=$address
DbdPort=6819
SlurmUser=root
LogFile=$directory/log/slurmdbd.log
PidFile=$directory/run/slurmdbd.pid
PluginDir=$plugins
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$database_port
StorageUser=slurm
StorageLoc=slurm_acct_db
CONFIG
    chmod 600 "$directory/slurmdbd.conf"
    bash "$parts/slurm-daemon.sh" "$directory" mariadbd || give_up "MariaDB does not start"
    bash "$parts/slurm-daemon.sh" "$directory" slurmdbd || give_up "slurmdbd does not start"
fi
bash "$parts/slurm-daemon.sh" "$directory" slurmctld -c || give_up "the controller does not start"
bash "$parts/slurm-daemon.sh" "$directory" slurmd || give_up "a node does not start"
for _ in $(seq 200); do
    SLURM_CONF=$directory/slurm.conf timeout 5 sinfo -h -N -p main -o %T 2>/dev/null | grep -cx idle | grep -qx "$count" && {
        echo "the Slurm cluster $name is ready: SLURM_CONF=$directory/slurm.conf"
        exit 0
    }
    sleep 0.05
done
give_up "the nodes do not come up"
