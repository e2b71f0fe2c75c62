"""`simlap simulate`: which schedulers it compares, and that its table says what was found."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import simlap.cli.simulate as command
from simlap.cli.app import app
from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.study import simulate
from simlap.study.curves import Curves, write_curves
from simlap.study.scheduling import Asha, NoScheduler, Race, defaults, label, parse_scheduler
from tests.tiny import TREE

FILTER = "ablations/filter.yaml"
STUDY = """
name: small
base: base.yaml
factors: {width: {path: method.embed_dim, levels: [8, 16, 32, 64]}}
baseline: {width: 16}
protect: [{width: 64}]
seeds: 3
scheduler: {kind: asha, grace_epochs: 1, reduction_factor: 4}
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *words, "--replicates", "3"])


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "train": {**TREE["train"], "epochs": 9}}))
    (tmp_path / "study.yaml").write_text(STUDY)
    return str(tmp_path / "study.yaml")


def test_every_number_stands_under_its_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    found = simulate.Result("race", 100, 0.11, 0.5, 3.5, 0.0, 0.66, 0.22)
    tells_nothing = simulate.Result("asha", 100, 0.33, 1.0, 1.5, None, None, 0.44)
    out = io.StringIO()
    monkeypatch.setattr(command, "out", Console(file=out, width=80, highlight=False))
    command._print({"race step=4": found, "asha": tells_nothing}, 0.005)
    lines = out.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("race"))
    # a heading may take several lines: what stands above the same columns belongs together
    ends = [m.end() for m in re.finditer(r"\S+( \S+)*", lines[first])]
    cells = [[line[a:b].strip() for a, b in itertools.pairwise([0, *ends])] for line in lines[: first + 2]]
    heads = [" ".join(filter(None, parts)) for parts in zip(*cells[:first], strict=True)]
    rows = cells[first:]
    assert rows[0][0] == "race step=4"
    shown = [dict(zip(heads, row, strict=True)) for row in rows]
    assert shown == [
        {
            "scheduler": "race step=4",
            "epochs": "11.0%",
            "epochs if all equal": "22.0%",
            "best found": "50.0±5.0%",
            "equal called different": "0.0±0.0%",
            "different noticed": "66.0%",
            "seeds per arm": "3.5",
        },
        {
            "scheduler": "asha",
            "epochs": "33.0%",
            "epochs if all equal": "44.0%",
            "best found": "100.0±0.0%",
            "equal called different": "-",
            "different noticed": "-",
            "seeds per arm": "1.5",
        },
    ]
    notes = "\n".join(lines[first + 2 :])
    assert all(f"{head}: " in notes for head in heads[1:]), "each is explained by its name"


def test_what_does_not_fit_is_left_out_unless_it_is_asked_for(study: str) -> None:
    shown = run(study, "--effect", "1")
    assert shown.exit_code == 0, shown.output
    assert "\nnone " in shown.output
    assert "\nasha " in shown.output
    assert not re.search(r"\nrace.*%", shown.output)
    assert "race is left out: race looks at 4 seeds first, and the study has 3\n" in shown.output
    refused = run(study, "--effect", "1", "--scheduler", "none", "--scheduler", "race")
    assert isinstance(refused.exception, ConfigError)
    assert "4 seeds first" in str(refused.exception)


def recorded(folder: Path, epochs: tuple[int, ...]) -> str:
    values = np.random.default_rng(0).random((3, 12, len(epochs)))
    write_curves(Curves(("a", "b", "c"), "a", tuple(range(12)), epochs, values), folder / "c.parquet")
    return str(folder / "c.parquet")


def test_curves_without_a_rung_leave_out_asha(tmp_path: Path) -> None:
    shown = run(FILTER, "--curves", recorded(tmp_path, (4, 15)), "--seeds", "5")
    assert shown.exit_code == 0, shown.output
    assert "\nrace " in shown.output
    assert "asha is left out: asha decides at epochs at which the curves have no value (got [5])" in shown.output


