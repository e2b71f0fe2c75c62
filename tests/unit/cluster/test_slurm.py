"""cluster/slurm without Slurm: what its functions give, what a job starts and in which order, and how it ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cluster.slurm import FOLDER, ROOT, Job
from tests.unit.test_docs import check_command

SCRIPTS = sorted(
    path
    for path in (ROOT / "cluster").rglob("*")
    if path.is_file() and (path.suffix in {".sh", ".sbatch"} or path.read_bytes().startswith(b"#!/usr/bin/env bash"))
)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    made.remove()


def test_shellcheck() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("needs shellcheck (Debian: the package of that name)")
    checked = subprocess.run([program, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_no_script_ends_other_peoples_ray() -> None:
    assert len(SCRIPTS) >= 5
    for path in SCRIPTS:
        code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not re.search(r"ray\"? stop|pkill|killall", "\n".join(code)), path


@pytest.mark.parametrize("name", ["run", "ablate"])
def test_what_slurm_is_asked_for(name: str) -> None:
    asked = set(re.findall(r"^#SBATCH (.*)$", (FOLDER / f"{name}.sbatch").read_text(), re.MULTILINE))
    assert {"--requeue", "--signal=B:USR1@120", "--open-mode=append", "--ntasks-per-node=1"} <= asked


def commands() -> list[str]:
    """What the files and the page say to submit, and the commands of ours in them."""
    found = []
    for path in [*SCRIPTS, *(ROOT / "cluster/slurm").glob("*.md")]:
        for line in path.read_text().splitlines():
            line = line.strip().removeprefix("#").strip().removesuffix("\\")
            if re.match(r"sbatch (--\S+ )*\S+\.sbatch", line):
                words = shlex.split(line.partition(" #")[0])
                (place,) = [n for n, word in enumerate(words) if word.endswith(".sbatch")]
                assert (ROOT / words[place]).exists(), line
                found.append(shlex.join(["simlap", Path(words[place]).stem, *words[place + 1 :]]))
            elif re.match(r"(\.venv/bin/)?simlap [a-z]", line):
                found.append(line.removeprefix(".venv/bin/").partition(" #")[0])
    return found


def test_commands_parse() -> None:
    found = commands()
    assert {line.split()[1] for line in found} >= {"run", "ablate", "status", "report"}
    for line in found:
        check_command(line)


def test_ports_of_jobs_do_not_meet(job: Job) -> None:
    asked = [(number, restart, attempt) for number in range(900, 912) for restart in range(3) for attempt in range(8)]
    text = "; ".join(f"head_port {number} {restart} {attempt}" for number, restart, attempt in asked)
    ports = [int(line) for line in job.shell(text).out.split()]
    assert len(ports) == len(asked)
    assert all(20000 <= port < 32000 - 1 for port in ports)
    taken = set(ports) | {port + 1 for port in ports}  # the port after it is Ray Client's
    assert len(taken) == 2 * len(asked)


def test_the_token_is_for_its_owner(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o644)
    assert job.shell('make_token "$1"', str(file)).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert re.fullmatch("[0-9a-f]{64}", file.read_text())


def test_a_path_too_long_for_sockets_is_refused(job: Job) -> None:
    job.environment["SIMLAP_SCRATCH"] = "/" + "x" * 40
    ended = job.run("run", "experiments/digits.yaml")
    assert ended.code != 0
    assert "SIMLAP_SCRATCH: the path is too long" in ended.err
    assert "at most 38 fit" in ended.err
    assert not job.succeeded()
    assert not [line for line in job.called if line.startswith(("ray", "simlap"))]


def test_a_folder_of_somebody_else_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "file").touch()
    assert job.shell('private_folder "$1"', str(tmp_path / "new")).code == 0
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    for name in ("link", "file"):
        refused = job.shell('private_folder "$1"', str(tmp_path / name))
        assert refused.code == 1
        assert "is not ours" in refused.err


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("0", 1), ("2,3", 2), ("GPU-1a,GPU-2b,MIG-3c", 3), ("-1", 0), ("NoDevFiles", 0)]
)
def test_gpus_are_those_that_slurm_gives(job: Job, visible: str, count: int) -> None:
    job.environment["CUDA_VISIBLE_DEVICES"] = visible
    assert job.shell("gpus_here").out.split() == [str(count)]


@pytest.mark.parametrize(
    ("words", "storage"),
    [
        ([], "./runs"),
        (["a.yaml", "--storage", "/x/y"], "/x/y"),
        (["--storage=/x y", "a.yaml"], "/x y"),
        (["--storage", "/x", "--storage=s3://b/c"], "s3://b/c"),
    ],
)
def test_storage_is_found_among_the_words(job: Job, words: list[str], storage: str) -> None:
    assert job.shell('storage_of "$@"', *words, source="job.sh").out == f"{storage}\n"


def test_the_address_is_of_the_interface(job: Job) -> None:
    job.environment["SIMLAP_BIN"] = str(job.folder / ".venv/bin")
    assert job.shell("find_address 127.0.0.1").out == "127.0.0.1 lo\n"
    job.environment["SIMLAP_INTERFACE"] = "nonesuch"
    refused = job.shell("find_address 127.0.0.1")
    assert refused.code != 0
    assert "has no such interface (got 'nonesuch'). Valid: " in refused.err
    assert "lo" in refused.err


def test_a_job(job: Job) -> None:
    ended = job.run("ablate", "ablations/filter.yaml", "--storage", str(job.folder / "runs"))
    assert ended.code == 0, ended
    assert job.succeeded()
    assert "the report" in ended.out
    head, worker = (line for line in job.called if line.startswith("ray start"))
    port = re.search(r"--port=(\d+)", head)
    assert port is not None
    assert "--head" in head
    assert "--num-cpus=2 --num-gpus=0" in head
    assert f"--address=127.0.0.1:{port[1]}" in worker
    assert "--head" not in worker
    for line in (head, worker):
        assert "mode=600 auth=token" in line
        assert "/sl-4711/r " in line, "below a folder of 0700: Ray opens its own to everybody"
    (driver,) = (line for line in job.called if line.startswith("simlap"))
    words = f"ablate ablations/filter.yaml --storage {job.folder}/runs --address=127.0.0.1:{port[1]}"
    assert driver == f"simlap {words} omp=1"
    order = [line.split()[0] for line in job.called if line.startswith(("ray", "simlap"))]
    assert order == ["ray", "ray", "simlap", "ray", "ray"], "both up, then the command, then both ended"
    assert not (job.logs / "0/token").exists()
    assert not (job.logs / "0/ray-0").exists(), "Ray's logs are kept where something went wrong"
    assert [path.name for path in (job.folder / "scratch").iterdir()] == [f"simlap-cache-{os.getuid()}"]
    assert stat.S_IMODE((job.logs / "0").stat().st_mode) == 0o700


def test_starting_is_tried_again(job: Job) -> None:
    job.environment["RAY_FAILS"] = "2"
    ended = job.run("run", "experiments/digits.yaml")
    assert ended.code == 0, ended
    assert job.succeeded()
    heads = [line for line in job.called if line.startswith("ray start") and "--head" in line]
    assert len({re.findall(r"--port=\d+", line)[0] for line in heads}) == len(heads) == 3, "another port each time"


def test_a_failed_start_is_no_success(job: Job) -> None:
    assert job.run("run", "experiments/digits.yaml").code == 0
    assert job.succeeded()
    job.environment["RAY_FAILS"] = "100"
    (job.folder / "called").unlink()
    ended = job.run("run", "experiments/digits.yaml")
    assert ended.code == 1
    assert re.search(r"Ray does not start on n[12] \(tried 3 times\)", ended.err), ended.err
    assert not job.succeeded(), "the marker of another time is gone"
    assert not [line for line in job.called if line.startswith("simlap")]
    logs = [path.read_text() for path in (job.logs / "0").glob("ray-*.log")]
    assert any("the agent took too long" in text for text in logs)


def test_a_worker_that_does_not_start_fails_the_job(job: Job) -> None:
    # every start but the first
    ray = job.folder / ".venv/bin/ray"
    ray.write_text(ray.read_text().replace("\nif [[", "\n[[ $* == *--head* ]] || exit 1\nif [[", 1))
    ended = job.run("run", "experiments/digits.yaml")
    assert ended.code == 1
    assert "Ray does not start on n2" in ended.err
    assert not job.succeeded()
    assert "ray ended" in job.called, "the head does not stay"
    assert (job.logs / "0/ray-0/raylet.err").read_text() == "why\n", "Ray's own logs tell why"


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_exit_code_is_passed_on(job: Job, code: int) -> None:
    job.environment["CODE"] = str(code)
    ended = job.run("ablate", "ablations/filter.yaml")
    assert ended.code == code
    assert not job.succeeded()
    assert not [line for line in job.called if line.startswith("scontrol requeue")]


@pytest.mark.parametrize(
    ("sent", "restarts", "queued"),
    [(signal.SIGUSR1, 0, True), (signal.SIGUSR1, 20, False), (signal.SIGTERM, 0, False)],
)
def test_a_signal_saves_and_may_queue_again(job: Job, sent: signal.Signals, restarts: int, queued: bool) -> None:
    job.environment.update(WAITS="1", SLURM_RESTART_COUNT=str(restarts))
    going = job.start("run", "experiments/digits.yaml")
    job.wait_for("simlap run")
    os.kill(going.pid, sent)
    ended = job.end(going)
    assert ended.code == 130, ended
    assert job.called.count("simlap saves") == 1
    assert job.called.count("ray ended") == 2
    assert ("scontrol requeue 4711" in job.called) == queued
    assert not job.succeeded()
    if restarts == 20:
        assert "not queued again" in ended.err


def test_a_command_that_does_not_stop_is_killed_in_time(job: Job) -> None:
    job.environment.update(WAITS="1", DEAF="1", SIMLAP_GRACE_S="0")
    going = job.start("ablate", "ablations/filter.yaml")
    job.wait_for("simlap ablate")
    os.kill(going.pid, signal.SIGUSR1)
    ended = job.end(going)
    assert ended.code == 137
    assert "has not stopped within 0 s" in ended.err
    assert "scontrol requeue 4711" in job.called, "it goes on from its newest checkpoint"
    assert job.called.count("ray ended") == 2


@pytest.mark.parametrize(("command", "added"), [("run", " --resume"), ("ablate", "")])
def test_a_job_that_was_queued_again_goes_on(job: Job, command: str, added: str) -> None:
    job.environment["SLURM_RESTART_COUNT"] = "1"
    file = {"run": "experiments/digits.yaml", "ablate": "ablations/filter.yaml"}[command]
    assert job.run(command, file).code == 0
    (driver,) = (line for line in job.called if line.startswith("simlap"))
    assert driver.startswith(f"simlap {command} {file}{added} --address=")
    assert (job.logs / "1/driver.log").exists()
    assert job.succeeded()


def test_a_storage_that_is_not_shared_is_refused(job: Job) -> None:
    job.environment.update(BLIND="n2", BLIND_TO="/runs/")
    ended = job.run("run", "experiments/digits.yaml", "--storage", f"{job.folder}/runs")
    assert ended.code == 2
    assert "--storage: must be on a file system that all nodes share" in ended.err
    assert f"node n2 does not see what n1 wrote there (got '{job.folder}/runs')" in ended.err
    assert not job.succeeded()
    assert not [line for line in job.called if line.startswith(("ray", "simlap"))]
    assert list((job.folder / "runs").iterdir()) == []


def test_a_folder_of_jobs_that_is_not_shared_is_refused(job: Job) -> None:
    job.environment.update(BLIND="n2")
    ended = job.run("run", "experiments/digits.yaml", "--storage", "s3://bucket/runs")
    assert ended.code == 2
    assert "does not see" in ended.err
    assert "SIMLAP_LOGS" in ended.err


@pytest.mark.parametrize("word", ["--address=10.0.0.1:6379", "--detach"])
def test_words_that_are_the_jobs_own_are_refused(job: Job, word: str) -> None:
    ended = job.run("ablate", "ablations/filter.yaml", word)
    assert ended.code == 2
    assert f"{word.partition('=')[0]}: the job starts a cluster of its own" in ended.err
    assert job.called == []


def test_a_missing_environment_is_named(job: Job) -> None:
    (job.folder / ".venv/bin/ray").unlink()
    ended = job.run("run", "experiments/digits.yaml")
    assert ended.code == 2
    assert "SIMLAP_BIN: there is no ray in it" in ended.err
    assert "make env" in ended.err


def test_submitted_from_elsewhere(job: Job) -> None:
    (job.folder / "cluster").unlink()
    ended = job.run("run", "experiments/digits.yaml")
    assert ended.code == 2
    assert "submit from the root of the checkout" in ended.err
