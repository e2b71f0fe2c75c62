# shellcheck shell=bash
# Ray inside one Slurm job: its ports, folders, token, nodes and end. Sourced by job.sh (on the first node) and node.sh (on each).
#
# Nothing here says `ray stop`: that ends every Ray of the user on a node, other jobs' too. A node ends its own processes, and
# Slurm ends what is left of a step.
#
# A job's folder, shared by its nodes, is also how they speak to each other:
#   address      of the head, once it answers           up-<n>   node n is part of the cluster
#   stop         the nodes are to end, and why          token    what admits to the cluster (0600)
set -euo pipefail

: "${SIMLAP_SCRATCH:=/tmp}"   # on each node's own disk; the paths of Ray's sockets are below it
: "${SIMLAP_TRIES:=5}"        # of starting a node
: "${SIMLAP_START_S:=120}"    # how long one try may take
: "${SIMLAP_STAGGER_S:=5}"    # the next node starts when the one before is up, or so much later
: "${SIMLAP_OBJECTS_MB:=200}" # Ray's object store on a node: little goes through it (its own default: 30 % of the whole machine)
: "${SIMLAP_POLL_S:=1}"
readonly SOCKET_PATH_MAX=107  # of sockaddr_un
readonly SOCKET_NAME=69       # at most, of what is added: /r/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store.<n>
readonly FIRST_PORT=20000     # up to 31999: below what Linux gives to outgoing connections
readonly BLOCKS=750           # of 16 ports, one block for a job

say() { printf 'simlap: %s\n' "$*"; }

complain() { printf 'simlap: error: %s\n' "$*" >&2; }

# The head's port. Two jobs on a node have ids that differ by less than BLOCKS; another start of the same job gets another block,
# another try another port: what a killed head has left takes half a minute to become free. The port after it is Ray Client's.
head_port() { # JOB RESTART TRY
    printf '%s\n' $((FIRST_PORT + 16 * (($1 + 37 * $2) % BLOCKS) + 2 * ($3 % 8)))
}

