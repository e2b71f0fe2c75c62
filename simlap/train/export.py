"""A trained backbone as a folder that timm loads: safetensors and timm's `config.json`, as on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from simlap.config import Experiment, validate
from simlap.config.schema import Backbone
from simlap.errors import ConfigError, UserError
from simlap.nn.backbone import build_backbone
from simlap.storage import Storage
from simlap.train.checkpoint import Checkpoint, find_checkpoint
from simlap.train.weights import backbone_of, fitting


def export_backbone(source: str, out: str | Path) -> str:
    """Write the backbone of a checkpoint (the moving average's, where there is one) as timm's factory takes it.

    `OUT/model.safetensors`, `OUT/config.json` (architecture, arguments, input size, mean, standard deviation), and
    `OUT/README.md` with the call that loads it. The features are those of the checkpoint's model in evaluation mode.

    Args:
        source: a run directory, or one of its checkpoints.
        out: a folder that is not there or empty.

    Returns:
        The Python call that loads it.

    Raises:
        UserError: no checkpoint there, or `out` is not empty or cannot be written.
        ConfigError: a backbone that timm alone cannot build.
    """
    out = Path(out).expanduser()
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"cannot be read: {error}", file=str(out), key="OUT") from error
    if taken:
        raise UserError(f"{out}: is there already and not empty; name a new folder")
    checkpoint = find_checkpoint(source)
    if checkpoint is None:
        raise UserError(f"{source}: is no run directory and no checkpoint")
    experiment = validate(Experiment, checkpoint.state["experiment"], file=f"{source}, its checkpoint")
    made_for = checkpoint.state.get("input")
    if made_for is None:
        raise UserError(f"{source}: the checkpoint was written before exports were possible; train one epoch more")
    backbone = experiment.backbone
    if backbone.name == "conv3" or backbone.stem != "default":
        what, key = ("conv3", "backbone.name") if backbone.name == "conv3" else ("a small stem", "backbone.stem")
        raise ConfigError(
            f"timm cannot build {what}, so it could not load the export; read the tensors with "
            "simlap.train.weights.read_backbone and build the model with simlap.nn.backbone.build_backbone",
            file=source,
            key=key,
            value=backbone.name if backbone.name == "conv3" else backbone.stem,
        )
    model = build_backbone(backbone, made_for["channels"], made_for["image_size"])
    tensors = fitting(model, backbone_of(checkpoint.model), key="backbone", source=source)
    arguments = _arguments(backbone, made_for)
    files = {
        "model.safetensors": save_tensors({n: v.contiguous() for n, v in tensors.items()}, metadata={"format": "pt"}),
        "config.json": (
            json.dumps(_config(backbone, made_for, model.num_features, arguments), indent=2) + "\n"
        ).encode(),
    }
    words = "".join(f", {name}={value!r}" for name, value in arguments.items())
    path = str(out / "model.safetensors")
    call = f"timm.create_model({backbone.name!r}, checkpoint_path={path!r}, num_classes=0{words})"
    files["README.md"] = _readme(experiment, checkpoint, call, str(out)).encode()
    folder = Storage(out)
    try:
        for name, data in files.items():
            folder.write(name, data)
    except OSError as error:
        raise UserError(f"cannot be written: {error}", file=str(out), key="OUT") from error
    return call


def _arguments(backbone: Backbone, made_for: dict[str, Any]) -> dict[str, Any]:
    """What `timm.create_model` needs besides the name, as `build_backbone` gives it."""
    from timm.models import get_pretrained_cfg

    arguments: dict[str, Any] = dict(backbone.kwargs)
    if made_for["channels"] != 3:
        arguments["in_chans"] = made_for["channels"]
    default = get_pretrained_cfg(backbone.name)
    if default is not None and default.fixed_input_size:
        arguments.setdefault("img_size", made_for["image_size"])
    return arguments


def _config(
    backbone: Backbone, made_for: dict[str, Any], num_features: object, arguments: dict[str, Any]
) -> dict[str, Any]:
    """timm's `config.json`."""
    from timm.models import get_pretrained_cfg

    default = get_pretrained_cfg(backbone.name)
    known = (
        {} if default is None else {k: getattr(default, k) for k in ("first_conv", "classifier", "fixed_input_size")}
    )
    size = made_for["image_size"]
    return {
        "architecture": backbone.name,
        "num_classes": 0,
        "num_features": num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            **{name: value for name, value in known.items() if value is not None},
            "input_size": [made_for["channels"], size, size],
            "crop_pct": size / made_for["eval_size"],
            "interpolation": made_for["interpolation"],
            "mean": made_for["mean"],
            "std": made_for["std"],
            "num_classes": 0,
        },
    }


def _readme(experiment: Experiment, checkpoint: Checkpoint, call: str, out: str) -> str:
    return f"""# {experiment.backbone.name}, trained by simlap ({experiment.name}, {checkpoint.epoch} epochs)

```python
model = {call}
model = timm.create_model({f"local-dir:{out}"!r}, pretrained=True)  # the same, in newer versions of timm
```

Input: RGB or grey pixels in [0, 1], minus `mean`, divided by `std` of `config.json`. Output: one feature vector per image.
"""
