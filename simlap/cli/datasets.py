"""Datasets as the command line names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from simlap.errors import ConfigError

if TYPE_CHECKING:
    from simlap.config.schema import Data


def takes_root(source: str) -> bool:
    """Whether it is the name of a dataset that torchvision keeps in a folder."""
    from simlap.config.schema.data import TorchvisionName

    return source in get_args(TorchvisionName)


def named_data(source: str, root: str | None = None, changes: Sequence[str] = ()) -> tuple[str, Data]:
    """Name and data section of what a user calls a dataset. Raises ConfigError.

    Args:
        source: an experiment file, the name of a dataset, or a folder that holds image folders `train` and `test` (or `val`).
        root: folder of torchvision's datasets; None where the source is something else.
        changes: `data.a=value`, applied to it.
    """
    from simlap.config import Experiment, load_experiment, override, parse_override, validate
    from simlap.config.schema.data import TorchvisionName

    if root is not None and not takes_root(source):
        raise ConfigError("is for torchvision's datasets, and " + source + " is none of them", key="--root", value=root)
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _plain(path.stem), load_experiment(path, changes).data
    names = ["digits", *get_args(TorchvisionName)]
    if source in names:
        tree: dict[str, Any] = {"source": source}
        if root is not None:
            tree["root"] = root
    elif path.is_dir():
        tree = _image_folders(path)
    else:
        raise ConfigError(
            "neither an experiment file (.yaml), nor a folder, nor the name of a dataset", value=source, choices=names
        )
    experiment = validate(Experiment, {"name": source, "data": tree}, file=source)
    changed = override(experiment, [parse_override(change) for change in changes], file="command line", where="--set")
    return _plain(path.name), changed.data


def _image_folders(path: Path) -> dict[str, Any]:
    test = next((name for name in ("test", "val") if (path / name).is_dir()), None)
    if test is None or not (path / "train").is_dir():
        raise ConfigError(
            "a folder of images holds the folders train and test (or val), with a folder per class in each; describe "
            "other datasets in an experiment file",
            file=str(path),
        )
    return {"source": "folder", "train": str(path / "train"), "test": str(path / test)}


def _plain(name: str) -> str:
    """A name that can be part of a metric's name."""
    return "".join(char if char.isalnum() or char in "_-" else "_" for char in name)
