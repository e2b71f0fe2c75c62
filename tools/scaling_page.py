"""Print the tables of docs/scaling.md from the model in tools/scaling.py, or write them into the page.

    python -m tools.scaling_page [TABLE ...] [--write]

The page holds blocks `<!-- table: NAME -->` ... `<!-- end -->`; with `--write` what is between them is renewed.
A test fails where the page and the model differ.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools import scaling as model
from tools.scaling import RESNET, SMALL, VIT_B, VIT_S, Hardware

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
GPUS = (8, 64, 512)
LOW, HIGH = 0.25, 0.45
"""Share of the bf16 peak that the backbone is taken to reach: assumed, not measured."""
HW = Hardware()
Rows = list[tuple[str, ...]]
_BLOCK = re.compile(r"^<!-- table: (\w+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def filled(text: str) -> str:
    """The page with its tables renewed. Raises KeyError for one that does not exist."""
    return _BLOCK.sub(lambda m: f"<!-- table: {m[1]} -->\n{markdown(TABLES[m[1]]())}<!-- end -->", text)


def markdown(rows: Rows) -> str:
    """The first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def inputs() -> Rows:
    cpu = cpu_rates()
    shipped = model.at(model.measured("streaming"), "figures", "decoding", "photographs, 1 thread", "cpu_us")
    many = model.measured("many_cells")
    told = model.at(many, "cells") / model.at(many, "figures", "a launch that only tells MLflow of them, s")
    return [
        ("what", "value", "where from"),
        ("FLOPs of ViT-B/16, forward and backward, an image", f"{VIT_B.flops / 1e9:.1f} G", "counted"),
        ("FLOPs of ViT-S/16", f"{VIT_S.flops / 1e9:.1f} G", "counted"),
        ("FLOPs of ResNet-18 at 32 pixels", f"{RESNET.flops / 1e9:.2f} G", "counted"),
        ("parameters with ViT-B, ViT-S", f"{VIT_B.parameters / 1e6:.2f} M, {VIT_S.parameters / 1e6:.2f} M", "counted"),
        ("a core decodes a 256-pixel JPEG in", f"{shipped / 1e3:.2f} ms", "measured, streaming-cpu.json"),
        ("cells MLflow (sqlite) is told of", f"{told:.1f} a second", "measured, many_cells-cpu.json"),
        (
            "rows a second that MLflow kept up with",
            f"{shipped_rows():.0f}",
            "measured, results/mlflow_outage.md (most it can: not known)",
        ),
        ("ResNet-18 on one core, two at work", f"{cpu['measured large']:.1f} images/s", "measured, scaling-cpu.json"),
        (
            "bf16 and float32 peak of a GPU",
            f"{HW.bf16_flops / 1e12:.0f} and {HW.float32_flops / 1e12:.0f} TFLOP/s",
            "data sheet, H100 SXM and H200",
        ),
        ("share of the bf16 peak reached", f"{LOW:.0%} to {HIGH:.0%}", "**assumed, not measured**"),
        ("share of the float32 peak in the loss", f"{HW.loss_utilisation:.0%}", "**assumed**"),
        (
            "NVLink, network, each way and GPU",
            f"{HW.nvlink_rate / 1e9:.0f}, {HW.network_rate / 1e9:.0f} GB/s",
            "data sheet; 400 Gb/s InfiniBand",
        ),
        ("share of them in collectives", f"{HW.link_efficiency:.0%}", "**assumed**"),
        ("a small collective, a message", f"{HW.collective_s * 1e6:.0f}, {HW.message_s * 1e6:.0f} µs", "**assumed**"),
        (
            "copy to main memory, writing to storage",
            f"{HW.copy_rate / 1e9:.0f}, {HW.storage_rate / 1e9:.0f} GB/s",
            "**assumed**",
        ),
        ("a node between failures", f"{HW.node_mtbf_s / 3600:,.0f} h", "arXiv 2407.21783, 3.3.4 (H100s)"),
        ("from a failure to training again", f"{HW.restart_s:.0f} s", "**assumed**: the limit set for two nodes here"),
        ("a training JPEG of ImageNet", f"{JPEG_BYTES / 1e3:.0f} KB", "147.9 GB of archive / 1,281,167"),
    ]


JPEG_BYTES = 147_897_477_120 / 1_281_167


def batches(gpus: int) -> list[int]:
    """The recipe's batch, and its 128 rows a GPU where that is more."""
    return sorted({VIT_B.batch, 128 * gpus})


def run() -> Rows:
    rows: Rows = [("GPUs", "batch", "rows a GPU", "hours", "GPU-hours", "efficiency")]
    for gpus in GPUS:
        for batch in batches(gpus):
            slow, fast = (model.run_seconds(VIT_B, gpus, batch, share) for share in (LOW, HIGH))
            low, high = (model.step(VIT_B, gpus, batch, share).efficiency for share in (HIGH, LOW))
            rows.append(
                (
                    f"{gpus}",
                    f"{batch:,}",
                    f"{batch // gpus}",
                    f"{fast / 3600:.2f} to {slow / 3600:.2f}",
                    f"{fast * gpus / 3600:,.0f} to {slow * gpus / 3600:,.0f}",
                    f"{low:.0%} to {high:.0%}",
                )
            )
    return rows


