# shellcheck shell=bash
# What run.sbatch and ablate.sbatch do on a job's first node: start Ray on all nodes, run the command there, end Ray, and say how
# it went. Sourced by them, from the folder the job was submitted in.
set -euo pipefail

: "${SIMLAP_BIN:=$PWD/.venv/bin}" # the environment's, on a file system that all nodes see
: "${SIMLAP_LOGS:=$PWD/slurm}"    # a folder per job is made here
: "${SIMLAP_RESTARTS:=20}"        # a job whose time limit is too short to get on would else come back for ever
: "${SIMLAP_GRACE_S:=80}"          # for saving, once asked; what is left of the 120 s ends Ray
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cluster/slurm/ray.sh
. "$HERE/ray.sh"

# `launch run EXPERIMENT ...`: simlap with these words on the job's nodes. Does not return.
launch() {
    : "${SLURM_JOB_ID:?is not set: submit this file with sbatch, from the root of the checkout}"
    export SIMLAP_BIN SIMLAP_SCRATCH SIMLAP_CACHE SIMLAP_TRIES SIMLAP_START_S SIMLAP_OBJECTS_MB SIMLAP_POLL_S
    RESTART=${SLURM_RESTART_COUNT:-0}
    FOLDER='' ASKED='' VERDICT=failed
    STEPS=()
    # a step that asks for CPUs by itself would get those only, and be bound to them
    unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_NTASKS_PER_NODE
    unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE # srun refuses more than one way to say it
    trap 'ask requeue' USR1
    trap 'ask end' TERM INT
    trap end_nodes EXIT

    check_words "$@"
    mkdir -p "$SIMLAP_LOGS"
    SIMLAP_LOGS=$(cd "$SIMLAP_LOGS" && pwd)
    JOB_FOLDER=$SIMLAP_LOGS/$SLURM_JOB_ID
    FOLDER=$JOB_FOLDER/$RESTART
    (umask 077 && mkdir -p "$FOLDER")
    rm -f "$JOB_FOLDER/SUCCEEDED" "$FOLDER"/{stop,address,up-*}
    make_token "$FOLDER/token"
    use_token "$FOLDER"
    scratch_folder "$SLURM_JOB_ID" >/dev/null
    list_nodes
    check_shared "$@"

    local code=0
    start_nodes || code=$?
    if [ "$code" = 0 ] && [ -z "$ASKED" ]; then
        drive "$@" || code=$?
    elif [ -n "$ASKED" ]; then
        code=130
    fi
    conclude "$code"
}

# Slurm asks: before the time limit (USR1, `#SBATCH --signal`), or when it takes the nodes away (TERM). `drive` tells the command.
ask() { # requeue|end
    [ -z "$ASKED" ] || return 0
    ASKED=$1
    say "Slurm asks to $1: saving"
}

# Sleeping that a signal ends at once.
pause() {
    sleep "$SIMLAP_POLL_S" &
    wait "$!" || true
}

check_words() {
    local word
    for word in "$@"; do
        case $word in
            --address | --address=* | --detach)
                complain "${word%%=*}: the job starts a cluster of its own and waits for its end; leave it out"
                exit 2
                ;;
        esac
    done
    for word in simlap ray python; do
        if [ ! -x "$SIMLAP_BIN/$word" ]; then
            complain "SIMLAP_BIN: there is no $word in it (got '$SIMLAP_BIN'): submit from the root of the checkout after" \
                "\`make env\`, or name the bin folder of the environment"
            exit 2
        fi
    done
}

# The job's nodes, that of this script first: the driver and Ray's head are there.
list_nodes() {
    local names node
    names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    NODES=("${SLURMD_NODENAME:?is set by Slurm}")
    for node in $names; do
        if [ "$node" != "$SLURMD_NODENAME" ]; then NODES+=("$node"); fi
    done
}

