#!/usr/bin/env bash
# A Slurm of one node, this machine, for tests: as root, without systemd, accounting or cgroups.
#
#     bash tests/one_node_slurm.sh start DIR    # then: export SLURM_CONF=DIR/slurm.conf
#     bash tests/one_node_slurm.sh stop DIR
#
# Needs Debian's packages slurm-wlm and munge. Jobs of the partition `urgent` preempt those of `debug`, which are cancelled.
set -euo pipefail
action=$1 dir=$2

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

write_conf() {
    local host cpus memory
    host=$(hostname -s) cpus=$(getconf _NPROCESSORS_ONLN) memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job may start again when its old credential has expired.
AuthInfo=cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=1000000
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=5
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
NodeName=$host CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

start() {
    mkdir -p "$dir/spool" "$dir/state" "$dir/log"
    if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
        mkdir -p /run/munge
        chown munge:munge /run/munge
        runuser -u munge -- /usr/sbin/munged
        cp /run/munge/munged.pid "$dir/munged.pid"
    fi
    write_conf
    export SLURM_CONF=$dir/slurm.conf
    slurmctld
    slurmd
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --partition=debug --format=%T 2>/dev/null)" = idle ]; then return; fi
        sleep 0.5
    done
    cat "$dir"/log/*.log >&2
    echo 'the node is not idle after 30 s' >&2
    return 1
}

stop() {
    local name
    for name in slurmd slurmctld munged; do
        if [ -f "$dir/$name.pid" ]; then kill "$(cat "$dir/$name.pid")" 2>/dev/null || true; fi
    done
}

"$action"
