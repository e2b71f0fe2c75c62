"""Checkpoints: `simlap eval` measures one, `simlap export` hands its backbone on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from simlap.cli.app import RootOption, StorageOption, app
from simlap.cli.datasets import named_data, takes_root
from simlap.cli.output import metric_text, out, plain_table, print_gates_page
from simlap.errors import ConfigError, UserError

if TYPE_CHECKING:
    from simlap.config.schema import Data, Evaluation
    from simlap.run.evaluate import Result

CheckpointArgument = Annotated[
    str, typer.Argument(help="A run directory, one of its checkpoints, or the id of a run under --storage.")
]


@app.command(name="eval")
def evaluate_checkpoint(
    checkpoint: CheckpointArgument,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol", help="knn, linear, finetune, collapse, gates, probe; several, or a list with commas."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Other data: an experiment file, or the name of a dataset; several for transfer."),
    ] = None,
    root: RootOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of a protocol: linear.l2=1e-4.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--out", help="Folder of the results (default: `evaluations` of the run).")
    ] = None,
    storage: StorageOption = "./runs",
) -> None:
    """Measure a checkpoint, on its own data or on others. Extracted features are kept beside the results."""
    from simlap.run.evaluate import check_protocols, check_writable, evaluate, locate, open_checkpoint, save
    from simlap.run.gates import training_rows
    from simlap.storage import Storage

    protocols = _protocols(protocol or ["knn", "linear"], set_ or [])
    datasets = _datasets(data or [], root)
    subject = open_checkpoint(locate(checkpoint, Storage(storage)))
    check_protocols(subject, protocols, datasets)
    if output is None and subject.run is None:
        raise UserError(f"{checkpoint}: the checkpoint lies in no run directory; say with --out where the results go")
    folder = Storage(output) if output is not None else subject.run.child("evaluations")  # type: ignore[union-attr]
    check_writable(folder)
    out.print(f"{subject.experiment.name}, epoch {subject.checkpoint.epoch}", markup=False)
    results = []
    for result in evaluate(subject, protocols, datasets, folder.child("features")):
        results.append(result)
        save([result], subject, folder)
    _print_results(results)
    for result in results:
        if result.artefact is not None:  # of the gates
            print_gates_page(result.artefact, folder, subject.experiment.name, training_rows(subject))
    out.print(f"results        {folder.describe('results.json')}", soft_wrap=True, markup=False)


@app.command()
def export(
    checkpoint: CheckpointArgument,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    storage: StorageOption = "./runs",
) -> None:
    """Write the backbone of a checkpoint as safetensors and config that timm loads."""
    from simlap.run.evaluate import locate
    from simlap.storage import Storage
    from simlap.train.export import export_backbone

    call = export_backbone(locate(checkpoint, Storage(storage)), target)
    out.print(call, soft_wrap=True, markup=False)


def _datasets(sources: list[str], root: str | None) -> dict[str, Data]:
    """The datasets by name; `root` is for those among them that torchvision keeps."""
    if root is not None and not any(map(takes_root, sources)):
        raise ConfigError("is for torchvision's datasets, and --data names none of them", key="--root", value=root)
    datasets = dict(named_data(source, root if takes_root(source) else None) for source in sources)
    if len(datasets) < len(sources):
        raise ConfigError("two datasets have the same name", key="--data", value=", ".join(sources))
    return datasets


def _protocols(names: list[str], settings: list[str]) -> list[Evaluation]:
    """The protocols that are asked for, with their settings."""
    from simlap.config import parse_override, schema, validate

    models: dict[str, Any] = {
        "knn": schema.KNN, "linear": schema.Linear, "finetune": schema.FineTune, "collapse": schema.Collapse,
        "gates": schema.Gates, "probe": schema.Probe,
    }  # fmt: skip
    trees: dict[str, dict[str, Any]] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if name not in models:
            raise ConfigError("no such protocol", key="--protocol", value=name, choices=models)
        trees[name] = {"kind": name}
    for text in settings:
        path, value = parse_override(text)
        kind, _, key = path.partition(".")
        if kind not in trees or not key:
            raise ConfigError(
                "a setting is written protocol.setting=value, for a protocol that is asked for", key="--set", value=text,
                choices=trees,
            )  # fmt: skip
        trees[kind][key] = value
    return [validate(models[name], tree, file="--set", prefix=name) for name, tree in trees.items()]


def _print_results(results: list[Result]) -> None:
    table = plain_table("protocol", "metric", "value", numbers=1)
    for result in results:
        for name, value in result.metrics.items():
            table.add_row(result.protocol["kind"], escape(name), metric_text(name, value))
    out.print(table)