def exchange() -> Rows:
    rows: Rows = [
        (
            "GPUs",
            "batch",
            "ms: backbone",
            "loss",
            "keys gathered",
            "keys in a ring",
            "gradients (behind backward)",
            "statistics",
            "MB: keys",
            "keys, ring",
            "gradients",
            "keys held",
        )
    ]
    for gpus in GPUS:
        for batch in batches(gpus):
            one, ring = (model.step(VIT_B, gpus, batch, HIGH, ring=kind) for kind in (False, True))
            share = batch // gpus
            ms = (one.backbone, one.loss, one.keys, ring.keys)
            sent = (model.key_bytes(share, gpus, VIT_B.dim), model.key_bytes(share, gpus, VIT_B.dim, ring=True))
            rows.append(
                (
                    f"{gpus}",
                    f"{batch:,}",
                    *(f"{value * 1e3:.2f}" for value in ms),
                    f"{one.gradients * 1e3:.2f} ({one.exposed * 1e3:.2f})",
                    f"{one.norms * 1e3:.2f}",
                    *(
                        f"{value / 1e6:.1f}"
                        for value in (
                            *sent,
                            model.gradient_bytes(VIT_B.parameters, gpus),
                            batch * VIT_B.dim * model.FLOAT,
                        )
                    ),
                )
            )
    return rows


def storage() -> Rows:
    decode = model.at(model.measured("streaming"), "figures", "decoding", "photographs, 1 thread", "cpu_us") * 1e-6
    rows: Rows = [
        ("GPUs", "images trained on, /s", "read, /s", "GB/s", "cores of a node that decode", "GB of a checkpoint")
    ]
    for gpus in GPUS:
        batch = 128 * gpus
        rate = batch / model.step(VIT_B, gpus, batch, HIGH).seconds
        read = rate / VIT_B.repeats
        rows.append(
            (
                f"{gpus}",
                f"{rate:,.0f}",
                f"{read:,.0f}",
                f"{read * JPEG_BYTES / 1e9:.1f}",
                f"{read * decode / max(1, gpus // HW.gpus):.0f}",
                f"{model.checkpoint_bytes(VIT_B) / 1e9:.2f}",
            )
        )
    return rows


def failures() -> Rows:
    size = model.checkpoint_bytes(VIT_B)
    stall = size / HW.copy_rate
    rows: Rows = [
        (
            "GPUs",
            "hours",
            "failures expected",
            "at a sixth of the time between failures",
            "epoch, minutes",
            "redone and waited for, GPU-hours",
            "the same, a sixth",
            "Young, minutes",
            "Daly",
            "copies, s in all",
        )
    ]
    bad = Hardware(node_mtbf_s=HW.node_mtbf_s / 6)
    for gpus in GPUS:
        batch, nodes = 128 * gpus, gpus / HW.gpus
        seconds = model.run_seconds(VIT_B, gpus, batch, LOW)
        epoch = seconds / VIT_B.epochs
        usual, worse = (model.faults(seconds, nodes, epoch, stall, hardware) for hardware in (HW, bad))
        mtbf = HW.node_mtbf_s / nodes
        rows.append(
            (
                f"{gpus}",
                f"{seconds / 3600:.2f}",
                f"{usual.number:.4f}",
                f"{worse.number:.4f}",
                f"{epoch / 60:.1f}",
                f"{usual.lost_s * gpus / 3600:.4f}",
                f"{worse.lost_s * gpus / 3600:.4f}",
                f"{model.young(stall, mtbf) / 60:.1f}",
                f"{model.daly(stall, mtbf) / 60:.1f}",
                f"{usual.stall_s:.1f}",
            )
        )
    return rows


def study_failures() -> Rows:
    """500 cells of ViT-B on a node each: as many node-hours however they are spread."""
    rows: Rows = [
        ("node between failures, h", "failures in 500 cells", "redone and waited for, GPU-hours", "share of the study")
    ]
    seconds = model.run_seconds(VIT_B, HW.gpus, VIT_B.batch, LOW)
    stall = model.checkpoint_bytes(VIT_B) / HW.copy_rate
    for part in (1, 6):
        hardware = Hardware(node_mtbf_s=HW.node_mtbf_s / part)
        each = model.faults(seconds, 1, seconds / VIT_B.epochs, stall, hardware)
        lost = 500 * each.lost_s * HW.gpus / 3600
        rows.append(
            (
                f"{hardware.node_mtbf_s / 3600:,.0f}",
                f"{500 * each.number:.1f}",
                f"{lost:.1f}",
                f"{each.lost_s / seconds:.4%}",
            )
        )
    return rows


