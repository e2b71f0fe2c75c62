"""A Slurm job without Slurm: job.sh and node.sh as they are, with programs in place of srun, scontrol, ray and simlap."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster/slurm"

_PROGRAMS = {
    # runs the step here; a node in $BLIND sees nothing of what others write
    "srun": """
output=/dev/stdout node=
while [[ $1 == --* ]]; do
    case $1 in --output=*) output=${1#*=} ;; --nodelist=*) node=${1#*=} ;; esac
    shift
done
echo "srun $node $*" >>"$LOG"
if [[ $node == "${BLIND:-}" && $* == *.shared-* && $* == *"${BLIND_TO:-}"* ]]; then exit 1; fi
export SLURM_CPUS_ON_NODE=2
exec "$@" >>"$output" 2>&1
""",
    "scontrol": """
echo "scontrol $*" >>"$LOG"
case "$1 $2" in
    "show hostnames") tr ',' '\\n' <<<"$3" ;;
    "show node") echo "NodeName=$4 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=$4 Port=1" ;;
    requeue*) ;;
    *) exit 1 ;;
esac
""",
    # the first $RAY_FAILS starts do not come up
    "ray": """
echo "ray $* mode=$(stat -c %a "$RAY_AUTH_TOKEN_PATH") auth=$RAY_AUTH_MODE tmp=$TMPDIR" >>"$LOG"
if [[ $(grep -c '^ray start' "$LOG") -le ${RAY_FAILS:-0} ]]; then echo "the agent took too long"; exit 1; fi
for word; do
    if [[ $word == --temp-dir=* ]]; then
        logs=${word#*=}/session_latest/logs
        mkdir -p "$logs"
        echo why >"$logs/raylet.err"
    fi
done
trap 'echo "ray ended" >>"$LOG"; exit 1' TERM
echo "Ray runtime started."
while :; do sleep 0.05; done
""",
    # ends with $CODE, or waits for Ctrl-C (where it is $DEAF, for nothing)
    "simlap": """
if [[ ${DEAF:-} ]]; then trap "" INT; else trap 'echo "simlap saves" >>"$LOG"; exit 130' INT; fi
echo "simlap $* omp=$OMP_NUM_THREADS" >>"$LOG"
while [[ ${WAITS:-} ]]; do sleep 0.05; done
echo "the report"
exit "${CODE:-0}"
""",
    "python": f"""
exec {sys.executable} "$@"
""",
}


@dataclass
class Ended:
    """A job that has ended."""

    code: int
    out: str
    err: str


@dataclass
class Job:
    """A job in a folder that stands for the checkout; `Job(tmp_path).run("ablate", ...)`."""

    folder: Path
    nodes: tuple[str, ...] = ("n1", "n2")
    number: int = 4711
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.folder / ".venv/bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name, text in _PROGRAMS.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (programs / name).chmod(0o755)
        link = self.folder / "cluster"
        if not link.exists():
            link.symlink_to(ROOT / "cluster")
        (self.folder / "scratch").mkdir(exist_ok=True)
        self._link.symlink_to(self.folder / "scratch")

    @property
    def logs(self) -> Path:
        return self.folder / "slurm" / str(self.number)

    @property
    def succeeded(self) -> bool:
        return (self.logs / "SUCCEEDED").exists()

    @property
    def called(self) -> list[str]:
        """Programs that were called, in order, with their words."""
        log = self.folder / "called"
        return log.read_text().splitlines() if log.exists() else []

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(FOLDER / f"{command}.sbatch"), *words],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str]) -> Ended:
        out, err = process.communicate(timeout=60)
        return Ended(process.returncode, out, err)

    def run(self, command: str, *words: str) -> Ended:
        return self.end(self.start(command, *words))

    def shell(self, text: str, *words: str, source: str = "ray.sh") -> Ended:
        """A piece of shell with one of the files sourced."""
        process = subprocess.run(
            ["bash", "-c", f'. "{FOLDER}/{source}"; {text}', "bash", *words],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Ended(process.returncode, process.stdout, process.stderr)

    def wait_for(self, begin: str) -> None:
        """Until a program has been called with these first words."""
        end = time.monotonic() + 30
        while not any(line.startswith(begin) for line in self.called):
            assert time.monotonic() < end, (begin, self.called)
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SIMLAP_", "SLURM_", "RAY_"))}
        return {
            **mine,
            "PATH": f"{self.folder}/.venv/bin:{os.environ['PATH']}",
            "LOG": str(self.folder / "called"),
            "SLURM_JOB_ID": str(self.number),
            "SLURM_JOB_NODELIST": ",".join(self.nodes),
            "SLURMD_NODENAME": self.nodes[0],
            "SIMLAP_SCRATCH": str(self._link),
            "SIMLAP_POLL_S": "0.05",
            "SIMLAP_TRIES": "3",
            **self.environment,
        }

    @property
    def _link(self) -> Path:
        """A link to the scratch folder: the paths of sockets are short, a test's own folder is not."""
        return Path("/tmp", f"sl{os.getpid()}-{abs(hash(self.folder)) % 100000}")

    def remove(self) -> None:
        self._link.unlink(missing_ok=True)
