#!/usr/bin/env bash
# Slurm with two nodes, n1 and n2, on this machine, to try the scripts on. As root, with Debian's slurm-wlm and munge:
#
#   cluster/slurm/one-machine.sh up FOLDER     start it; prints what to put into the environment
#   cluster/slurm/one-machine.sh down FOLDER   end it
#
# Not for work: the nodes share the machine's processors, and nothing is kept apart.
set -euo pipefail

fail() {
    printf 'one-machine: error: %s\n' "$*" >&2
    exit 2
}

cpus=${CPUS:-1} # of a node
first_port=${PORT:-17002}

up() { # FOLDER
    local folder=$1 node program
    [ "$(id -u)" = 0 ] || fail "needs root: slurmd starts processes of others"
    for program in munged slurmctld slurmd sinfo; do
        command -v "$program" >/dev/null || fail "$program is missing (Debian: slurm-wlm and munge)"
    done
    mkdir -p "$folder"/{state,n1,n2,munge}
    chmod 711 "$folder"
    chmod 700 "$folder/munge"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    cat >"$folder/slurm.conf" <<CONF
ClusterName=one-machine
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$first_port
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# a job that is queued again starts no earlier than its old credentials have ended
AuthInfo=socket=$folder/munge/socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MpiDefault=none
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((first_port + 1)) CPUs=$cpus
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((first_port + 2)) CPUs=$cpus
PartitionName=all Nodes=n1,n2 Default=YES State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    slurmctld -f "$SLURM_CONF"
    for node in n1 n2; do slurmd -f "$SLURM_CONF" -N "$node"; done
    for _ in $(seq 60); do
        if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 2 ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    sinfo -N >&2 || true
    down "$folder"
    fail "the nodes are not up after 30 s; see the logs in $folder"
}

down() { # FOLDER
    local file pid
    [ -e "$1/slurm.conf" ] || fail "$1: nothing was started there"
    SLURM_CONF=$1/slurm.conf scancel --full --state=running --user=root 2>/dev/null || true
    for file in "$1"/n1.pid "$1"/n2.pid "$1"/slurmctld.pid "$1"/munge/pid; do
        [ -s "$file" ] || continue
        pid=$(<"$file")
        kill -TERM "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        rm -f "$file"
    done
}

[ $# = 2 ] || fail "usage: $0 up|down FOLDER"
mkdir -p "$2"
folder=$(cd "$2" && pwd)
case $1 in
    up) up "$folder" ;;
    down) down "$folder" ;;
    *) fail "usage: $0 up|down FOLDER" ;;
esac
