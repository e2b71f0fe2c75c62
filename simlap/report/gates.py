"""The analysis of the gates as one self-contained HTML page, with its data beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from typing import Any

import plotly.graph_objects as go

from simlap.evaluate.gate_failures import failure_text, gate_failures, gate_signatures
from simlap.record.view import EpochRow
from simlap.report.gate_figures import GateData, block_size, group_keys, heat_map, own_gates, scatter
from simlap.report.gate_heat import heat_section
from simlap.report.gate_images import STYLE as IMAGES_STYLE
from simlap.report.gate_images import images_sections
from simlap.report.gate_map import map_section
from simlap.report.gate_seeds import seed_sentences, seeds_section
from simlap.report.gate_training import TRAINING_METRICS, training_section
from simlap.report.page import document, plot_box, section
from simlap.report.words import p_text
from simlap.storage import Storage

_NAMES = {"features": "the distance of the classes' mean features", "hierarchy": "the distance in the hierarchy"}
_SIGNIFICANT = 0.05
_SHOWN_PAIRS = 5
_STYLE = """
.keys span{display:inline-flex;align-items:center;gap:.4rem;padding:.2rem .1rem;font-size:.82rem;margin-right:.5rem}
.keys i{width:.8rem;height:.8rem;border-radius:.2rem}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:0 2.5rem}
.pairs h3{margin-top:.5rem}
"""


def write_gates_page(
    artefact: Mapping[str, Any],
    out: Storage | str | PathLike[str],
    title: str,
    *,
    name: str = "gates",
    training: Mapping[str, Sequence[EpochRow]] | None = None,
    pictures: Mapping[str, Any] | None = None,
    of: str = "",
) -> list[str]:
    """Write `<name>.html` and `<name>.json` to a folder; returns their names there.

    Args:
        artefact: what the evaluation of `kind: gates` leaves (`cells/<id>/evaluations/<evaluation id>.json`), or of several seeds
            what `simlap.evaluate.gate_seeds.merge_seeds` makes of it.
        out: the folder.
        title: of the page: what was trained, on what.
        name: of the files.
        training: epochs by run, for the curves.
        pictures: of `simlap.evaluate.gate_pictures`; they are in the page only, and what they are of also in the data.
        of: the run that pictures and gates of single pairs are of, where the page is of several.
    """
    storage = out if isinstance(out, Storage) else Storage(out)
    page = gates_page(artefact, title, training=training, pictures=pictures, of=of)
    storage.write(f"{name}.html", page.encode())
    data = dict(artefact)
    if training:
        data["training"] = {
            run: [[row.epoch, {m: v for m, v in row.metrics.items() if m in TRAINING_METRICS}] for row in rows]
            for run, rows in training.items()
        }
    if pictures:
        data["pictures"] = {
            "dimensions": pictures["dimensions"],
            "cams": [
                {**cam, "images": [{k: v for k, v in one.items() if k != "overlay"} for one in cam["images"]]}
                for cam in pictures["cams"]
            ],
            "layer": pictures["layer"],
        }
    storage.write(f"{name}.json", (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return [f"{name}.html", f"{name}.json"]


def gates_page(
    artefact: Mapping[str, Any],
    title: str,
    *,
    training: Mapping[str, Sequence[EpochRow]] | None = None,
    pictures: Mapping[str, Any] | None = None,
    of: str = "",
) -> str:
    """The whole page as text. Arguments as in `write_gates_page`."""
    data = GateData(artefact)
    plots: dict[str, go.Figure] = {}
    body = "".join(
        [
            _header(data, title),
            _seen(data),
            _notices(data),
            seeds_section(data),
            _matrix(data, plots),
            map_section(data, plots),
            _relations(data, plots),
            heat_section(data, plots, of),
            images_sections(pictures, data.names, of) if pictures else "",
            _own(data, plots),
            training_section(training or {}, plots),
            _signatures(data),
        ]
    )
    return document(f"{title} · simlap gates", body, plots, _STYLE + IMAGES_STYLE)


def _header(data: GateData, title: str) -> str:
    facts = [(str(len(data.names)), "classes"), (f"{len(data.first):,}", _counted("class pair", len(data.first)))]
    if data.groups is not None:
        facts.append((str(len(data.group_names)), _counted("group", len(data.group_names))))
    facts += [
        (f"{100 * data.metrics['activation']:.1f}%", "open for two classes"),
        (f"{100 * data.metrics['self_activation']:.1f}%", "open for one class"),
    ]
    items = "".join(f"<li><b>{escape(value)}</b> {text}</li>" for value, text in facts)
    lead = (
        "What the gates of the feature filter learnt of the classes. A gate opens some dimensions for a pair of classes. Two "
        "classes are close where their pair opens as much as each class opens for itself: "
        "d(a,\u00a0b)\u00a0= (A(a,\u00a0a)\u00a0+ A(b,\u00a0b))\u00a0/\u00a02\u00a0− A(a,\u00a0b), "
        "A being the share that is open."
    )
    return (
        f'<header><p class="kicker">Gate analysis</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p><ul class="facts">{items}</ul></header>'
    )


def _counted(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _seen(data: GateData) -> str:
    items = "".join(
        f'<li><span class="chip {verdict}">{escape(chip)}</span><span>{escape(text)}</span></li>'
        for verdict, chip, text in sentences(data)
    )
    lead = (
        "Spearman's rank correlation ρ over all pairs of classes. p: share of the permutations of the classes that give as "
        "large a ρ (Mantel's test, one-sided)."
    )
    return section("What is seen", lead if data.correlations else "", f'<ul class="answer">{items}</ul>')


def sentences(data: GateData) -> list[tuple[str, str, str]]:
    """What the numbers say: chip's class, chip's word, sentence."""
    found: list[tuple[str, str, str]] = []
    for other, by_distance in data.correlations.items():
        for distance, test in by_distance.items():
            rho, p = test["rho"], test["p"]
            count = f"{'all ' * test['exact']}{test['permutations']:,} permutations"
            numbers = f"ρ = {rho:+.2f}, {p_text(p)}, {count}".replace("-", "−")
            what = "Gates" if distance == "activation" else "Own gates of the classes alone (cosine)"
            if p < _SIGNIFICANT:
                text = f"{what} mirror {_NAMES[other]}, {_strength(rho)}: {numbers}."
                found.append(("better", "mirrors", text))
            else:
                text = f"{what}: no more agreement with {_NAMES[other]} than chance gives: {numbers}."
                found.append(("same", "no relation", text))
    if "cophenetic" in data.metrics:
        value = data.metrics["cophenetic"]
        how = "well" if value >= 0.8 else "roughly" if value >= 0.6 else "badly"
        text = f"A tree describes the gate distances {how}: cophenetic correlation {value:.2f} ({data.method} linkage)."
        found.append(("better" if value >= 0.8 else "same", "tree", text))
    for name, what in (
        ("purity", f"Cut into {len(data.group_names)} clusters, the tree finds the groups with purity"),
        ("dendrogram_purity", "Below the node where two classes of a group meet, the group's share is on average"),
    ):
        if name in data.metrics:
            value, chance = data.metrics[name], data.chance[name]
            text = f"{what} {value:.2f}; groups dealt out at random get {chance['mean']:.2f} ({p_text(chance['p'])})."
            found.append(("better" if chance["p"] < _SIGNIFICANT else "same", "groups", text))
    found += seed_sentences(data)
    if len(data.names) < 3:
        text = f"Two classes make one pair, at a gate distance of {data.distance[0]:.3f}. "
        text += "Correlations and trees begin with three classes."
        found.append(("same", "one pair", text))
    elif not data.correlations:
        found.append(("same", "nothing", "There are no differences between the gates of the class pairs to compare."))
    return found


def _strength(rho: float) -> str:
    return "strongly" if rho >= 0.7 else "clearly" if rho >= 0.4 else "weakly" if rho >= 0.2 else "hardly"


def _notices(data: GateData) -> str:
    texts = list(data.notes)
    warnings = [_sentence(failure_text(failure)) for failure in gate_failures(data.metrics)]
    if data.distance.min() < 0:
        texts.append(
            "Some distances are below 0: a pair opens more than its classes on their own. For the tree, all distances are "
            "lifted by the same amount."
        )
    kinds = [("warning", text) for text in warnings] + [("note", text) for text in texts]
    if not kinds:
        return ""
    parts = "".join(f'<div class="notice {kind}">{escape(text)}</div>' for kind, text in kinds)
    return f"<section><h2>Before you rely on it</h2>{parts}</section>"


def _matrix(data: GateData, plots: dict[str, go.Figure]) -> str:
    plots["matrix"] = heat_map(data)
    text = f"Classes in the order of the tree ({data.method} linkage). Bright: close."
    if data.groups is not None:
        text += " Branches and the strip below them have the colour of the group where all classes are of one group."
    if (size := block_size(len(data.names))) > 1:
        text += f" Of {len(data.names)} classes, every {size} neighbours in the tree share a row: the mean of their distances."
    return section(
        "Gate distance of all class pairs", text, group_keys(data) + plot_box("matrix", plots) + _extremes(data)
    )


def _extremes(data: GateData) -> str:
    """The closest and the farthest pairs."""
    order = data.distance.argsort(kind="stable").tolist()
    count = min(_SHOWN_PAIRS, len(order) // 2)
    parts = []
    for title, pairs in (("Closest pairs", order[:count]), ("Farthest pairs", order[::-1][:count])):
        rows = "".join(
            f"<tr><td>{escape(data.names[data.first[i]])} – {escape(data.names[data.second[i]])}</td>"
            f'<td class="num">{data.distance[i]:.3f}</td></tr>'
            for i in pairs
        )
        parts.append(f"<div><h3>{title}</h3><table><tbody>{rows}</tbody></table></div>")
    return f'<div class="pairs">{"".join(parts)}</div>' if count else ""


def _relations(data: GateData, plots: dict[str, go.Figure]) -> str:
    parts = []
    for other, values in data.others.items():
        test = data.correlations.get(other, {}).get("activation")
        if test is None:
            continue
        plots[other] = scatter(data, other, values)
        numbers = f"ρ = {test['rho']:+.2f}, {p_text(test['p'])}".replace("-", "−")
        title = f"Gates and {'the hierarchy' if other == 'hierarchy' else 'features'}: {numbers}"
        parts.append(f"<div><h3>{escape(title)}</h3>{plot_box(other, plots)}</div>")
    if not parts:
        return ""
    text = "One point per pair of classes."
    if data.groups is not None:
        text += " Filled: both of one group. Open: of two groups."
    return section("Gate distance against other distances", text, f'<div class="small">{"".join(parts)}</div>')


def _own(data: GateData, plots: dict[str, go.Figure]) -> str:
    plots["own"] = own_gates(data)
    text = "Share of the dimensions that each class opens for itself (circle), and with the other classes, on average (line)."
    return section("How open the gates are", text, plot_box("own", plots))


def _signatures(data: GateData) -> str:
    flagged = {one.kind for one in gate_failures(data.metrics)}
    rows = ""
    for one in gate_signatures(data.metrics):
        word, chip = (
            ("failed", "failed") if one.kind in flagged else ("follows", "stopped") if one.failed else ("no", "same")
        )
        rows += (
            f'<li><span class="chip {chip}">{word}</span><span>{escape(_sentence(one.short))} '
            f'<span class="none">{escape(_sentence(one.number))}</span></span></li>'
        )
    text = "How gates fail, and whether these do. “Follows”: so it is, because of another failure."
    return section("Failure signatures", text, f'<ul class="answer">{rows}</ul>')


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
