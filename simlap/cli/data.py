"""`simlap data`: is a dataset fit, what is in it, and the same as Parquet shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from simlap.cli.app import FAILED, OK, RootOption, app
from simlap.cli.datasets import named_data
from simlap.cli.output import complain, out, plain_table

if TYPE_CHECKING:
    from simlap.data.convert import DataReport

_SHOWN = 20
"""Classes, and damaged images, that are listed one by one."""


@app.command()
def data(
    source: Annotated[
        str,
        typer.Argument(
            help="An experiment file, the name of a dataset, or a folder with train/ and test/ image folders."
        ),
    ],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the data section: data.fraction=0.1.")] = None,
    root: RootOption = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Write it there as Parquet shards: a new folder or a pyarrow.fs URI.")
    ] = None,
    rows_per_shard: Annotated[int, typer.Option("--rows-per-shard", help="Images to a shard.", min=1)] = 5000,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Write the images in a random order, as data.streaming needs them.")
    ] = False,
) -> None:
    """Look at every image of a dataset, and convert it where asked. Exit code 1 where images are damaged."""
    from simlap.data.convert import check_dataset, convert

    _, section = named_data(source, root, set_ or [])
    report = check_dataset(section)
    _print_report(report)
    if report.faults:
        complain(f"[bold red]damaged images: {len(report.faults)}[/]" + ("; nothing was converted" if to else ""))
        raise typer.Exit(FAILED)
    if to is not None:
        written = convert(section, to, rows_per_shard=rows_per_shard, shuffle=shuffle)
        counts = ", ".join(f"{count:,} {part}" for part, count in written.num_images.items())
        out.print(
            f"converted      {to}: {counts} images in {len(written.files)} files, {written.num_bytes / 1e6:,.1f} MB",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    raise typer.Exit(OK)


def _print_report(report: DataReport) -> None:
    parts = plain_table("part", "images", "fewest of a class", "most of a class", numbers=3)
    for part, counts in report.counts.items():
        if sum(counts):
            parts.add_row(part, f"{sum(counts):,}", f"{min(counts):,}", f"{max(counts):,}")
    out.print(parts)
    classes = plain_table("label", "class", *report.counts, numbers=3)
    for label, name in list(enumerate(report.class_names))[:_SHOWN]:
        classes.add_row(str(label), escape(name), *(f"{counts[label]:,}" for counts in report.counts.values()))
    out.print(classes)
    if len(report.class_names) > _SHOWN:
        out.print(f"... and {len(report.class_names) - _SHOWN} more classes")
    facts = plain_table("", "")
    facts.add_row("channels", str(report.channels))
    for part, sizes in report.sizes.items():
        shown = ", ".join(f"{width}x{height} ({count:,})" for width, height, count in sizes[:3])
        facts.add_row(f"sizes, {part}", shown + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""))
    facts.add_row("mean", _numbers(report.mean))
    facts.add_row("std", _numbers(report.std))
    groups = ", ".join(str(name) for name in report.hierarchy) if report.hierarchy else "none"
    facts.add_row("hierarchy", escape(groups))
    facts.add_row("fingerprint", report.fingerprint)
    out.print(facts)
    for fault in report.faults[:_SHOWN]:
        out.print(f"damaged: {fault}", soft_wrap=True, markup=False)
    if len(report.faults) > _SHOWN:
        out.print(f"... and {len(report.faults) - _SHOWN} more")


def _numbers(values: Sequence[float] | None) -> str:
    return "unknown" if values is None else ", ".join(f"{value:.4f}" for value in values)
