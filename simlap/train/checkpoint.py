"""Checkpoints: safetensors and JSON, the checksum manifest last. A checkpoint without a valid manifest does not exist."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from simlap.errors import UserError
from simlap.storage import Storage
from simlap.train import manifest

SCHEMA_VERSION = 1
_log = logging.getLogger("simlap.checkpoint")


class CheckpointError(UserError):
    """A run has been saved, and no checkpoint of it can be read any more: it would begin anew without a word."""


@dataclass(frozen=True)
class Checkpoint:
    """The whole training state between two steps."""

    epoch: int
    """Finished epochs."""
    step: int
    """Finished steps of the epoch under way (0 between epochs)."""
    model: dict[str, Tensor]
    """The method's tensors, and below `ema.` those of its moving average, where there is one."""
    optimizer: dict[str, Tensor]
    """`<parameter number>.<state name>`, see `optimizer_tensors`."""
    state: dict[str, Any]
    """Everything else, as JSON: running sums, optimiser groups, the experiment, the input the backbone is made for."""
    path: str = ""
    """Folder inside the store, where it was saved."""
    sha256: str = ""
    """Checksum of the model's tensors."""


class CheckpointStore:
    """The `checkpoints/` folder of one run."""

    def __init__(self, storage: Storage, *, keep: int = 2, attempt: int = 1, was_saved: bool = False) -> None:
        """Args:
        storage: the folder.
        keep: so many of the newest stay.
        attempt: that writes.
        was_saved: known from elsewhere that there was a complete one.
        """
        self.storage, self.keep, self.attempt, self.was_saved = storage, keep, attempt, was_saved
        self.damaged: dict[str, str] = {}
        """Checkpoints that `newest` has passed over, and why."""
        self._is_marked = False

    def save(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write it, then delete all but the newest `keep`. Returns it with its path and checksum."""
        path = f"epoch-{checkpoint.epoch:05d}-step-{checkpoint.step:07d}-attempt-{self.attempt:04d}"
        files = {
            "model.safetensors": save_tensors({k: v.detach().cpu().contiguous() for k, v in checkpoint.model.items()}),
            "optimizer.safetensors": save_tensors(
                {k: v.detach().cpu().contiguous() for k, v in checkpoint.optimizer.items()}
            ),
            "state.json": json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "epoch": checkpoint.epoch,
                    "step": checkpoint.step,
                    **checkpoint.state,
                },
                allow_nan=True,
            ).encode(),
        }
        for name, data in files.items():
            self.storage.write(f"{path}/{name}", data)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        self.storage.write(f"{path}/manifest.json", manifest.manifest(sums))
        if not self._is_marked:
            self._is_marked = self.storage.exists(manifest.SAVED)
        if not self._is_marked:
            self.storage.write_json(manifest.SAVED, {"schema_version": SCHEMA_VERSION, "first": path})
            self._is_marked = True
        complete = [
            name for name in self.names() if name not in self.damaged and self.storage.exists(f"{name}/manifest.json")
        ]
        for old in set(self.names()) - set(complete[: self.keep]) - {path}:
            self.storage.delete(old)
        return _placed(checkpoint, path, sums["model.safetensors"])

    def names(self) -> list[str]:
        """Folders of all checkpoints, newest first, valid or not."""
        return manifest.names(self.storage)

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, loudly if it is not the newest one; None where none was ever complete.

        Raises CheckpointError where some were, and none is valid.
        """
        names = self.names()
        for name in names:
            try:
                found = self.load(name)
            except manifest.DAMAGED as error:  # trouble of the storage is not mended by an older checkpoint
                self.damaged[name] = why = manifest.why(error)
                _log.warning("checkpoint %s is not valid (%s), trying the one before", self.storage.describe(name), why)
            else:
                return found
        marked = self.was_saved or self.storage.exists(manifest.SAVED)
        if marked or any(self.storage.exists(f"{name}/manifest.json") for name in names):
            raise CheckpointError(self._lost(names))
        return None

    def load(self, name: str) -> Checkpoint:
        """Read and verify one. Raises `manifest.DAMAGED` where it is not as it was written."""
        files, sums = manifest.read_verified(self.storage, name)
        state = json.loads(files["state.json"])
        del state["schema_version"]
        epoch, step = state.pop("epoch"), state.pop("step")
        # a copy that somebody has put elsewhere may have any name
        if manifest.NAME.match(name) and not name.startswith(f"epoch-{epoch:05d}-step-{step:07d}-"):
            raise ValueError(f"it holds epoch {epoch}, step {step}: it is another one's copy")
        return Checkpoint(
            epoch=epoch,
            step=step,
            model=load_tensors(files["model.safetensors"]),
            optimizer=load_tensors(files["optimizer.safetensors"]),
            state=state,
            path=name,
            sha256=sums["model.safetensors"],
        )

    def _lost(self, names: list[str]) -> str:
        found = "; ".join(f"{name}: {self.damaged[name]}" for name in names) or "there is none any more"
        return (
            f"{self.storage.describe()}: the run was saved here, and no checkpoint is valid ({found}). It does not begin "
            "anew by itself: bring a checkpoint back from a copy, or delete the run directory above to train it from the start"
        )


def _placed(checkpoint: Checkpoint, path: str, sha256: str) -> Checkpoint:
    return Checkpoint(
        checkpoint.epoch, checkpoint.step, checkpoint.model, checkpoint.optimizer, checkpoint.state, path, sha256
    )


def find_checkpoint(path: str) -> Checkpoint | None:
    """The checkpoint of a run directory (its result's, or the newest), or the one that `path` is; None where it is neither.

    Raises UserError where it is damaged, or the run has none yet.
    """
    inside = children(path)
    if "result.json" in inside:
        folder = Storage(path)
        path = folder.child(*folder.read_json("result.json")["checkpoint"]["path"].split("/")).uri
    elif "checkpoints" in inside:
        newest = CheckpointStore(Storage(path).child("checkpoints")).newest()  # raises CheckpointError, a UserError
        if newest is None:
            raise UserError("the run has no finished checkpoint", file=path)
        return newest
    elif "manifest.json" not in inside:
        return None
    above, name = split_path(path)
    try:
        return CheckpointStore(Storage(above)).load(name)
    except manifest.DAMAGED as error:
        raise UserError(f"the checkpoint is not valid: {error}", file=path) from error


def children(path: str) -> list[str]:
    """Names in a folder; empty where there is none, or a file."""
    try:
        return Storage(path).list()
    except NotADirectoryError:
        return []


def split_path(path: str) -> tuple[str, str]:
    """The folder, as `Storage` takes it, and the name in it."""
    base, mark, query = path.partition("?") if "://" in path else (path, "", "")
    above, slash, name = base.rstrip("/").rpartition("/")
    return (above or slash or ".") + mark + query, name


def optimizer_tensors(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state dict into named tensors and a JSON-able rest, which says where tensors inside it belong."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, entry in state_dict["state"].items():
        for name, value in entry.items():
            key = f"{number}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                plain[key] = _encode(value, f"$state/{number}/{_part(name)}", tensors)
    rest = {
        "optimizer_plain": plain,
        "optimizer_groups": _encode(state_dict["param_groups"], "$groups", tensors),
        # some optimisers keep more, such as the state of a generator
        "optimizer_extra": {
            name: _encode(value, f"$extra/{_part(name)}", tensors)
            for name, value in state_dict.items()
            if name not in ("state", "param_groups")
        },
    }
    return tensors, rest


def optimizer_state_dict(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The state dict that `optimizer_tensors` split."""
    tensors = dict(tensors)
    plain = {key: _decode(value, tensors) for key, value in rest["optimizer_plain"].items()}
    groups = _decode(rest["optimizer_groups"], tensors)
    extra = {name: _decode(value, tensors) for name, value in rest.get("optimizer_extra", {}).items()}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain}.items():  # tensors that nothing took are state themselves
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": groups, **extra}


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """As JSON, tensors moved to `tensors` under their place, a JSON pointer. What JSON lacks is a mapping with one key that
    begins with a dollar."""
    match value:
        case Tensor():
            tensors[place] = value
            return {"$tensor": place}
        case torch.dtype():
            return {"$dtype": str(value).removeprefix("torch.")}
        case tuple():
            return {"$tuple": [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]}
        case list():
            return [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        case dict():
            return {name: _encode(item, f"{place}/{_part(name)}", tensors) for name, item in value.items()}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{place} of the optimiser is a {type(value).__name__}, which a checkpoint cannot hold")


def _part(name: str) -> str:
    """A name as a part of a JSON pointer (RFC 6901): no two places are written alike."""
    return name.replace("~", "~0").replace("/", "~1")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `_encode` was given; its tensors are taken out of `tensors`."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$tensor": place, **rest} if not rest:
            return tensors.pop(place)
        case {"$dtype": name, **rest} if not rest:
            return getattr(torch, name)
        case {"$tuple": items, **rest} if not rest:
            return tuple(_decode(item, tensors) for item in items)
    return {name: _decode(item, tensors) for name, item in value.items()}