def test_several_settings_are_compared_in_one_table(tmp_path: Path) -> None:
    curves = recorded(tmp_path, (1, 2, 5, 6, 15))
    words = ["asha", "asha:grace_epochs=2", "race:futility_epochs=[2,5],step=1", "none", "none"]
    options = [word for text in words for word in ("--scheduler", text)]
    shown = run(FILTER, "--curves", curves, "--seeds", "5", *options)
    assert shown.exit_code == 0, shown.output
    rows = [line for line in shown.output.splitlines() if re.search(r"\d%|=\S+ *$", line)]
    joined = " ".join(" ".join(re.split(r" {2,}", line)[0] for line in rows).split())
    assert joined == "asha asha grace_epochs=2 race step=1 futility_epochs=[2,5] none", "each once"
    assert "asha, where not said: grace_epochs 5, reduction_factor 3" in shown.output
    refused = run(FILTER, "--curves", curves, "--seeds", "5", "--scheduler", "asha:grace_epochs=1,reduction_factor=2")
    assert isinstance(refused.exception, ConfigError)
    assert "(got [4, 8])" in str(refused.exception), "of its rungs 1, 2, 4 and 8"


@pytest.mark.parametrize(
    ("text", "found", "shown"),
    [
        ("none", NoScheduler(kind="none"), "none"),
        ("asha", Asha(kind="asha", grace_epochs=2, reduction_factor=4), "asha grace_epochs=2 reduction_factor=4"),
        ("asha:grace_epochs=5", Asha(kind="asha", grace_epochs=5, reduction_factor=4), "asha reduction_factor=4"),
        ("race", Race(kind="race"), "race"),
        (
            "race:futility_epochs=[2, 5],margin=1e-2",
            Race(kind="race", futility_epochs=[2, 5], margin=0.01),
            "race margin=0.01 futility_epochs=[2,5]",
        ),
    ],
)
def test_settings_are_those_of_the_study_with_what_is_said(text: str, found: Any, shown: str) -> None:
    read = parse_scheduler(text, Asha(kind="asha", grace_epochs=2, reduction_factor=4))
    assert read == found
    assert label(read) == shown


def test_defaults_are_told() -> None:
    assert defaults(Asha(kind="asha", grace_epochs=2)) == "grace_epochs 5, reduction_factor 3"
    assert defaults(NoScheduler(kind="none")) == "no settings"
    assert "margin" not in defaults(Race(kind="race", margin=1.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ahsa", "scheduler.kind: not a valid kind (got 'ahsa'); did you mean 'asha'? Valid: none, asha, race."),
        ("asha:grace_epochs=0", "scheduler.grace_epochs: input should be greater than or equal to 1 (got 0)"),
        ("asha:grace=1", "scheduler.grace: unknown key"),
        ("asha:grace_epochs", "a setting is written key=value (got 'grace_epochs')"),
        ("asha:", "a setting is written key=value"),
        ("asha:kind=race", "kind: is given twice"),
        ("asha:grace_epochs=1,grace_epochs=2", "grace_epochs: is given twice"),
        ("race:futility_epochs=[5,2]", "futility_epochs must ascend"),
        ("asha:grace_epochs=[1", "grace_epochs"),
    ],
)
def test_wrong_settings_are_refused_as_in_a_file(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_scheduler(text, NoScheduler(kind="none"))
    assert f"command line, --scheduler {text}" in str(found.value)
    assert words in str(found.value)


def test_simulated_studies_have_the_protected_arms_of_the_file(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[simulate.Settings] = []
    real = simulate.simulate

    def noted(source: simulate.Source, scheduler: Any, settings: simulate.Settings) -> simulate.Result:
        asked.append(settings)
        return real(source, scheduler, settings)

    monkeypatch.setattr(simulate, "simulate", noted)
    assert run(study, "--effect", "1", "--scheduler", "asha").exit_code == 0
    # width 16, the baseline, is first; then 8, 32 and 64
    assert [settings.protected for settings in asked] == [frozenset({0, 3})]
