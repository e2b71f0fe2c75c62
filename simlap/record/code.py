"""Which code a result depends on: a hash over our modules that training imports, found without importing them.

Comments, docstrings and layout do not count: what is hashed is the syntax tree without docstrings. Versions of torch and of the
other packages do not count either; they are noted in `provenance.json`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simlap.record.cache import Cache

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("simlap.train.loop",)
"""Everything that a run computes hangs on these; what runs them where, and records it, changes no number."""


@functools.cache
def code_hash() -> str:
    """16 hex digits over the modules that training depends on, as they are now on disk."""
    return hash_of(modules(ROOTS, ROOT), ROOT)


def hash_of(names: Iterable[str], root: Path) -> str:
    """16 hex digits over modules below `root`, the folder of the package."""
    text = "\n".join(f"{name} {_facts(_file(name, root))['digest']}" for name in sorted(names))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def modules(names: Iterable[str], root: Path) -> set[str]:
    """Modules of the package at `root` that these import, directly or not, themselves included.

    Imports inside functions count; importing a module imports the packages above it. What is imported by a computed name is
    not seen.
    """
    package = root.name
    found: set[str] = set()
    open_ = [*names]
    while open_:
        name = open_.pop()
        file = _file(name, root)
        if name in found or file is None:
            continue
        found.add(name)
        above, _, _ = name.rpartition(".")
        imported = _facts(file)["imports"]
        open_ += [other for other in (above, *imported) if other.split(".")[0] == package]
    return found


def _file(name: str, root: Path) -> Path | None:
    """The file of a module; None where the name is that of something inside one."""
    place = root.parent.joinpath(*name.split("."))
    for file in (place.with_name(place.name + ".py"), place / "__init__.py"):
        if file.is_file():
            return file
    return None


def _facts(file: Path | None) -> dict[str, Any]:
    """`digest` of the code and the names it `imports`; from the cache where the file has not changed."""
    assert file is not None
    status = file.stat()
    key = f"{file} {status.st_mtime_ns} {status.st_size}"
    known = Cache("code")
    if key not in known:
        known.put(key, _parse(file.read_text(encoding="utf-8")))
    facts: dict[str, Any] = known[key]
    return facts


def _parse(source: str) -> dict[str, Any]:
    tree = ast.parse(source)
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module)
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a docstring, of a field too, is an expression that is a mere string
            node.body = [entry for entry in body if not _is_text(entry)] or [ast.Pass()]  # type: ignore[attr-defined]
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return {"digest": digest, "imports": sorted(imports)}


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