def shipped_rows() -> float:
    """Numbers a second that MLflow was sent and kept up with, by the stretches in docs/results/mlflow_outage.md with a server."""
    found = re.findall(
        r"^\| there \| (\d+) \| (\d+) \|", (PAGE.parent / "results/mlflow_outage.md").read_text(), re.MULTILINE
    )
    return ROWS_AN_EPOCH * sum(int(epochs) for _, epochs in found) / sum(int(seconds) for seconds, _ in found)


def memory() -> Rows:
    """What a GPU holds beside activations."""
    rows: Rows = [
        (
            "",
            "parameters, gradients, moments, average, GB",
            "share of a GPU",
            "keys of 65,536 rows and their gradients, GB",
        )
    ]
    for name, recipe in (("ViT-B/16", VIT_B), ("ViT-S/16", VIT_S)):
        held = (recipe.states + 1) * recipe.parameters * model.FLOAT
        rows.append(
            (
                name,
                f"{held / 1e9:.2f}",
                f"{held / HW.memory_bytes:.1%}",
                f"{2 * 65_536 * recipe.dim * model.FLOAT / 1e9:.2f}",
            )
        )
    return rows


def study() -> Rows:
    rows: Rows = [("500 cells of", "GPUs", "a cell on", "hours", "GPU-hours", "rows/s to MLflow")]
    for recipe, on in ((RESNET, (1,)), (VIT_S, (8, 64)), (VIT_B, (8, 64))):
        for gpus in GPUS:
            for per_cell in (*on, *((512,) if on != (1,) else ())):
                if per_cell > gpus:
                    continue
                fast, slow = (model.run_seconds(recipe, per_cell, recipe.batch, share) for share in (HIGH, LOW))
                hours = [model.study_seconds(500, gpus, per_cell, seconds) / 3600 for seconds in (fast, slow)]
                rate = gpus // per_cell * ROWS_AN_EPOCH * recipe.epochs / fast
                rows.append(
                    (
                        recipe.name,
                        f"{gpus}",
                        f"{per_cell}",
                        f"{hours[0]:,.2f} to {hours[1]:,.2f}",
                        f"{500 * fast * per_cell / 3600:,.0f} to {500 * slow * per_cell / 3600:,.0f}",
                        f"{rate:,.1f}",
                    )
                )
    return rows


ROWS_AN_EPOCH = 20
"""Numbers that a cell reports in an epoch, as in docs/results/mlflow_outage.md."""


def cpu_rates() -> dict[str, float]:
    """Images/s of one core: measured, and the small network's as predicted from the large one's. One thread each of two."""
    rates = {}
    for recipe, key in ((RESNET, "cifar10_resnet18"), (SMALL, "cifar10_resnet18_small")):
        found = model.measured("scaling")[key]
        assert isinstance(found, dict)
        rates[recipe.name] = statistics.median(found["images_per_s"]["own runs, same global batch"]) / found["workers"]
    augment = model.measured("augment")
    us = [
        model.at(augment, "recipes", key, "simlap, us an image")
        for key in ("cifar10_resnet18", "cifar10_resnet18_small")
    ]
    phases = model.measured("step")
    adam = 7 * model.FLOAT * SMALL.parameters / (model.at(phases, "figures", "simlap", "optimiser") * 1e-3)
    flops = model.calibrated_flops(RESNET, rates[RESNET.name], us[0], adam)
    predicted = model.cpu_images_per_s(SMALL, us[1], flops, adam)
    return {
        "measured large": rates[RESNET.name],
        "FLOP/s": flops,
        "measured small": rates[SMALL.name],
        "predicted small": predicted,
    }


def check() -> Rows:
    found = cpu_rates()
    return [
        ("one core", ""),
        ("ResNet-18, measured", f"{found['measured large']:.1f} images/s"),
        ("its backbone, from that", f"{found['FLOP/s'] / 1e9:.1f} GFLOP/s"),
        ("small ResNet, predicted", f"{found['predicted small']:,.0f} images/s"),
        ("small ResNet, measured", f"{found['measured small']:,.0f} images/s"),
        ("predicted / measured", f"{found['predicted small'] / found['measured small']:.2f}"),
    ]


TABLES: dict[str, Callable[[], Rows]] = {
    "inputs": inputs,
    "run": run,
    "exchange": exchange,
    "storage": storage,
    "failures": failures,
    "study": study,
    "study_failures": study_failures,
    "memory": memory,
    "check": check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    parser.add_argument("--write", action="store_true", help="renew docs/scaling.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if arguments.write:
        PAGE.write_text(filled(PAGE.read_text()))
        return
    for name in arguments.tables or TABLES:
        head, *rows = TABLES[name]()
        table = Table(*head, title=name)
        for row in rows:
            table.add_row(*row)
        Console().print(table)


if __name__ == "__main__":
    main()