# Where the runs are to be kept: the last --storage among the words, or simlap's default.
storage_of() {
    local found=./runs
    while (($#)); do
        case $1 in
            --storage=*) found=${1#*=} ;;
            --storage)
                found=${2:-}
                shift
                ;;
        esac
        shift
    done
    printf '%s\n' "$found"
}

# Every node must see what the first one writes: to the job's folder, and to the storage where that is a folder.
check_shared() {
    local storage folder node
    storage=$(storage_of "$@")
    local folders=("$FOLDER")
    case $storage in
        file://*) folders+=("${storage#file://}") ;;
        *://*) ;;
        *) folders+=("$storage") ;;
    esac
    for folder in "${folders[@]}"; do
        mkdir -p "$folder"
        printf '%s\n' "$SLURM_JOB_ID.$RESTART" >"$folder/.shared-$SLURM_JOB_ID"
        for node in "${NODES[@]:1}"; do
            # shellcheck disable=SC2016  # the node's shell is to expand it
            if ! on_node "$node" bash -c 'for n in 1 2 3 4 5; do [ "$(cat "$1" 2>/dev/null)" != "$2" ] || exit 0; sleep 1; done; exit 1' \
                _ "$folder/.shared-$SLURM_JOB_ID" "$SLURM_JOB_ID.$RESTART"; then
                rm -f "$folder/.shared-$SLURM_JOB_ID"
                if [ "$folder" = "$FOLDER" ]; then
                    complain "node $node does not see $folder, where the nodes meet: submit from a folder on a file system that" \
                        "all nodes share (NFS, Lustre, ...), or name one in SIMLAP_LOGS"
                else
                    complain "--storage: must be on a file system that all nodes share (NFS, Lustre, ...; or s3://...):" \
                        "node $node does not see what ${NODES[0]} wrote there (got '$storage')"
                fi
                exit 2
            fi
        done
        rm -f "$folder/.shared-$SLURM_JOB_ID"
    done
}

# One task on a node, which may use all that the job has there. Slurm ends it with the job.
srun_options=(--overlap --export=ALL --mem=0 --cpu-bind=none --nodes=1 --ntasks=1)

on_node() { # NODE COMMAND...
    local node=$1
    shift
    srun "${srun_options[@]}" "--nodelist=$node" "$@" </dev/null
}

