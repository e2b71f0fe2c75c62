"""Images that are strong in the dimensions of some pairs, and where in an image the evidence for a pair lies, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from simlap.report.page import section

STYLE = """
.ends{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(27rem,100%),1fr));gap:.2rem 1.5rem}
.strip{display:grid;grid-template-columns:repeat(6,1fr);gap:.2rem .5rem;max-width:29rem;margin:0 0 .5rem}
.strip p{grid-column:1/-1;margin:0;color:var(--soft);font-size:.78rem}
.strip figure{margin:0;min-width:0}
.strip figcaption{margin-top:.1rem;color:var(--soft);font-size:.72rem;line-height:1.25;overflow:hidden;text-overflow:ellipsis;
white-space:nowrap}
.strip img,.cam img{display:block;width:100%;aspect-ratio:1;border-radius:.2rem;image-rendering:pixelated}
.cams{display:grid;grid-template-columns:repeat(auto-fill,minmax(15.5rem,1fr));gap:1rem 1.5rem}
.cams h3{margin:.4rem 0 .3rem}
.cam{display:flex;align-items:center;gap:.4rem;margin:.4rem 0}
.cam img{width:5rem;height:5rem}
.cam .stack{position:relative}
.cam .stack img+img{position:absolute;inset:0;image-rendering:auto}
.cam span.caption{margin:0;font-size:.78rem;line-height:1.3}
"""


def images_sections(pictures: Mapping[str, Any], names: list[str], of: str = "") -> str:
    """Both sections, and what could not be shown; each is empty where there is nothing.

    Args:
        pictures: of `simlap.evaluate.gate_pictures`.
        names: of the classes.
        of: the run that they are of, on a page of several.
    """
    notes = "".join(f'<div class="notice note">{escape(note)}</div>' for note in pictures["notes"])
    prefix = f"{of}. " if of else ""
    part = {"val": "validation", "test": "test"}[pictures["part"]] if "part" in pictures else "evaluated"
    dimensions = "".join(_dimension(one, pictures["images"], names) for one in pictures["dimensions"])
    if dimensions:
        text = (
            f"{prefix}The dimensions that open for few pairs (the largest gate of a pair, less the mean over all pairs), and the "
            f"{part} images whose projected feature z is highest and lowest there. What the images of an end have in common, and "
            "the other end has not, is what the gate opens. Which end is which has no meaning: a cosine does not see signs that "
            "two images share."
        )
        dimensions = section("What opens: images by dimension", text, dimensions)
    cams = "".join(_cam(one, pictures["images"], names) for one in pictures["cams"])
    if cams:
        text = (
            f"{prefix}Grad-CAM (Selvaraju et al. 2017) of the similarity under the pair's gate: a → b is an image of a, and "
            "bright is where it looks like the mean key of b in the subspace that the pair opens. Shown are images of a at "
            f"the quartiles of their similarity to b. Feature map: {pictures['layer']}; each is scaled to its own largest value."
        )
        cams = section("Where in an image the evidence lies", text, f'<div class="cams">{cams}</div>')
    return dimensions + cams + notes


def _dimension(one: Mapping[str, Any], images: Mapping[str, str], names: list[str]) -> str:
    pairs = ", ".join(f"{_pair(names, a, b)} ({g:.2f})" for a, b, g in one["pairs"])
    strips = "".join(
        f'<div class="strip"><p>{end}</p>'
        + "".join(
            f"<figure>{_image(images[str(image['row'])], names[image['label']])}"
            f"<figcaption>{escape(names[image['label']])}<br>z {_signed(image['z'])}</figcaption></figure>"
            for image in one[end.lower()]
        )
        + "</div>"
        for end in ("Highest", "Lowest")
    )
    return (
        f"<h3>Dimension {one['dimension']}</h3>"
        f'<p class="lead">Opens most for {escape(pairs)}; {one["mean"]:.2f} over all pairs.</p>'
        f'<div class="ends">{strips}</div>'
    )


def _cam(one: Mapping[str, Any], images: Mapping[str, str], names: list[str]) -> str:
    first, second = names[one["first"]], names[one["second"]]
    title = f"{first} → {second}" if one["first"] != one["second"] else f"{first} with itself"
    parts = []
    for image in one["images"]:
        plain = _image(images[str(image["row"])], first)
        said = f"similarity {_signed(image['similarity'])}"
        if image["overlay"] is None:
            shown = ""
            said += "; no place speaks for it"
        else:
            over = _image(image["overlay"], f"where it is similar to {second}")
            shown = f'<span class="stack">{plain}{over}</span>'
        parts.append(f'<div class="cam">{plain}{shown}<span class="caption">{escape(said)}</span></div>')
    text = f"mean of the class {_signed(one['mean_similarity'])}"
    return f'<div><h3>{escape(title)}</h3><p class="lead">{escape(text)}</p>{"".join(parts)}</div>'


def _image(png: str, what: str) -> str:
    return f'<img alt="{escape(what)}" src="data:image/png;base64,{escape(png)}">'


def _pair(names: list[str], a: int, b: int) -> str:
    return names[a] if a == b else f"{names[a]} – {names[b]}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