port_is_taken() { # ADDRESS PORT
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# A folder that is ours alone, made if need be. Others may write to where it lies: what is there already must be ours.
private_folder() { # PATH
    mkdir -m 700 "$1" 2>/dev/null || true
    if [ -L "$1" ] || [ ! -d "$1" ] || [ ! -O "$1" ]; then
        complain "$1 cannot be made on $(hostname), or is not ours; SIMLAP_SCRATCH names another place on the node's own disk"
        return 1
    fi
    chmod 700 "$1"
}

# Where Ray keeps sockets and logs on a node. The same path on all nodes: Ray Train makes the driver's on the others.
scratch_folder() { # JOB
    local path=$SIMLAP_SCRATCH/sl-$1
    if ((${#path} + SOCKET_NAME > SOCKET_PATH_MAX)); then
        complain "SIMLAP_SCRATCH: the path is too long for Ray's sockets (got '$SIMLAP_SCRATCH'):" \
            "$path has ${#path} characters, at most $((SOCKET_PATH_MAX - SOCKET_NAME)) fit; name a shorter one"
        return 1
    fi
    printf '%s\n' "$path"
}

make_token() { # FILE
    rm -f "$1"
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$1")
}

# What Ray and its workers read, on the first node and on all others.
use_token() { # FOLDER
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$1/token
}

gpus_here() {
    case ${CUDA_VISIBLE_DEVICES:-} in
        '' | -1 | NoDevFiles) echo 0 ;;
        *) tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . ;;
    esac
}

# This machine's address on the way to another one, and the interface it belongs to. SIMLAP_INTERFACE chooses (ib0, ...).
find_address() { # PEER
    "$SIMLAP_BIN/python" - "$1" "${SIMLAP_INTERFACE:-}" <<'PYTHON'
import socket, sys
import psutil

peer, wanted = sys.argv[1:]
found = {a.address: name for name, all in psutil.net_if_addrs().items() for a in all if a.family == socket.AF_INET}
if wanted:
    ours = [address for address, name in found.items() if name == wanted]
    if not ours:
        valid = ", ".join(sorted(set(found.values())))
        sys.exit(f"simlap: error: SIMLAP_INTERFACE: {socket.gethostname()} has no such interface (got {wanted!r}). Valid: {valid}.")
    print(ours[0], wanted)
else:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing
        address = probe.getsockname()[0]
    print(address, found.get(address, ""))
PYTHON
}

# One value of `scontrol show node`. A node's name need not be known to the resolver; its NodeAddr is.
node_address() { # NODE
    scontrol show node -o "$1" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p'
}

# --- on each node ------------------------------------------------------------------------------------------------------

# Ray on this node until the job's folder says stop, started again where it does not come up or dies. Node 0 is the head, which
# cannot be replaced once others know it.
serve() { # FOLDER NODE PEER
    local folder=$1 node=$2 peer=$3 try rest scratch address interface found
    scratch=$(scratch_folder "$SLURM_JOB_ID")
    private_folder "$scratch"
    if [ -z "${SIMLAP_CACHE:-}" ]; then
        SIMLAP_CACHE=$SIMLAP_SCRATCH/simlap-cache-$UID
        private_folder "$SIMLAP_CACHE"
    fi
    found=$(find_address "$peer")
    read -r address interface <<<"$found"
    mkdir -p "$scratch/node-$node"
    use_token "$folder"
    # gloo and NCCL would ask the resolver for this machine's name, which Debian answers with 127.0.1.1
    if [ -n "$interface" ]; then
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
    fi
    export SIMLAP_CACHE TMPDIR=$scratch
    # it would kill workers when the *machine* runs short of memory, whoever took it; ours is limited by Slurm
    export RAY_memory_monitor_refresh_ms=0
    export RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
    # the head's: a node whose link is cut is noticed after 15 s, not a minute (docs/reliability.md)
    export RAY_health_check_period_ms="${RAY_health_check_period_ms:-1000}"
    export RAY_health_check_timeout_ms="${RAY_health_check_timeout_ms:-4000}"
    export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-3}"
    # as `simlap.run.cluster` sets them where it starts Ray itself
    export RAY_worker_niceness=0 RAY_task_events_report_interval_ms=0 RAY_enable_metrics_collection=0 RAY_event_stats=0
    unset OMP_NUM_THREADS PYTHONDONTWRITEBYTECODE # Ray gives each worker as many threads as it has CPUs

    ENDING=
    trap 'ENDING=1' TERM INT
    for ((try = 0; try < SIMLAP_TRIES; try++)); do
        if serve_once "$folder" "$node" "$try" "$address" "$scratch"; then
            tidy "$folder" "$node" "$scratch"
            return 0
        fi
        [ -z "$ENDING" ] || break
        say "node $node ($(hostname)): Ray ended, try $((try + 1)) of $SIMLAP_TRIES; see $folder/ray-$node.$try.log"
        if [ "$node" = 0 ] && [ -e "$folder/address" ]; then break; fi
        for ((rest = 0; rest <= 5 * try; rest++)); do
            [ -n "$ENDING" ] || [ -e "$folder/stop" ] || sleep "$SIMLAP_POLL_S"
        done
        [ ! -e "$folder/stop" ] || break
    done
    tidy "$folder" "$node" "$scratch"
    return 1
}

# Ray once. Returns 0 where it was told to stop, 1 where it ended by itself or did not come up.
serve_once() { # FOLDER NODE TRY ADDRESS SCRATCH
    local folder=$1 node=$2 try=$3 address=$4 scratch=$5 port ray began up='' log
    log=$folder/ray-$node.$try.log
    # below the scratch folder, which stays ours alone: Ray opens its own to everybody
    local options=(
        "--node-ip-address=$address" "--num-cpus=${SLURM_CPUS_ON_NODE:?is set by Slurm}" "--num-gpus=$(gpus_here)"
        "--temp-dir=$scratch/r" "--object-store-memory=$((SIMLAP_OBJECTS_MB * 1000000))" --disable-usage-stats
        # whichever ports are free: fixed ones are other jobs' too
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0
    )
    if [ "$node" = 0 ]; then
        port=$(head_port "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$try")
        if port_is_taken "$address" "$port"; then
            echo "port $port of $address is taken" >"$log"
            return 1
        fi
        options+=(--head "--port=$port" "--ray-client-server-port=$((port + 1))" --include-dashboard=false)
    else
        options+=("--address=$(<"$folder/address")")
    fi
    set -m # a process group of its own
    "$SIMLAP_BIN/ray" start --block "${options[@]}" >"$log" 2>&1 &
    ray=$!
    set +m
    began=$SECONDS
    while kill -0 "$ray" 2>/dev/null; do
        if [ -n "$ENDING" ] || [ -e "$folder/stop" ]; then
            end_group "$ray"
            [ -z "$ENDING" ]
            return
        fi
        # printed when the node and its agents are known to the head
        if [ -z "$up" ] && grep -q 'Ray runtime started' "$log"; then
            up=1
            if [ "$node" = 0 ]; then publish "$folder/address" "$address:$port"; fi
            publish "$folder/up-$node" "$address $(hostname)"
        elif [ -z "$up" ] && ((SECONDS - began >= SIMLAP_START_S)); then
            echo "not up after $SIMLAP_START_S s" >>"$log"
            end_group "$ray"
            return 1
        fi
        sleep "$SIMLAP_POLL_S"
    done
    wait "$ray" || true
    rm -f "$folder/up-$node"
    [ -e "$folder/stop" ]
}

# All or nothing of it is seen by the other nodes.
publish() { # FILE TEXT
    printf '%s\n' "$2" >"$1.part"
    mv "$1.part" "$1"
}

# `ray start` ends what it has started when it is told to; the rest of its group has ten seconds.
end_group() { # PID
    local tries
    kill -TERM "$1" 2>/dev/null || true
    for ((tries = 0; tries < 50; tries++)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.2
    done
    kill -KILL -- "-$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# Ray's own logs are kept where the job failed; what is on the node's disk goes.
tidy() { # FOLDER NODE SCRATCH
    if [ "$(cat "$1/stop" 2>/dev/null)" != ended ] && [ -d "$3/r/session_latest/logs" ]; then
        cp -r "$3/r/session_latest/logs" "$1/ray-$2" 2>/dev/null || say "node $2: Ray's logs could not all be kept"
        cp "$3"/simlap-*.log "$1/" 2>/dev/null || true # what Ray said to the driver, on the first node
    fi
    rmdir "$3/node-$2" 2>/dev/null || true
    if ! compgen -G "$3/node-*" >/dev/null; then rm -rf "$3"; fi # two nodes on one machine share it
}
