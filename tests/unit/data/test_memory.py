from __future__ import annotations

import sys
from pathlib import Path

import pytest

from simlap.config.schema import DigitsData
from simlap.data import load_splits, memory
from simlap.data.memory import available_memory, check_memory
from simlap.errors import DataError


def test_what_does_not_fit_is_said_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 3_000_000_000)
    check_memory(15_000_000, 2, 10, key="data.image_size")
    with pytest.raises(DataError) as caught:
        check_memory(1_331_167, 3, 224, key="data.image_size")
    assert caught.value.key == "data.image_size"
    for part in ("1,331,167 images", "3 x 224 x 224", "200.4 GB", "3.0 GB", "data.stored_size", "data.fraction"):
        assert part in str(caught.value)


def test_loading_counts_what_it_will_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    need = 1797 * 16 * 16
    monkeypatch.setattr(memory, "available_memory", lambda: need)
    data = DigitsData(source="digits", image_size=8, stored_size=16)
    load_splits(data)
    with pytest.raises(DataError, match=r"data\.stored_size"):  # grey and colour images at once
        load_splits(data, channels=3)
    monkeypatch.setattr(memory, "available_memory", lambda: need - 1)
    with pytest.raises(DataError, match=r"data\.stored_size"):
        load_splits(data)
    load_splits(data.model_copy(update={"fraction": 0.9}))
    load_splits(data.model_copy(update={"classes": (1, 2, 3)}))


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 300\nfile 500\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._container_memory(tmp_path, 9999) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_memory(tmp_path, 9999) == 9999
    (tmp_path / "memory.max").write_text("200\n")
    assert memory._container_memory(tmp_path, 9999) == 0
    assert memory._container_memory(tmp_path / "none", 9999) == 9999


def test_without_psutil_the_whole_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    total = psutil.virtual_memory().total
    assert 0 < available_memory() <= total
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(memory, "_CGROUP", Path("/nonexistent"))
    assert available_memory() == pytest.approx(total, rel=0.01)
