"""Two-level fractions: the tables are of minimum aberration, and the alias table says what the arms really confound."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.study.fractional import LETTERS, STANDARD, DesignError, Fraction, aliases, generated, standard
from simlap.study.spec import Study, load_study
from tests.tiny import TREE

DESIGNS = sorted({*STANDARD, *((k, 1) for k in range(3, len(LETTERS) + 1))})
LARGE = {
    (10, 4): {4: 2, 5: 8, 6: 4, 8: 1},
    (11, 4): {5: 6, 6: 6, 7: 2, 8: 1},
    (11, 5): {4: 4, 5: 14, 6: 8, 8: 3, 9: 2},
    (11, 6): {4: 25, 6: 27, 8: 10, 10: 1},
}
"""Word-length patterns after Chen, Sun & Wu (1993), written from memory of it: a search would take minutes."""


def letters(k: int, **size: int) -> Fraction:
    return standard(LETTERS[:k], **size)


def least_aberration(k: int, p: int) -> list[int]:
    """The smallest word-length pattern of any regular 2^(k-p) design, by trying all sets of generators."""
    basic = k - p
    columns = [mask for mask in range(1 << basic) if mask.bit_count() > 1]
    patterns = []
    for masks in itertools.combinations(columns, p):
        words = [0]
        for i, mask in enumerate(masks):
            words += [word ^ mask ^ 1 << (basic + i) for word in words]
        pattern = [0] * (k + 1)
        for word in words[1:]:
            pattern[word.bit_count()] += 1
        patterns.append(pattern)
    return min(patterns)


def effort(k: int, p: int) -> int:
    """Words that a search looks at."""
    return math.comb(2 ** (k - p) - (k - p) - 1, p) << p


@pytest.mark.parametrize(
    ("k", "p"), [pytest.param(k, p, marks=[pytest.mark.slow] * (effort(k, p) > 200_000)) for k, p in DESIGNS]
)
def test_standard_designs_have_minimum_aberration(k: int, p: int) -> None:
    table = aliases(letters(k, runs=2 ** (k - p)))
    assert (table.runs, len(table.generators), len(table.relation)) == (2 ** (k - p), p, 2**p - 1)
    assert table.resolution == min(table.word_lengths)
    if (k, p) in LARGE:
        assert table.word_lengths == LARGE[k, p]
    else:
        assert effort(k, p) < 4_000_000, "seconds"
        assert [table.word_lengths.get(length, 0) for length in range(k + 1)] == least_aberration(k, p)


@pytest.mark.parametrize(
    ("k", "resolution", "runs"),
    [
        (3, 3, 4), (4, 3, 8), (4, 4, 8), (5, 3, 8), (5, 4, 16), (5, 5, 16), (6, 4, 16), (6, 5, 32), (7, 3, 8), (7, 4, 16),
        (7, 5, 64), (8, 3, 16), (8, 5, 64), (9, 3, 16), (9, 4, 32), (9, 5, 128), (10, 5, 128), (11, 3, 16),
        (11, 4, 32), (11, 5, 128),
    ],
)  # fmt: skip
def test_the_smallest_design_of_a_resolution(k: int, resolution: int, runs: int) -> None:
    assert letters(k, resolution=resolution).size == runs


def test_letters_go_by_name() -> None:
    """The order of the keys in a file moves no factor to another column."""
    one, other = standard("abcde", resolution=3), standard("edcba", resolution=3)
    assert {tuple(sorted(zip(one.factors, run, strict=True))) for run in one.runs()} == {
        tuple(sorted(zip(other.factors, run, strict=True))) for run in other.runs()
    }


def test_aliases_of_a_known_design() -> None:
    """2^(5-2) of resolution III, d = ab and e = ac, in the fraction that has the run in which all are low."""
    table = aliases(generated("abcde", {f: i for i, f in enumerate("abcde")}, ["d = a*b", "e=a*c"]))
    assert (table.runs, table.resolution, table.excluded) == (8, 3, 0)
    assert table.generators == ("d = -a*b", "e = -a*c")
    assert table.relation == ("-a*b*d", "-a*c*e", "b*c*d*e")
    assert table.word_lengths == {3: 2, 4: 1}
    rows = {row.effect: row.aliases for row in table.rows}
    assert len(rows) == 5 + 10
    assert rows["a"] == ("-b*d", "-c*e")
    assert rows["b"] == ("-a*d",)
    assert rows["b*c"] == ("d*e",)
    assert rows["a*b"] == ("-d",)
    assert {row.effect: row.aliases for row in aliases(letters(5, resolution=5)).rows}["A"] == ()


@pytest.mark.parametrize(("k", "p"), [(k, p) for k, p in DESIGNS if k - p <= 5])
def test_the_alias_table_is_that_of_the_runs(k: int, p: int) -> None:
    """Contrast columns over the arms are equal, with sign, exactly where the table says so."""
    fraction = letters(k, runs=2 ** (k - p))
    runs = list(fraction.runs())
    assert not any(runs[0]), "the baseline"
    assert len(set(runs)) == len(runs) == fraction.size

    def column(effect: str) -> tuple[int, ...]:
        places = [fraction.factors.index(name) for name in effect.split("*")]
        return tuple(math.prod(1 if run[i] else -1 for i in places) for run in runs)

    table = aliases(fraction)
    assert all(abs(sum(column(word.lstrip("-")))) == len(runs) for word in table.relation)
    columns = {row.effect: column(row.effect) for row in table.rows}
    for row in table.rows:
        equal = [other for other, values in columns.items() if other != row.effect and values == columns[row.effect]]
        minus = tuple(-value for value in columns[row.effect])
        opposite = ["-" + other for other, values in columns.items() if values == minus]
        assert sorted(row.aliases) == sorted(equal + opposite)


@pytest.mark.parametrize(
    ("generators", "words"),
    [
        (["d = a*b", "c = a*b"], "repeats the word of d"),
        (["d = a*b", "d = a*c"], "d has a generator already"),
        (["c = a*b", "d = c*a"], "is made of c, which has a generator itself"),
        (["d = a"], "resolution 2"),
        (["d = -a*b"], "has no sign"),
        (["d = a*b*a"], "names a factor twice"),
        (["d = d*a"], "names a factor twice"),
        (["d = a*x"], "no such factor"),
        (["d a*b"], "is written d = a*b*c"),
        (["d = a**b"], "is written d = a*b*c"),
        (["d = a*b", "c = a*b", "b = a"], "resolution 2"),
    ],
)
def test_wrong_generators(generators: list[str], words: str) -> None:
    with pytest.raises(DesignError, match=words.replace("*", r"\*")):
        generated("abcd", {f: i for i, f in enumerate("abcd")}, generators)


@pytest.mark.parametrize(
    ("k", "size", "choices"),
    [
        (4, {"resolution": 5}, ["8 arms with resolution 4"]),
        (7, {"runs": 12}, ["8 arms with resolution 3", "16 arms with resolution 4"]),
        (2, {"resolution": 3}, []),
    ],
)
def test_sizes_that_are_not_tabulated(k: int, size: dict[str, int], choices: list[str]) -> None:
    with pytest.raises(DesignError) as raised:
        letters(k, **size)
    assert list(raised.value.choices)[: len(choices)] == choices


FACTORS = {
    "lr": {"path": "optim.lr", "levels": {"low": 0.01, "high": 0.02}},
    "dim": {"path": "method.embed_dim", "levels": [16, 32]},
    "temperature": {"path": "method.temperature", "levels": [0.1, 0.2]},
    "pairs": {"path": "method.pairs", "levels": ["arbitrary", "identical"]},
    "decay": {"path": "optim.weight_decay", "levels": [0.0, 0.1]},
}
BASELINE = {"lr": "high", "dim": 16, "temperature": 0.1, "pairs": "identical", "decay": 0.0}


def load(folder: Path, **keys: object) -> Study:
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    tree = {"name": "f", "base": "base.yaml", "design": "fractional", "factors": FACTORS, "baseline": BASELINE, **keys}
    (folder / "study.yaml").write_text(yaml.dump(tree))
    return load_study(folder / "study.yaml")


def test_a_fractional_study(tmp_path: Path) -> None:
    study = load(tmp_path, resolution=3)
    assert len(study.arms) == 8
    assert study.arms[0].baseline, "the run in which all are low"
    assert study.arms[0].levels == {
        "lr": "high", "dim": "16", "temperature": "0.1", "pairs": "identical", "decay": "0.0",
    }  # fmt: skip
    for factor in FACTORS:
        levels = [arm.levels[factor] for arm in study.arms]
        assert {levels.count(level) for level in levels} == {4}, "every level is in half of the arms"
    assert study.aliases is not None
    assert (study.aliases.resolution, study.aliases.excluded) == (3, 0)
    assert load(tmp_path, runs=16).aliases.resolution == 5  # type: ignore[union-attr]
    same = load(tmp_path, generators=["pairs = decay * dim", "temperature = decay * lr"])  # the letters go by name
    assert {arm.name for arm in same.arms} == {arm.name for arm in study.arms}


def test_excluded_arms_are_counted(tmp_path: Path) -> None:
    gone = load(tmp_path, resolution=3).arms[3].levels
    study = load(tmp_path, resolution=3, exclude=[gone])
    assert len(study.arms) == 7
    assert study.aliases is not None
    assert (study.aliases.runs, study.aliases.excluded) == (8, 1)


def test_zipped_factors_are_one(tmp_path: Path) -> None:
    together = BASELINE | {"decay": 0.1}
    study = load(tmp_path, zip=[["lr", "decay"]], generators=["pairs = decay*dim*temperature"], baseline=together)
    assert study.aliases is not None
    assert study.aliases.relation == ("lr+decay*dim*temperature*pairs",)
    pairs = {(arm.levels["lr"], arm.levels["decay"]) for arm in study.arms}
    assert pairs == {("high", "0.1"), ("low", "0.0")}
    with pytest.raises(
        ConfigError, match=r"baseline: levels of lr\+decay, which are varied together, do not go together"
    ):
        load(tmp_path, zip=[["lr", "decay"]], resolution=4)
