"""The final checkpoint of a run as an MLflow model: safetensors and the config, loadable without pickle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from simlap.record.tracking.records import RunPlan
from simlap.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

README = """\
# {name}

- `model.safetensors`: all tensors of the final checkpoint (backbone, projector, filter, online probe), by name.
- `config.yaml`: the experiment that made it.

```python
from safetensors.torch import load_file
tensors = load_file("model.safetensors")  # no pickle is involved
```

Checksum of the tensors (sha256): {sha256}
"""


class ModelLogger:
    """Registers checkpoints as logged models. `mlflow.pytorch.log_model` would pickle and needs an example input."""

    def __init__(self, client: MlflowClient, storage: Storage, experiment_id: str) -> None:
        self.client, self.storage, self.experiment_id = client, storage, experiment_id

    def log(self, plan: RunPlan, run_id: str) -> str | None:
        """Log the model of a finished cell, once. Returns its id, or None where the checkpoint is no longer stored."""
        from mlflow.entities import LoggedModelOutput

        cell = f"cells/{plan.model_of}"
        try:
            checkpoint = self.storage.read_json(f"{cell}/result.json")["checkpoint"]
            tensors = self.storage.read(f"{cell}/{checkpoint['path']}/model.safetensors")
        except (FileNotFoundError, KeyError):
            return None
        found = self.client.search_logged_models([self.experiment_id], f"source_run_id = '{run_id}'")
        if found and str(found[0].status) == "READY":
            return str(found[0].model_id)
        params = {k: v for k, v in plan.params.items() if k == "seed" or k.startswith("factor.")}
        model = found[0] if found else self.client.create_logged_model(
            self.experiment_id, name=_model_name(plan.name), source_run_id=run_id, params=params, model_type="simlap",
            tags={"simlap.cell_id": str(plan.model_of), "simlap.sha256": checkpoint["sha256"]},
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="simlap-") as folder:
            Path(folder, "model.safetensors").write_bytes(tensors)
            readme = README.format(name=plan.name, sha256=checkpoint["sha256"])
            Path(folder, "README.md").write_text(readme, encoding="utf-8")
            for artifact in plan.artifacts:
                if artifact.path == "config.yaml":
                    Path(folder, "config.yaml").write_bytes(artifact.content())
            self.client.log_model_artifacts(model.model_id, folder)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, plan.epoch)])
        return str(model.model_id)


def _model_name(name: str) -> str:
    """MLflow refuses some characters in model names."""
    return "".join("_" if c in "/:.%\"'" else c for c in name)
