"""What a plug-in may be wrong in, and who is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simlap.config import Experiment, cell_id, load_experiment, override, validate, yaml
from simlap.config.schema import GatePlugin, SigmoidGate, SimLAP
from simlap.errors import ConfigError
from simlap.train.check import check_experiment
from tests.packages import install, install_documented, refresh
from tests.tiny import TREE, tiny

SETTINGS = """
from typing import ClassVar, Literal
from simlap.config import GatePlugin

class Half(GatePlugin):
    implementation: ClassVar[str] = "half.gate:HalfFilter"
    kind: Literal["half"]
    sizes: tuple[int, int] = (1, 2)
"""
GATE = """
import torch
from simlap.nn import FeatureFilter, GateOutput

class HalfFilter(FeatureFilter):
    def __init__(self, settings, num_classes, embed_dim):
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, labels, pair_labels, noise=None, pairs=None):
        return GateOutput(torch.full((len(labels), self.embed_dim), 0.5), torch.zeros(()))
"""
HALF = {"kind": "half"}


def install_half(
    site: Path, settings: str = SETTINGS, gate: str = GATE, name: str = "half", entry: str = "half.settings:Half",
    kind: str = "half", version: str = "1.0",
) -> None:  # fmt: skip
    files = {f"{name}/__init__.py": "", f"{name}/settings.py": settings, f"{name}/gate.py": gate}
    install(site, name, files, {"simlap.gates": {kind: entry}}, version)
    refresh(site)


def gate_of(tree: dict[str, Any]) -> Any:
    experiment = tiny(method__gate=tree)
    assert isinstance(experiment.method, SimLAP)
    return experiment.method.gate


def test_settings_are_as_strict_as_simlaps_own(site: Path) -> None:
    install_half(site)
    gate = gate_of({"kind": "half", "sizes": [3, 4]})
    assert isinstance(gate, GatePlugin)
    assert gate.model_dump(mode="json") == {"kind": "half", "sizes": [3, 4]}
    with pytest.raises(ConfigError, match=r"method\.gate\.siezs: unknown key; did you mean 'sizes'"):
        gate_of({"kind": "half", "siezs": [3, 4]})
    with pytest.raises(ConfigError, match=r"method\.gate\.sizes\.0: .*valid integer.*got 'x'"):
        gate_of({"kind": "half", "sizes": ["x", 4]})


def test_an_experiment_travels_as_plain_values(site: Path) -> None:
    install_documented(site)
    refresh(site)
    experiment = tiny(method={"kind": "simlap", "gate": {"kind": "band", "width": 0.25}})
    assert validate(Experiment, experiment.model_dump(mode="json")) == experiment
    assert experiment.model_dump(mode="json")["method"]["gate"] == {"kind": "band", "width": 0.25}
    changed = override(experiment, [("method.gate.width", 0.5)])
    assert validate(Experiment, yaml.parse(yaml.dump(changed.model_dump(mode="json")))) == changed
    back = override(changed, [("method.gate.kind", "sigmoid")])
    assert isinstance(back.method, SimLAP)
    assert back.method.gate == SigmoidGate(kind="sigmoid")


def test_an_unknown_kind_names_all_that_there_are(site: Path, tmp_path: Path) -> None:
    install_half(site)
    install(site, "broken", {"broken.py": "raise RuntimeError('boom')"}, {"simlap.gates": {"broken": "broken:Gate"}})
    refresh(site)
    file = tmp_path / "x.yaml"
    file.write_text(yaml.dump({**TREE, "method": {"kind": "simlap", "gate": {"kind": "halff"}}}))
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    text = str(caught.value)
    assert f"{file}: method.gate.kind: not a valid kind (got 'halff'); did you mean 'half'?" in text
    assert "Valid: open, sigmoid, product, gumbel, stochastic, sign, broken, half." in text


def test_a_broken_one_stops_nobody_else(site: Path) -> None:
    install(site, "broken", {"broken.py": "raise RuntimeError('boom')"}, {"simlap.gates": {"broken": "broken:Gate"}})
    install_half(site)
    gate_of(HALF)
    gate_of({"kind": "sigmoid"})
    with pytest.raises(ConfigError) as caught:
        gate_of({"kind": "broken"})
    assert (
        "method.gate.kind: the plug-in broken 1.0 (broken = broken:Gate) cannot be imported: RuntimeError: boom"
        in str(caught.value)
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(GatePlugin)", "", "must name a subclass of simlap.config.GatePlugin, not <class 'half.settings.Half'>"),
        ('Literal["half"]', 'Literal["whole"]', "must declare `kind: Literal['half']` in half.settings.Half"),
        ('    kind: Literal["half"]\n', "", "must declare `kind: Literal['half']`"),
        ('    implementation: ClassVar[str] = "half.gate:HalfFilter"\n', "", "must set `implementation: ClassVar[str] ="),
        ("half.gate:HalfFilter", "half.gate", "must set `implementation: ClassVar[str] ="),
        ("sizes: tuple", "model_config = {'extra': 'ignore'}\n    sizes: tuple", "must leave model_config['extra']"),
        ("class Half", "class Quarter", "cannot be imported: AttributeError: module 'half.settings' has no attribute 'Half'"),
    ],
)  # fmt: skip
def test_settings_that_break_the_contract(site: Path, old: str, new: str, reason: str) -> None:
    install_half(site, SETTINGS.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        gate_of(HALF)
    assert "method.gate.kind: the plug-in half 1.0 (half = half.settings:Half) " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("import torch\n", "import torch, nonesuch\n", "cannot be imported: ModuleNotFoundError: No module named 'nonesuch'"),
        ("class HalfFilter", "class Other", "cannot be imported: AttributeError"),
        ("(FeatureFilter)", "(torch.nn.Module)", "is no subclass of simlap.nn.gate.FeatureFilter"),
        ("def forward", "def backward", "lacks forward"),
        ("settings, num_classes", "num_classes", "fails on 4 rows: TypeError"),
        ("(len(labels), self.embed_dim)", "(self.embed_dim,)", "must give gates of shape [b, D] = [4, 8], not [8]"),
        ("0.5)", "1.5)", "must give gates in [0, 1]"),
        (", torch.zeros(()))", ", torch.zeros(2))", "must give a scalar as regulariser, not a tensor of shape [2]"),
        ("return GateOutput(", "return tuple((", "must give a simlap.nn.GateOutput, not tuple"),
    ],
)  # fmt: skip
def test_implementations_that_break_the_contract(site: Path, old: str, new: str, reason: str) -> None:
    gate = GATE.replace(old, new)
    assert gate != GATE
    if new.startswith("return tuple"):
        gate = gate.replace("torch.zeros(()))", "torch.zeros(())))")
    install_half(site, gate=gate)
    with pytest.raises(ConfigError) as caught:
        check_experiment(tiny(method__gate=HALF), file="x.yaml")
    assert "x.yaml: method.gate.kind: half.gate:HalfFilter of half 1.0 (half = half.settings:Half) " in str(
        caught.value
    )
    assert reason in str(caught.value)


def test_a_method_without_its_parts(site: Path) -> None:
    settings = SETTINGS.replace("GatePlugin", "MethodPlugin")
    gate = GATE.replace("simlap.nn import FeatureFilter, GateOutput", "simlap.methods import Method as FeatureFilter")
    files = {"half/__init__.py": "", "half/settings.py": settings, "half/gate.py": gate}
    install(site, "half", files, {"simlap.methods": {"half": "half.settings:Half"}})
    refresh(site)
    with pytest.raises(
        ConfigError, match=r"method\.kind: half\.gate:HalfFilter of half 1\.0 .* lacks criterion, logits"
    ):
        check_experiment(tiny(method=HALF), file="x.yaml")
    with pytest.raises(ConfigError, match=r"there are no gates with method\.kind: half"):
        tiny(method=HALF, evaluate=[{"kind": "gates"}])


def test_clashes(site: Path) -> None:
    install_half(site)
    install_half(site, SETTINGS.replace("half.gate", "other.gate"), name="other", entry="other.settings:Half")
    install_half(site, SETTINGS, name="third", entry="third.settings:Half", kind="sigmoid")
    with pytest.raises(ConfigError, match=r"is brought along by several packages, of which one has to go: .*half 1\.0"):
        gate_of(HALF)
    with pytest.raises(
        ConfigError, match=r"is a kind of simlap's own, and of third 1\.0 \(sigmoid = third\.settings:Half\) too"
    ):
        gate_of({"kind": "sigmoid"})
    gate_of({"kind": "open"})


def test_the_package_and_its_version_are_part_of_the_id(site: Path, tmp_path: Path) -> None:
    plain = cell_id(tiny(), "fingerprint")
    install_half(site)
    first = cell_id(tiny(method__gate=HALF), "fingerprint")
    assert cell_id(tiny(), "fingerprint") == plain
    assert cell_id(tiny(method__gate={"kind": "half", "sizes": [1, 2]}), "fingerprint") == first
    for info in site.glob("half-*.dist-info"):
        info.rename(tmp_path / "away")
    install_half(site, version="1.1")
    assert cell_id(tiny(method__gate=HALF), "fingerprint") != first
