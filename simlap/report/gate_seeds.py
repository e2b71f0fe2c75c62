"""What several seeds say of the classes: each one's numbers, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from simlap.evaluate.gate_failures import gate_failures
from simlap.report.gate_figures import GateData
from simlap.report.page import section
from simlap.report.words import p_text


def seed_sentences(data: GateData) -> list[tuple[str, str, str]]:
    """Whether the seeds agree: chip's class, chip's word, sentence; none of a page of one run."""
    if not data.seeds:
        return []
    if data.agreement is None:
        why = "there is one seed only" if len(data.seeds) == 1 else "a seed's gates know no differences between pairs"
        return [("same", "seeds", f"Whether seeds agree cannot be said: {why}.")]
    mean, low, high = (data.agreement[key] for key in ("mean", "low", "high"))
    numbers = f"ρ = {mean:+.2f} on average over all pairs of seeds".replace("-", "−")
    if data.agreement["pairs"] > 1:
        numbers += f" ({low:+.2f} to {high:+.2f})".replace("-", "−")
    if mean >= 0.5:
        return [("better", "seeds agree", f"Seeds order the class pairs alike: {numbers}.")]
    word = "hardly" if mean < 0.2 else "weakly"
    return [
        (
            "same",
            "seeds differ",
            f"Seeds order the class pairs {word} alike, so much of the order is chance: {numbers}.",
        )
    ]


def seeds_section(data: GateData) -> str:
    """A table of the seeds; empty on a page of one run."""
    if not data.seeds:
        return ""
    columns = ["Seed", "Mean gate", "Entropy"]
    relations = [
        name for name in ("hierarchy", "features") if any(f"spearman_{name}" in m for m in data.seeds.values())
    ]
    columns += [f"ρ with {'the hierarchy' if name == 'hierarchy' else name}" for name in relations] + ["Failures"]
    head = "".join(
        f"<th{' class=num' if 0 < i < len(columns) - 1 else ''}>{escape(c)}</th>" for i, c in enumerate(columns)
    )
    rows = ""
    for seed, metrics in data.seeds.items():
        cells = [seed, f"{metrics['activation']:.3f}", f"{metrics['entropy']:.3f}"]
        cells += [relation_text(metrics, name) for name in relations]
        cells.append(", ".join(failure.short for failure in gate_failures(metrics)) or "none")
        rows += f"<tr>{_row(columns, cells)}</tr>"
    text = "Everything else on this page is of the mean distances over these seeds, unless it says otherwise."
    table = f'<table class="arms"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return section("Seeds", text, table)


def _row(columns: list[str], cells: list[str]) -> str:
    """The cells of a row as HTML; all but the first and the last hold numbers."""
    last = len(columns) - 1
    return "".join(
        f"<td data-label='{escape(column)}'{' class=num' if 0 < i < last else ''}><span>{escape(text)}</span></td>"
        for i, (column, text) in enumerate(zip(columns, cells, strict=True))
    )


def relation_text(metrics: Mapping[str, float], other: str) -> str:
    """`+0.73, p = 0.001`, or a dash where it is not defined."""
    rho, p = metrics.get(f"spearman_{other}"), metrics.get(f"p_{other}")
    return "–" if rho is None else f"{rho:+.2f}, {p_text(p)}".replace("-", "−")
