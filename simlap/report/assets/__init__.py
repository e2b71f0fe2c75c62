"""Style sheet and script of the HTML pages, which hold them so that they need no other file."""

from __future__ import annotations

from importlib.resources import files

CSS = files(__name__).joinpath("page.css").read_text(encoding="utf-8")
SCRIPT = files(__name__).joinpath("page.js").read_text(encoding="utf-8")