# Node after node: raylets that start side by side on a loaded machine take too long, and die of it.
start_nodes() {
    local number peer=127.0.0.1 began
    if ((${#NODES[@]} > 1)); then peer=$(node_address "${NODES[1]}"); fi
    say "job $SLURM_JOB_ID, start $RESTART, on ${NODES[*]}; everything about it is in $FOLDER"
    start_node 0 "$peer"
    wait_up 0 || return
    peer=$(<"$FOLDER/address")
    for ((number = 1; number < ${#NODES[@]}; number++)); do
        start_node "$number" "${peer%:*}"
        began=$SECONDS
        while [ ! -e "$FOLDER/up-$number" ] && ((SECONDS - began < SIMLAP_STAGGER_S)) && kill -0 "${STEPS[number]}" 2>/dev/null; do
            pause
        done
    done
    for ((number = 1; number < ${#NODES[@]}; number++)); do wait_up "$number" || return; done
    say "Ray is up on ${#NODES[@]} node(s), at $peer"
}

start_node() { # NUMBER PEER
    srun "${srun_options[@]}" "--nodelist=${NODES[$1]}" "--output=$FOLDER/node-$1.log" \
        bash "$HERE/node.sh" "$FOLDER" "$1" "$2" </dev/null &
    STEPS[$1]=$!
}

# Until the node is up. Fails where its step has ended, or somebody asks to end. How long a try may take, the node knows.
wait_up() { # NUMBER
    while [ ! -e "$FOLDER/up-$1" ]; do
        [ -z "$ASKED" ] || return 1
        if ! kill -0 "${STEPS[$1]}" 2>/dev/null; then
            complain "Ray does not start on ${NODES[$1]} (tried $SIMLAP_TRIES times). The end of $FOLDER/node-$1.log:"
            tail -n 5 "$FOLDER/node-$1.log" >&2 || true
            return 1
        fi
        pause
    done
}

# The command, here. Its exit code; 1 where the head is lost.
drive() {
    local code=0 words=("$@") head_lost='' told='' driver
    if ((RESTART > 0)) && [ "$1" = run ]; then words+=(--resume); fi
    # a folder of this job's: another user's /tmp/simlap-... could not be written to
    export TMPDIR
    TMPDIR=$(scratch_folder "$SLURM_JOB_ID")
    export SIMLAP_CACHE=${SIMLAP_CACHE:-$SIMLAP_SCRATCH/simlap-cache-$UID} OMP_NUM_THREADS=1
    unset PYTHONDONTWRITEBYTECODE
    say "output: $FOLDER/driver.log"
    set -m # else it would be started with SIGINT ignored, as a shell's background jobs are
    "$SIMLAP_BIN/simlap" "${words[@]}" "--address=$(<"$FOLDER/address")" >>"$FOLDER/driver.log" 2>&1 </dev/null &
    driver=$!
    set +m
    while kill -0 "$driver" 2>/dev/null; do
        if [ -z "$head_lost" ] && ! kill -0 "${STEPS[0]}" 2>/dev/null; then
            head_lost=$SECONDS
            complain "Ray's head has ended; see $FOLDER/node-0.log"
        fi
        # as Ctrl-C, once: after a second one it would leave without saving
        if [ -n "$ASKED" ] && [ -z "$told" ]; then
            told=$SECONDS
            kill -INT "$driver" 2>/dev/null || true
        elif [ -n "$told" ] && ((SECONDS - told > SIMLAP_GRACE_S)); then
            complain "simlap has not stopped within $SIMLAP_GRACE_S s (SIMLAP_GRACE_S): killed; its newest checkpoint holds"
            kill -KILL -- "-$driver" 2>/dev/null || true
        fi
        # it may find out by itself, and say so; without the head it can save nothing any more
        if [ -n "$head_lost" ] && ((SECONDS - head_lost > 60)); then kill -KILL -- "-$driver" 2>/dev/null || true; fi
        pause
    done
    wait "$driver" || code=$?
    tail -n 60 "$FOLDER/driver.log"
    return "$code"
}

# The marker, or the next start; and the exit code of it all.
conclude() { # CODE
    local code=$1
    if [ "$code" = 0 ]; then
        VERDICT=ended
        publish "$JOB_FOLDER/SUCCEEDED" "job $SLURM_JOB_ID, start $RESTART, $(date -u +%Y-%m-%dT%H:%M:%SZ)"
        say "done: $JOB_FOLDER/SUCCEEDED"
    elif [ "$ASKED" = requeue ] && { [ "$code" = 130 ] || [ "$code" = 75 ] || [ "$code" = 137 ]; }; then
        if ((RESTART >= SIMLAP_RESTARTS)); then
            complain "stopped before the time limit for the $((RESTART + 1))th time (SIMLAP_RESTARTS=$SIMLAP_RESTARTS): not queued again." \
                "Is the limit too short for an epoch?"
        else
            VERDICT=ended
            end_nodes # before Slurm ends this script
            say "stopped before the time limit; queued again"
            scontrol requeue "$SLURM_JOB_ID" || complain "Slurm does not queue the job again; submit the same command once more" \
                "(\`simlap run\` needs --resume then)"
        fi
    else
        say "ended with exit code $code; there is no $JOB_FOLDER/SUCCEEDED"
    fi
    exit "$code"
}

# Tell the nodes to end, and wait for them half a minute; whatever is left then is Slurm's.
end_nodes() {
    trap - EXIT
    [ -d "$FOLDER" ] || return 0
    publish "$FOLDER/stop" "$VERDICT"
    local step began=$SECONDS
    for step in "${STEPS[@]}"; do
        while kill -0 "$step" 2>/dev/null && ((SECONDS - began < 30)); do pause; done
        kill -TERM "$step" 2>/dev/null || true
    done
    rm -f "$FOLDER/token"
}
