"""The documentation holds: files load, commands parse, links lead somewhere, tables are those of the code."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.exceptions import TyperException

from simlap.cli import app
from simlap.config import load_experiment, validate, yaml
from simlap.config.claims import parse
from simlap.config.schema import Experiment
from simlap.data import inspect_data, load_splits
from simlap.errors import UserError
from simlap.evaluate.names import metric_names
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.study.spec import StudySpec, load_study
from simlap.train.loop import RARE
from simlap.train.world import World
from tests.tiny import tiny
from tools import reference

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
STUDIES = sorted((ROOT / "ablations").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCED.findall(page.read_text()) if kind == language]


def commands(text: str) -> list[str]:
    """Everything in a page that is written as a command of ours: code spans, and lines of shell blocks."""
    lines = [
        line.partition("#")[0].strip()
        for kind, body in _FENCED.findall(text)
        if kind == "sh"
        for line in body.splitlines()
    ]
    written = [span.replace(r"\|", "|") for span in _SPAN.findall(_FENCED.sub("", text))] + lines
    return [line.removeprefix(".venv/bin/") for line in written if re.match(r"(\.venv/bin/)?simlap [a-z]", line)]


def check_command(line: str) -> None:
    """Raises where the command line would refuse it, or where it names a file or key that does not exist."""
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS, f"`simlap {name}` does not exist"
    if not arguments:  # the command is only named
        return
    params = COMMANDS[name].make_context(name, arguments).params
    for key in ("experiment", "study", "name"):
        if str(params.get(key, "")).endswith(".yaml"):
            file = ROOT / params[key]
            changes = [*(params.get("overrides") or ()), *(params.get("set_") or ())]
            if file.parent.name == "experiments":
                load_experiment(file, changes)
            else:
                load_study(file, tuple(changes))


def slug(heading: str) -> str:
    """The anchor that renderers give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiment_loads(path: Path) -> None:
    assert load_experiment(path).name == path.stem.replace("_", "-")


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_study_loads(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    assert [arm.baseline for arm in study.arms].count(True) == 1


def test_there_is_something_to_check() -> None:
    assert EXPERIMENTS
    assert STUDIES
    assert {name for line in commands((ROOT / "README.md").read_text()) for name in [line.split()[1]]} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    for line in commands(page.read_text()):
        check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "simlap train experiments/digits.yaml",
        "simlap run experiments/digits.yaml --epochs 5",
        "simlap run experiments/digits.yaml train.epoch=5",
        "simlap ablate ablations/other.yaml",
        "simlap report filter --format pdf",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    found = commands(f"Say `{line}`.")
    assert found == [line]
    with pytest.raises((AssertionError, UserError, TyperException)):
        check_command(line)


def test_every_option_is_in_the_readme() -> None:
    rows = re.findall(r"^\| `simlap (\w+)[^`]*` \|.*\|([^|]*)\|$", prose(ROOT / "README.md"), re.MULTILINE)
    written = {name: set(_SPAN.findall(options)) for name, options in rows}
    there = {
        name: {
            option for parameter in command.params if parameter.param_type_name == "option" for option in parameter.opts
        }
        for name, command in COMMANDS.items()
    }
    assert written == there


def test_the_study_in_the_readme_is_the_shipped_one() -> None:
    first = blocks(ROOT / "README.md", "yaml")[0]
    assert yaml.parse(first) == yaml.parse((ROOT / "ablations/filter.yaml").read_text())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_named_exists(page: Path) -> None:
    """Files of the tree, and `simlap.package.module.name`."""
    for span in _SPAN.findall(prose(page)):
        if re.fullmatch(r"(simlap|tests|tools|benchmarks|docs|experiments|ablations)/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"simlap(\.\w+){2,}", span):
            module, _, name = span.rpartition(".")
            assert hasattr(importlib.import_module(module), name), span


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_path_of_one_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.…/:])/(?:home|root|tmp|mnt|opt|work|Users)\b\S*", page.read_text()) == []


