"""Weights that a backbone starts from: every format, prefixes, strict fit, and no code run from a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from simlap.errors import ConfigError
from simlap.nn.backbone import Conv3
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, CheckpointStore
from simlap.train.weights import backbone_of, fingerprint, fitting, load_backbone, read_backbone, weights_fingerprint

WEIGHTS = {"0.weight": torch.arange(6.0).view(2, 3), "1.bias": torch.ones(2)}


def prefixed(prefix: str, tensors: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor] = WEIGHTS) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def run(folder: Path, *, ema: bool = False, finished: bool = True) -> Path:
    """A run directory with two checkpoints."""
    storage = Storage(folder)
    store = CheckpointStore(storage.child("checkpoints"))
    old = {name: torch.zeros_like(value) for name, value in WEIGHTS.items()}
    model = {**prefixed("backbone."), "probe.weight": torch.ones(1)}
    if ema:
        model = {**prefixed("backbone.", old), **prefixed("ema.backbone."), "ema.probe.weight": torch.ones(1)}
    store.save(Checkpoint(1, 0, prefixed("backbone.", old), {}, {"sums": []}))
    last = store.save(Checkpoint(2, 0, model, {}, {"sums": []}))
    if finished:
        storage.write_json("result.json", {"checkpoint": {"path": f"checkpoints/{last.path}", "sha256": last.sha256}})
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".ckpt"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path)
    assert same(read_backbone(str(path)))


@pytest.mark.parametrize("nesting", [["model"], ["state_dict"], ["model_state"], ["state_dict", "model"]])
def test_state_dicts_inside_of_what_training_programs_save(tmp_path: Path, nesting: list[str]) -> None:
    content: Any = prefixed("module.")
    for name in nesting:
        content = {name: content, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "a.pth")
    assert same(read_backbone(str(tmp_path / "a.pth"), "module."))


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_own_runs_and_checkpoints(tmp_path: Path, ema: bool, finished: bool) -> None:
    folder = run(tmp_path / "run", ema=ema, finished=finished)
    newest = CheckpointStore(Storage(folder / "checkpoints")).names()[0]
    for path in (folder, folder / "checkpoints" / newest, folder / "checkpoints" / newest / "model.safetensors"):
        assert same(read_backbone(str(path))), path
        assert same(read_backbone(f"{path}/")), path


def test_the_running_model_where_its_prefix_is_asked_for(tmp_path: Path) -> None:
    found = read_backbone(str(run(tmp_path, ema=True)), "backbone.")
    assert not found["0.weight"].any()


def test_the_result_counts_not_the_newest(tmp_path: Path) -> None:
    folder = run(tmp_path)
    CheckpointStore(Storage(folder / "checkpoints")).save(
        Checkpoint(3, 0, prefixed("backbone.", {"x": torch.ones(1)}), {}, {})
    )
    assert same(read_backbone(str(folder)))


def test_an_export(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(read_backbone(str(tmp_path)))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["SIMLAP_TEST_HARM"],)


def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMLAP_TEST_HARM", str(tmp_path / "harm"))
    torch.save({"model": WEIGHTS, "args": Harmful()}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="could run code when read; it is not read") as raised:
        read_backbone(str(tmp_path / "a.pth"))
    assert (raised.value.key, raised.value.value) == ("backbone.weights", str(tmp_path / "a.pth"))
    assert not (tmp_path / "harm").exists()


def refused(path: Path, prefix: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        read_backbone(str(path), prefix)
    return raised.value


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such file or folder" in str(refused(tmp_path / "missing.pth"))
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    (tmp_path / "a.txt").write_bytes(b"nonsense")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    assert "no valid safetensors" in str(refused(tmp_path / "a.safetensors"))
    assert refused(tmp_path / "a.txt").choices[0] == ".safetensors"
    for name in ("list.pth", "numbers.pth"):
        assert "holds no tensors by name" in str(refused(tmp_path / name))
    error = refused(tmp_path / "a.pth")
    assert (error.key, error.value) == ("backbone.weights", str(tmp_path / "a.pth"))
    error = refused(tmp_path)
    assert "a.safetensors" in error.choices
    assert "name a file in it" in str(error)


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    folder = run(tmp_path)
    newest = CheckpointStore(Storage(folder / "checkpoints")).names()[0]
    (folder / "checkpoints" / newest / "model.safetensors").write_bytes(b"damaged")
    error = refused(folder)
    assert "is not valid" in str(error)
    assert error.key == "backbone.weights"
    (folder / "result.json").unlink()
    assert not read_backbone(str(folder))["0.weight"].any(), "the one before, as a resumed run takes"


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert "no finished checkpoint" in str(refused(tmp_path))


def test_prefixes_that_are_there_are_named(tmp_path: Path) -> None:
    save_file({**prefixed("module.encoder."), "module.head.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    error = refused(tmp_path / "a.safetensors", "module.encodr.")
    assert (error.key, error.value) == ("backbone.key_prefix", "module.encodr.")
    assert error.choices == ("module.", "module.encoder.", "module.head.")
    assert "did you mean 'module.encoder.'" in str(error)


# --- fitting ---------------------------------------------------------------------------------------------------------


def unfit(backbone: nn.Module, tensors: dict[str, Tensor]) -> str:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ConfigError) as raised:
        load_backbone(backbone, tensors, source="here.pth")
    assert same(backbone.state_dict(), before), "nothing was loaded"
    assert raised.value.key == "backbone.weights"
    assert "here.pth" in str(raised.value)
    return str(raised.value)


def test_all_or_nothing() -> None:
    backbone = Conv3(1, (4, 6))
    other = Conv3(1, (4, 6)).state_dict()
    load_backbone(backbone, other)
    assert same(backbone.state_dict(), other)
    short = {name: value for name, value in other.items() if not name.startswith("1.")}
    assert "4 missing (1.weight, 1.bias, 1.running_mean, ...)" in unfit(backbone, short)
    assert "1 unexpected (9.weight)" in unfit(backbone, {**other, "9.weight": torch.ones(1)})
    assert "1 of another shape (0.weight (4, 3, 3, 3) instead of (4, 1, 3, 3))" in unfit(
        backbone, {**other, "0.weight": torch.ones(4, 3, 3, 3)}
    )
    assert "is backbone.key_prefix 'net.'?" in unfit(backbone, prefixed("net.", other))


def test_old_batch_norms_need_not_count_their_batches() -> None:
    backbone, other = Conv3(1, (4,)), Conv3(1, (4,)).state_dict()
    del other["1.num_batches_tracked"]
    load_backbone(backbone, other)
    assert torch.equal(backbone.state_dict()["0.weight"], other["0.weight"])


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_published_classifiers_are_left_out_and_said_so(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        published = timm.create_model(name, num_classes=7).state_dict()
        backbone = timm.create_model(name, num_classes=0)
    with caplog.at_level(logging.INFO, "simlap.weights"):
        used = fitting(backbone, published)
    assert used.keys() == backbone.state_dict().keys()
    assert "left out the classifier" in caplog.text
    assert len(published) - len(used) == 2


def test_backbone_of() -> None:
    assert same(backbone_of({**prefixed("backbone."), "probe.weight": torch.ones(1)}))
    assert backbone_of({"probe.weight": torch.ones(1)}) == {}


# --- fingerprint -----------------------------------------------------------------------------------------------------


@given(st.randoms(use_true_random=False))
def test_the_fingerprint_knows_names_shapes_and_values_only(random: Any) -> None:
    names = list(WEIGHTS)
    random.shuffle(names)
    whole = fingerprint(WEIGHTS)
    assert fingerprint({name: WEIGHTS[name].clone() for name in names}) == whole
    name = random.choice(names)
    changed = WEIGHTS[name].clone()
    changed.view(-1)[random.randrange(changed.numel())] += 1
    for other in (changed, WEIGHTS[name].double(), WEIGHTS[name][None]):
        assert fingerprint({**WEIGHTS, name: other}) != whole
    assert fingerprint(prefixed("x.")) != whole


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    save_file(prefixed("net."), tmp_path / "a.safetensors")
    torch.save({"model": prefixed("net.")}, tmp_path / "b.pth")
    assert weights_fingerprint(str(tmp_path / "a.safetensors"), "net.") == fingerprint(WEIGHTS)
    assert weights_fingerprint(str(tmp_path / "b.pth"), "net.") == fingerprint(WEIGHTS)
    assert weights_fingerprint(str(run(tmp_path / "run"))) == fingerprint(WEIGHTS)


def test_half_precision_and_scalars_have_fingerprints() -> None:
    assert len(fingerprint({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3)})) == 16
