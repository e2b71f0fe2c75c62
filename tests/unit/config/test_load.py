"""Wrong input names the file, the key, the value and the choices."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.config import Experiment, load_experiment, override, validate, yaml
from simlap.errors import ConfigError

GOOD = """
name: x
data: {source: digits}
method: {kind: simlap, gate: {kind: sigmoid}}
optim: {lr: 1e-3}
train: {epochs: 3}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr: 1e-3", "lr: true", ["optim.lr", "valid number", "True"]),
        ("lr: 1e-3", "Lr: 1", ["optim.Lr", "unknown key", "weight_decay"]),
        ("lr: 1e-3", "momentun: 0.9", ["optim.momentun", "did you mean 'momentum'"]),
        ("kind: sigmoid", "kind: sigmod", ["method.gate.kind", "'sigmod'", "did you mean 'sigmoid'", "stochastic"]),
        ("kind: sigmoid", "kind: open, hidden_dim: 3", ["method.gate.hidden_dim", "unknown key", "Valid: kind."]),
        ("{source: digits}", "{source: mnist}", ["data.source", "'mnist'", "digits, parquet"]),
        ("{source: digits}", "{source: parquet}", ["data.train", "is required"]),
        ("epochs: 3", 'epochs: "3"', ["train.epochs", "valid integer", "'3'"]),
        ("epochs: 3", "epochs: 0", ["train.epochs", "greater than or equal to 1"]),
        ("epochs: 3", "epochs: .nan", ["train.epochs"]),
        ("name: x", "nam: x", ["nam: unknown key", "did you mean 'name'"]),
        ("lr: 1e-3", "lr: 1e-3, lr: 2", ["'lr' is given twice", "line 5"]),
        ("lr: 1e-3", "lr: [1", ["not valid YAML", "line"]),
    ],
)
def test_wrong_input(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        load_experiment(path)
    for word in [str(path), *words]:
        assert word in str(raised.value)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"no such file.*Valid: x.yaml"):
        load_experiment(tmp_path / "y.yaml")


def test_yaml_is_version_1_2() -> None:
    tree = yaml.parse("{a: 1e-3, b: on, c: off, d: yes, e: 010, f: 0o10, g: .5, h: ~, i: 1_000, j: true}")
    assert tree == {
        "a": 1e-3, "b": "on", "c": "off", "d": "yes", "e": 10, "f": 8, "g": 0.5, "h": None, "i": "1_000", "j": True,
    }  # fmt: skip


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**6), 10**6)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_dump_and_parse_are_inverse(tree: object) -> None:
    assert yaml.parse(yaml.dump(tree)) == tree


def test_override_changes_and_validates(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, GOOD), ["optim.lr=3e-2", "backbone.kwargs.widths=[4, 8]"])
    assert experiment.optim.lr == 0.03
    assert experiment.backbone.kwargs == {"widths": [4, 8]}


def test_override_of_a_kind_replaces_the_node(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("kind: sigmoid", "kind: gumbel, hard: true, hidden_dim: 7"))
    assert load_experiment(path, ["method.gate.kind=open"]).method.gate.model_dump() == {"kind": "open"}
    again = load_experiment(path, ["method.gate.kind=gumbel"]).method.gate
    assert again.model_dump()["hidden_dim"] == 7, "the same kind keeps its settings"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("method.gat.kind=open", ["method.gat.kind", "'gat'", "did you mean 'gate'"]),
        ("seed.x=1", ["seed.x", "plain value"]),
        ("optim.lr", ["written a.b=value"]),
        ("train.epochs=-1", ["train.epochs", "-1"]),
    ],
)
def test_wrong_override(tmp_path: Path, change: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_experiment(write(tmp_path, GOOD), [change])
    for word in words:
        assert word in str(raised.value)


def test_precision_is_resolved_from_the_file() -> None:
    experiment = validate(Experiment, {"name": "x", "data": {"source": "digits"}})
    assert experiment.precision == "fp32"
    assert override(experiment, [("resources.gpus_per_worker", 0.5)]).precision == "bf16"
    assert override(experiment, [("train.precision", "bf16")]).precision == "bf16"
