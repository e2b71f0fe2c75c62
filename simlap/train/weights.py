"""Weights that a backbone starts from: read without running code from the file, and fitted strictly."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from simlap.errors import ConfigError, UserError
from simlap.storage import Storage
from simlap.train.checkpoint import children, find_checkpoint, split_path

EMA_PREFIX = "ema."
"""Of the moving average's names in a checkpoint's `model.safetensors`."""
KEY = "backbone.weights"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_NESTED = ("model_state", "state_dict", "model")
_CLASSIFIERS = ("fc", "head", "classifier", "head.fc", "head_dist", "fc_norm")
_log = logging.getLogger("simlap.weights")


def read_backbone(path: str, prefix: str = "") -> dict[str, Tensor]:
    """A backbone's tensors, by their names inside it.

    Args:
        path: a `.safetensors` file, or one that `torch.load(weights_only=True)` reads; a run directory of simlap, one of
            its checkpoints, or what `simlap export` wrote. Any URI that the storage takes.
        prefix: names begin with it, all others are left out. Without it, checkpoints of simlap give their backbone (the
            moving average's, where there is one), other files everything.

    Raises:
        ConfigError: names `backbone.weights` (`backbone.key_prefix` where nothing has the prefix; choices: those there are).
    """
    tensors = _read(path)
    if not prefix:
        return backbone_of(tensors) or tensors
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not found:
        raise ConfigError(
            f"no tensor in {path} has a name that begins so", key="backbone.key_prefix", value=prefix,
            choices=_prefixes(tensors),
        )  # fmt: skip
    return found


def backbone_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors in a method's (a checkpoint's `model.safetensors`): the moving average's, where there is one."""
    for prefix in (f"{EMA_PREFIX}backbone.", "backbone."):
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    return {}


def weights_fingerprint(path: str, prefix: str = "") -> str:
    """SHA-256 (16 hex digits) of names, types, shapes and bytes of what `read_backbone` gives. Raises ConfigError."""
    return fingerprint(read_backbone(path, prefix))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) of names, types, shapes and bytes, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_backbone(backbone: nn.Module, tensors: Mapping[str, Tensor], *, key: str = KEY, source: str = "") -> None:
    """Load all of a backbone's tensors, or raise.

    A classifier's tensors that the backbone has no place for are left out, with a word in the log.

    Args:
        backbone: loaded in place.
        tensors: by name inside it.
        key: named in errors: `backbone.weights` or `pretrain`.
        source: the file or run, named in errors.

    Raises:
        ConfigError: tensors are missing, unexpected or of another shape.
    """
    backbone.load_state_dict(fitting(backbone, tensors, key=key, source=source), strict=False)


def fitting(
    backbone: nn.Module, tensors: Mapping[str, Tensor], *, key: str = KEY, source: str = ""
) -> dict[str, Tensor]:
    """What `load_backbone` would load. Looks at names and shapes only, so the backbone may be on the meta device."""
    own = backbone.state_dict()
    classifier = [name for name in tensors if name not in own and _is_classifier(backbone, name)]
    used = {name: value for name, value in tensors.items() if name not in classifier}
    # batch norms of old files do not count their batches, and nothing depends on it
    missing = [name for name in own if name not in used and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in used if name not in own]
    shapes = [
        f"{name} {tuple(used[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in used and used[name].shape != value.shape
    ]
    trouble = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if trouble:
        hint = _prefix_hint(missing, unexpected)
        where = f" in {source}" if source else ""
        raise ConfigError(f"tensors{where} do not fit the backbone: {'; '.join(trouble)}{hint}", key=key)
    if classifier:
        _log.info("%s: left out the classifier (%s)", source or key, ", ".join(classifier))
    return used


def _is_classifier(backbone: nn.Module, name: str) -> bool:
    """Whether a tensor belongs to a classifier, as timm names it for this model or as models commonly do."""
    config = getattr(backbone, "pretrained_cfg", None)
    known = config.get("classifier") if isinstance(config, dict) else getattr(config, "classifier", None)
    names = (known,) if isinstance(known, str) else tuple(known or _CLASSIFIERS)
    return any(name in (f"{module}.weight", f"{module}.bias") for module in names)


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    for name in unexpected:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                return f"; is backbone.key_prefix {name.removesuffix(wanted)!r}?"
    return ""


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Beginnings of the names, up to the first and the second dot."""
    found = {
        ".".join(name.split(".")[:depth]) + "." for name in tensors for depth in (1, 2) if name.count(".") >= depth
    }
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))[:12]


def _read(path: str) -> dict[str, Tensor]:
    """All tensors of a file, a run, a checkpoint or an export."""
    try:
        checkpoint = find_checkpoint(path)
    except UserError as error:
        raise ConfigError(error.message, key=KEY, value=path) from error
    if checkpoint is not None:
        return checkpoint.model
    inside = children(path)
    if "model.safetensors" in inside:
        return _read_file(Storage(path).child("model.safetensors").uri)
    if inside:
        raise ConfigError(
            "is no run of simlap, no checkpoint and no export; name a file in it",
            key=KEY,
            value=path,
            choices=inside[:12],
        )
    return _read_file(path)


def _read_file(path: str) -> dict[str, Tensor]:
    above, name = split_path(path)
    try:
        data = Storage(above).read(name)
    except OSError as error:
        reason = "no such file or folder" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ConfigError(reason, key=KEY, value=path) from error
    if name.endswith(".safetensors"):
        try:
            return load_tensors(data)
        except SafetensorError as error:
            raise ConfigError(f"is no valid safetensors file: {error}", key=KEY, value=path) from error
    if not name.endswith(_PICKLES):
        raise ConfigError(
            "the file's name does not say its format", key=KEY, value=path, choices=[".safetensors", *_PICKLES]
        )
    try:
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except pickle.UnpicklingError as error:
        raise ConfigError(
            "holds more than tensors and plain values, which could run code when read; it is not read. Where you trust "
            "it, save its state_dict() alone, as .safetensors",
            key=KEY,
            value=path,
        ) from error
    except Exception as error:  # torch answers damaged files with errors of every type
        raise ConfigError(f"cannot be read: {type(error).__name__}: {error}", key=KEY, value=path) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: str) -> dict[str, Tensor]:
    """The tensors by name, found under the names that training programs save a model's state under."""
    while isinstance(content, Mapping):
        nested = next((name for name in _NESTED if isinstance(content.get(name), Mapping)), None)
        if nested is None:
            tensors = {name: v for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)}
            if tensors:
                return tensors
            break
        content = content[nested]
    raise ConfigError("holds no tensors by name", key=KEY, value=path)
