"""What is written for rented machines holds: Ray, AWS and SkyPilot take the files, scripts run, commands parse."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import stat
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.chaos.cluster import SETTINGS
from tests.unit.test_docs import check_command, commands

ROOT = Path(__file__).resolve().parents[3]
RAY_UP = sorted((ROOT / "cluster/ray-up").glob("*.yaml"))
TASK = ROOT / "cluster/skypilot/study.yaml"
PAGES = [ROOT / "cluster/ray-up/README.md", ROOT / "cluster/skypilot/README.md"]
SCHEMA = json.loads((Path(__file__).parent / "skypilot.schema.json").read_text())
"""`sky.utils.schemas` of the version it names, as far as a task of ours can need it."""


@cache
def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def read(path: Path) -> Any:
    return copy.deepcopy(_read(path))


def name_of(path: Path) -> str:
    return path.name


def accept(config: dict[str, Any]) -> None:
    """Raises where `ray up` would."""
    validate_config(prepare_config(config))


def test_there_is_something_to_check() -> None:
    assert [path.name for path in RAY_UP] == ["aws.yaml", "gcp.yaml"]


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_ray_takes_the_cluster(path: Path) -> None:
    accept(read(path))


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "idle_timeout_minute", 10),
        ((), "max_workers", "four"),
        ((), "head_node_type", "haed"),
        (("available_node_types", "gpu"), "max_worker", 4),
        (("available_node_types", "gpu"), "min_workers", 5),
        (("available_node_types", "gpu", "resources"), "GPU", 0.5),
        (("auth",), "ssh_usr", "ubuntu"),
    ],
)
def test_ray_finds_a_wrong_key(path: Path, place: tuple[str, ...], key: str, value: object) -> None:
    config = read(path)
    inner = config
    for step in place:
        inner = inner[step]
    inner[key] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        accept(config)


def test_aws_takes_the_machines() -> None:
    """What Ray hands on to EC2 unseen."""
    import botocore.session  # type: ignore[import-untyped]
    from botocore.validate import ParamValidator  # type: ignore[import-untyped]

    operation = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")

    def errors(node_config: dict[str, Any]) -> str:
        request = {**node_config, "MinCount": 1, "MaxCount": 1}
        return str(ParamValidator().validate(request, operation.input_shape).generate_report())

    types = read(ROOT / "cluster/ray-up/aws.yaml")["available_node_types"]
    assert [errors(one["node_config"]) for one in types.values()] == ["", ""]
    types["gpu"]["node_config"]["InstanceMarketOption"] = {"MarketType": "spot"}
    assert "InstanceMarketOption" in errors(types["gpu"]["node_config"])


@pytest.mark.parametrize("path", RAY_UP, ids=name_of)
def test_a_cluster_is_what_it_promises(path: Path) -> None:
    config = read(path)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == config["max_workers"] > 1
    spot = gpu["node_config"].get("InstanceMarketOptions", gpu["node_config"].get("scheduling"))
    assert "spot" in str(spot).lower()
    for where, source in config["file_mounts"].items():
        assert where.startswith(f"/home/{config['auth']['ssh_user']}/")
        assert source == "~/.ray/auth_token" or (ROOT / source).exists(), source
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert [line for line in starts if "ray start" in line and "export RAY_AUTH_MODE=token;" not in line] == []
    assert "0.0.0.0" not in path.read_text()
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)
    for line in [*config["setup_commands"], *config["head_setup_commands"]]:
        assert "pip install" not in line or "-c ~/code/constraints.txt" in line or "--no-deps" in line, line
    for line in [*config["setup_commands"], *config["head_setup_commands"], *starts]:
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_the_clouds_differ_in_their_machines_only() -> None:
    aws, gcp = map(read, RAY_UP)
    for config in (aws, gcp):
        del config["provider"], config["available_node_types"], config["head_setup_commands"]
    assert aws == gcp


@pytest.mark.parametrize("path", [*RAY_UP, TASK], ids=name_of)
def test_what_is_to_be_filled_in_is_marked(path: Path) -> None:
    lines = path.read_text().splitlines()
    placeholders = [line for line in lines if re.search(r"\byour-|ami-0{17}", line)]
    assert placeholders
    assert [line for line in placeholders if "YOURS" not in line] == []


def grow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grow", ROOT / "cluster/ray-up/grow.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "there", "asked", "code"),
    [
        (["2"], [0, 0, 1, 2], 2, 0),
        (["2", "--minutes", "0"], [1, 1], 2, 1),
        (["0"], [], 0, 0),
    ],
)
def test_growing(
    words: list[str], there: list[int], asked: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = grow()
    requests: list[list[dict[str, int]]] = []
    seen = iter(there)
    monkeypatch.setattr("sys.argv", ["grow.py", *words])
    monkeypatch.setattr(module.ray, "init", lambda **_: None)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"GPU": float(next(seen))})
    monkeypatch.setattr(module, "request_resources", lambda bundles: requests.append(bundles))  # noqa: PLW0108 - by keyword
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    assert module.main() == code
    assert requests == [[{"GPU": 1}] * asked]
    assert "ray status" in capsys.readouterr().err or code == 0


def test_sky_takes_the_task() -> None:
    task = read(TASK)
    check_task(task)


def check_task(task: dict[str, Any]) -> None:
    """Raises where SkyPilot's schemas do not allow it: these are checked one by one there as well."""
    jsonschema.validate(task, SCHEMA["task"])
    jsonschema.validate(task["resources"], SCHEMA["resources"])
    for mount in task["file_mounts"].values():
        if not isinstance(mount, str):
            jsonschema.validate(mount, SCHEMA["storage"])


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "num_node", 2),
        ((), "num_nodes", "2"),
        (("resources",), "spot", True),
        (("resources",), "use_spot", "yes"),
        (("resources", "any_of", 0), "infra", "amazon"),
        (("resources", "job_recovery"), "max_restarts_on_errors", -1),
        (("file_mounts", "/bucket"), "modes", "MOUNT"),
        (("envs",), "A-B", "c"),
        (("secrets",), "RAY_AUTH_TOKEN", 1),
    ],
)
def test_sky_finds_a_wrong_key(place: tuple[Any, ...], key: str, value: object) -> None:
    task = read(TASK)
    inner = task
    for step in place:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(jsonschema.ValidationError):
        check_task(task)


STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$HOME/calls"
env | grep ^RAY_ | grep -v STATS >> "$HOME/calls"
case "$(basename "$0") $*" in
  "ray start --head"*) exec sleep 100 ;;
  "ray start"*) exit 1 ;;
  python*) echo 2 ;;
  simlap*) exit 3 ;;
esac
"""


def node(home: Path, rank: int) -> tuple[int, list[str]]:
    """Run the task's script as SkyPilot would, with programs that only say how they were called."""
    programs = home / "env/bin"
    programs.mkdir(parents=True)
    (home / "sky_workdir").mkdir()
    for name in ("ray", "python", "simlap"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    task = read(TASK)
    told = {
        **task["envs"],
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "RAY_AUTH_TOKEN": "secret",
        "RAY_ADDRESS": "127.0.0.1:6380",
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
    }
    done = subprocess.run(["bash", "-c", task["run"]], env=told, timeout=60)
    return done.returncode, (home / "calls").read_text().splitlines()


def test_the_head_of_the_task(tmp_path: Path) -> None:
    code, calls = node(tmp_path, 0)
    assert code == 3, "what the study ends with"
    (study,) = [call for call in calls if call.startswith("simlap ")]
    assert study == "simlap ablate ablations/filter.yaml --address 10.0.0.1:6390 --storage s3://your-bucket/runs"
    (start,) = [call for call in calls if call.startswith("ray ")]
    assert start.startswith("ray start --head --port 6390 --dashboard-host 127.0.0.1 ")
    token = tmp_path / ".simlap-ray-token"
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == ("secret", 0o600)
    assert "secret" not in "".join(calls)
    assert {call for call in calls if call.startswith("RAY_")} == {
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={token}",
        *(f"{name}={value}" for name, value in SETTINGS.items()),
    }


def test_another_node_of_the_task(tmp_path: Path) -> None:
    code, calls = node(tmp_path, 1)
    assert code == 0, "a node that is lost is no failure of the study"
    ray = [call for call in calls if call.startswith("ray ")]
    assert ray[0] == "ray health-check --address 10.0.0.1:6390"
    assert ray[1].startswith("ray start --address 10.0.0.1:6390 --num-gpus 1 ")
    assert ray[1].endswith(" --block")


def test_the_setup_of_the_task() -> None:
    task = read(TASK)
    subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
    assert "-c constraints.txt ." in task["setup"]
    assert "ray stop" not in re.sub(r"#.*", "", task["run"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_parse(page: Path) -> None:
    text = re.sub(r"^ +", "", page.read_text(), flags=re.MULTILINE)
    lines = [*commands(text), *re.findall(r"'(simlap [^']*)'", text)]
    assert {line.split()[1] for line in lines} >= {"ablate", "status", "report", "sync"}
    for line in lines:
        check_command(line)


def test_the_command_of_the_task_parses() -> None:
    task = read(TASK)
    (line,) = re.findall(r"^simlap .*", task["run"], re.MULTILINE)
    for name, value in task["envs"].items():
        line = line.replace(f"${name}", value)
    check_command(line.replace("$address", "10.0.0.1:6390"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(r"cluster/[\w./-]+", text):
        assert (ROOT / name).exists(), name