@pytest.mark.parametrize("name", reference.PAGES)
def test_reference_is_up_to_date(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text == reference.filled(text), "run python tools/reference.py"


@pytest.mark.parametrize(("name", "model"), reference.PAGES.items())
def test_reference_is_complete(name: str, model: type[BaseModel]) -> None:
    wanted = {found.__name__ for found in reference.below(model)}
    if model is StudySpec:
        wanted -= {found.__name__ for found in reference.below(Experiment)}  # on a page of their own
    assert reference.shown((ROOT / name).read_text()) == wanted


def test_an_outdated_reference_is_found() -> None:
    text = "a\n<!-- keys: Factor -->\nold\n<!-- end -->\nb\n"
    new = reference.filled(text)
    assert "| `path` | text | required |" in new
    assert "old" not in new
    assert new.startswith("a\n")
    assert new.endswith("\nb\n")
    assert reference.filled(new) == new


def test_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script in the documentation makes files that the experiment beside it can be trained on."""
    page = ROOT / "docs/experiment-file.md"
    (script,) = blocks(page, "python")
    (text,) = blocks(page, "yaml")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "docs/experiment-file.md", "exec"), {})
    experiment = validate(Experiment, yaml.parse(text))
    info = inspect_data(experiment.data)
    assert (info.num_train + info.num_val, info.num_test, info.num_classes) == (200, 50, 10)
    assert load_splits(experiment.data).test.images.shape == (50, 3, 32, 32)


def test_levels_as_documented() -> None:
    text, searching, claiming = blocks(ROOT / "docs/study-file.md", "yaml")
    parts = [yaml.parse(part) for part in (text, searching, claiming)]
    tree = {"name": "x", "base": "x.yaml", "baseline": {}, **parts[0], **parts[1], **parts[2]}
    spec = validate(StudySpec, tree)
    assert {name: list(factor.named()) for name, factor in spec.factors.items()} == {
        "filter": ["on", "off"], "dim": ["64", "128", "256"], "lr": ["low", "high"],
    }  # fmt: skip
    assert [parse(claim).margin for claim in spec.claims] == [0.01, 0.0, 0.005]
    assert spec.search is not None
    assert {name: list(one.named()) for name, one in spec.search.factors.items()} == {
        "lr": [], "temperature": [], "widths": ["small", "large"],
    }  # fmt: skip


def test_metrics_as_documented(tmp_path: Path) -> None:
    """What a run measures and what a study can name has a row in the table, and the table has nothing else."""
    table = prose(ROOT / "docs/experiment-file.md").partition("## What is measured")[2]
    rows = re.findall(r"^\| (`[^|]+`[^|]*) \|", table, re.MULTILINE)
    written = {name for row in rows for name in _SPAN.findall(row)}
    task = CellTask("c", tiny(train__epochs=1, method__learn_temperature=True).model_dump(mode="json"), str(tmp_path))
    measured = {name for progress in run_cell(task, World()) for name in progress.metrics}
    kinds = [{"kind": kind} for kind in ("probe", "knn", "collapse", "linear", "finetune", "gates")]
    other = {"kind": "transfer", "data": {"other": {"source": "digits"}}}
    experiment = tiny(evaluate=[*kinds, other])
    named = {name for evaluation in experiment.evaluate for name in metric_names(evaluation, "val")}
    # written once for all k, for all datasets and for the test split by example; the gates' finer values and the spectrum below
    plain = {re.sub(r"_k\d+$", "_k1", name).replace("other_", "<name>_") for name in measured | named}
    finer = {
        name for name in plain if re.match(r"gates/(self_|activation|entropy|open_fraction)|collapse/spectrum_", name)
    }
    examples = {name for name in plain if "<name>" in name} - {"val/<name>_knn_top1"}
    test = {name for name in plain if name.startswith("test/")}
    assert {name.replace("test/collapse_", "collapse/").replace("test/", "val/") for name in test} <= written
    assert {name for name in written if name.startswith("test/")} <= test
    assert written - test == (plain | {*RARE}) - test - finer - examples


def test_benchmarks_support_the_readme() -> None:
    """The bounds that the README gives, against the results that are committed beside it."""
    results = ROOT / "benchmarks/results"
    loss = json.loads((results / "loss-cpu.json").read_text())
    assert loss["dim"] == 256
    seconds = {row["form"]: row["seconds"] for row in loss["times"] if row["size"] == 1024}
    extra = {row["form"]: row["extra_bytes"] for row in loss["memory"] if row["size"] == 1024}
    assert seconds["broadcast"] > 200 * seconds["auto"]
    assert extra["broadcast"] > 300 * extra["auto"]
    scheduling = json.loads((results / "scheduling-cpu.json").read_text())
    assert scheduling["cells"] == 60
    assert scheduling["figures"]["per cell"] < 0.3
