"""What schedulers would do: on simulated studies with a known answer, and on replayed curves."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import simlap.cli.simulate  # noqa: F401 - adds its command to the app
from simlap.cli.app import app
from simlap.errors import ConfigError
from simlap.record.view import ArmView, CellView, EpochRow, StudyView
from simlap.study.curves import Curves, from_view, read_curves, write_curves
from simlap.study.power import power_of
from simlap.study.scheduling import Asha, NoScheduler, Race
from simlap.study.simulate import Replay, Settings, Synthetic, simulate

NONE, RACE = NoScheduler(kind="none"), Race(kind="race")
ASHA = Asha(kind="asha", grace_epochs=3, reduction_factor=3)
EPOCHS = (3, 9, 27)


def within(share: float | None, expected: float, replicates: int) -> bool:
    return share is not None and abs(share - expected) <= 3.5 * math.sqrt(expected * (1 - expected) / replicates)


def test_the_fixed_study_has_the_power_and_the_error_of_the_t_test() -> None:
    result = simulate(Synthetic((0.0, 0.01), 0.01, (1,)), NONE, Settings(1500, 8))
    assert within(result.power, power_of(0.01, 8, 0.01), 1500)
    assert within(result.false_difference, 0.05, 1500)
    assert (result.epochs, result.seeds) == (1.0, 8.0)


@pytest.mark.slow
def test_race_meets_what_was_promised_of_it() -> None:
    result = simulate(Synthetic((0.0, 0.01), 0.01, (1,)), RACE, Settings(1000, 24))
    assert result.epochs <= 0.5
    assert (result.power or 0) >= 0.9
    assert result.false_difference is not None
    assert result.false_difference <= 0.05 + 3 * result.error(0.05)


def test_asha_finds_an_arm_that_is_clearly_best_at_a_share_of_the_epochs() -> None:
    source = Synthetic((0.0, *[0.0] * 10, 0.1), 0.01, EPOCHS)
    settings = Settings(100, 3)
    result = simulate(source, ASHA, settings)
    assert result.found >= 0.95
    assert result.epochs <= 0.5
    assert (result.power, result.false_difference) == (None, None)
    assert simulate(source, ASHA, settings) == result, "a function of the seed"
    assert simulate(source, ASHA, dataclasses.replace(settings, seed=1)) != result


def test_against_best_what_is_beaten_is_noticed() -> None:
    result = simulate(Synthetic((0.0, 0.05, 0.0), 0.01, (1,)), Race(kind="race", against="best"), Settings(100, 12))
    assert (result.power or 0) >= 0.95
    assert result.found >= 0.95


def test_a_scheduler_without_values_at_its_rungs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"asha decides at epochs \[3, 9\]"):
        simulate(Synthetic((0.0, 0.1), 0.1, (27,)), ASHA, Settings(1, 5))


def test_protected_arms_cost_their_epochs() -> None:
    source = Synthetic((0.0, 0.1, 0.1), 0.01, (1,))
    free, kept = (simulate(source, RACE, Settings(5, 24, protected=frozenset(arms))) for arms in ({0}, {0, 2}))
    assert kept.epochs >= free.epochs + 0.2
    assert kept.found == free.found == 1.0


def curves(mode: str = "max", arms: int = 4, seeds: int = 12) -> Curves:
    """Arm i is better by i hundredths at the end."""
    random, sign = np.random.default_rng(0), 1.0 if mode == "max" else -1.0
    values = 0.5 + sign * 0.01 * np.arange(arms)[:, None, None] * np.array([0.2, 0.6, 1.0])
    values = values + 0.005 * random.standard_normal((arms, seeds, 3)) + 0.05 * random.standard_normal((1, seeds, 1))
    names = tuple(f"f={i}" for i in range(arms))
    return Curves(names, "f=1", tuple(range(seeds)), EPOCHS, values, "max" if mode == "max" else "min")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_replays_find_the_recorded_best(mode: str) -> None:
    replay = Replay(curves(mode))
    assert replay.order == [1, 0, 2, 3], "the baseline first"
    result = simulate(replay, NONE, Settings(300, 12))
    assert result.found >= 0.99
    assert (result.power or 0) >= 0.9
    assert simulate(replay, RACE, Settings(50, 12)).found >= 0.95


def test_a_replayed_seed_keeps_its_arms_together_and_a_null_study_deals_them_out() -> None:
    recorded = curves()
    random = np.random.default_rng(1)
    draw = Replay(recorded).draw(7, random, null=False)
    seeds = {tuple(recorded.values[[1, 0, 2, 3], s, -1]) for s in recorded.seeds}
    assert all(tuple(draw.values[:, j, -1]) in seeds for j in range(7))
    null = Replay(recorded).draw(7, random, null=True)
    assert all(tuple(sorted(null.values[:, j, -1])) in {tuple(sorted(s)) for s in seeds} for j in range(7))
    assert (null.truth == 0).all()
    whole = {tuple(curve) for curve in recorded.values.reshape(-1, 3)}
    assert all(tuple(curve) in whole for curve in null.values.reshape(-1, 3)), "curves are dealt whole"
    result = simulate(Replay(recorded), NONE, Settings(600, 12))
    assert result.false_difference is not None
    assert result.false_difference <= 0.05 + 3.5 * result.error(0.05)


def test_curves_survive_the_file(tmp_path: Path) -> None:
    written = curves("min")
    write_curves(written, tmp_path / "c.parquet")
    read = read_curves(tmp_path / "c.parquet")
    assert (read.arms, read.baseline, read.seeds, read.epochs, read.mode) == (
        written.arms, written.baseline, written.seeds, written.epochs, "min",
    )  # fmt: skip
    assert (read.values == written.values).all()
    assert read_curves(tmp_path / "c.parquet", "f=3").baseline == "f=3"


def bare(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    path = tmp_path / "bare.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_bad_curves_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"arm": arm, "seed": seed, "epoch": epoch, "value": 0.1} for arm in "xy" for seed in (0, 1) for epoch in (1, 2)
    ]
    assert read_curves(bare(tmp_path, rows), "x").arms == ("x", "y")
    with pytest.raises(ConfigError, match=r"--baseline: no such arm.*Valid: x, y"):
        read_curves(bare(tmp_path, rows))
    with pytest.raises(ConfigError, match="missing: y · seed 1"):
        read_curves(bare(tmp_path, rows[:-2]), "x")
    with pytest.raises(ConfigError, match="different epochs"):
        read_curves(bare(tmp_path, rows[:-1]), "x")
    with pytest.raises(ConfigError, match="finite"):
        read_curves(bare(tmp_path, [*rows[:-1], {**rows[-1], "value": math.nan}]), "x")
    with pytest.raises(ConfigError, match="lacks columns"):
        read_curves(bare(tmp_path, [{"arm": "x"}]), "x")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_curves(tmp_path / "nothing.parquet", "x")


def view(states: dict[tuple[str, int], str]) -> StudyView:
    arms = []
    for i, name in enumerate(("x", "y")):
        cells = [
            CellView(
                cell_id=f"{name}{seed}",
                seed=seed,
                state=states.get((name, seed), "done"),  # type: ignore[arg-type]
                rows=[EpochRow(e, 0, {"val/m": 0.1 * e + 0.01 * i + 0.001 * seed}) for e in (1, 2)],
                result={"test/m": 0.3 + i},
            )
            for seed in range(4)
        ]
        arms.append(ArmView(name, {"f": name}, protected=i == 0, is_baseline=i == 0, cells=cells))
    return StudyView("s", "val/m", "max", "test/m", 2, [0, 1, 2, 3], {"f": ["x", "y"]}, arms)


def test_curves_of_a_study_are_those_of_seeds_that_every_arm_finished() -> None:
    recorded = from_view(view({("y", 2): "failed"}))
    assert recorded.curves.seeds == (0, 1, 3)
    assert recorded.missing == ["y · seed 2: failed"]
    assert recorded.curves.values[1, 2].tolist() == pytest.approx([0.113, 0.213])
    ends = recorded.curves.values[:, :, -1].mean(axis=1)
    assert recorded.curves.truth().tolist() == pytest.approx(ends.tolist()), "on the metric that decides"
    with pytest.raises(ConfigError, match=r"missing: y · seed 0: stopped; y · seed 1: stopped.*--effect"):
        from_view(view({("y", 0): "stopped", ("y", 1): "stopped", ("y", 2): "new"}))


STUDY = "ablations/filter.yaml"


def test_the_command_on_simulated_curves() -> None:
    run = CliRunner().invoke(app, ["simulate", STUDY, "--effect", "2", "--replicates", "20", "--seeds", "6"])
    assert run.exit_code == 0, run.output
    assert "best found" in run.output
    assert all(f"\n{kind} " in run.output for kind in ("none", "asha", "race"))


def test_the_command_on_curves_of_a_file(tmp_path: Path) -> None:
    write_curves(curves(), tmp_path / "c.parquet")
    options = ["--curves", str(tmp_path / "c.parquet"), "--replicates", "20", "--seeds", "8"]
    run = CliRunner().invoke(app, ["simulate", STUDY, *options, "--scheduler", "race"])
    assert run.exit_code == 0, run.output
    assert "replays of 4 arms x 12 recorded seeds" in run.output
    assert "asha" not in run.output
    refused = CliRunner().invoke(app, ["simulate", STUDY, *options, "--scheduler", "asha"])
    assert isinstance(refused.exception, ConfigError)
    assert "Valid: 3, 9, 27" in str(refused.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--effect", "1", "--std", "0"], "--std: must be above 0"),
        (["--effect", "1", "--curves", "c.parquet"], "either simulated"),
        (["--effect", "1", "--seeds", "3", "--scheduler", "race"], "4 seeds first"),
        (["--storage", "nowhere"], "no such study"),
    ],
)
def test_wrong_options_are_refused(options: list[str], words: str) -> None:
    run = CliRunner().invoke(app, ["simulate", STUDY, "--replicates", "2", *options])
    assert isinstance(run.exception, ConfigError), run.output
    assert words in str(run.exception)
