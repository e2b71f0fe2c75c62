"""Which code a result depends on: a hash over our modules that training imports, found without importing them.

Comments, docstrings and layout do not count: what is hashed is the syntax tree without docstrings. Versions of Python, torch and
the other packages do not count either; they are noted in `provenance.json`. The modules of a plug-in count for the runs that use
it, as far as its own package goes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simlap.config import Experiment
from simlap.config.schema.plugins import Plugin, plugins_in
from simlap.record.cache import Cache

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("simlap.train.loop",)
"""Everything that a run computes hangs on these; what runs them where, and records it, changes no number."""


@functools.cache
def code_hash() -> str:
    """16 hex digits over the modules that training depends on, as they are now on disk."""
    return hash_of(modules(ROOTS, ROOT), ROOT)


def code_of(experiment: Experiment) -> str:
    """16 hex digits over the code that a run of this experiment depends on: `code_hash`, and the plug-ins that it uses."""
    plugins = plugins_in(experiment.method, "method")
    if not plugins:
        return code_hash()
    text = " ".join([code_hash(), *(plugin_hash(plugin) for plugin in plugins.values())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plugin_hash(plugin: Plugin) -> str:
    """16 hex digits over a plug-in's modules: that of its settings, that of its implementation, and what these import of the
    package each is in."""
    return _hash_of_roots((type(plugin).__module__, plugin.implementation.partition(":")[0]))


@functools.cache
def _hash_of_roots(names: tuple[str, ...]) -> str:
    hashes = []
    for name in names:
        root = _root(name.split(".")[0])
        hashes.append(hash_of(modules([name], root), root) if root is not None else "")
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def _root(package: str) -> Path | None:
    """The folder of a package, or for a module the folder that it would be; None where it has no source. Imports nothing."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve().with_suffix("") if spec.origin else None


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
        imported = [_absolute(other, name, file) for other in _facts(file)["imports"]]
        open_ += [other for other in (above, *imported) if other.split(".")[0] == package]
    return found


def _absolute(imported: str, by: str, file: Path) -> str:
    """`..a.b`, imported by module `x.y.z`, is `x.a.b`."""
    rest = imported.lstrip(".")
    if rest == imported:
        return imported
    levels = len(imported) - len(rest) - (file.name == "__init__.py")
    return ".".join([*by.split(".")[: len(by.split(".")) - levels], *([rest] if rest else [])])


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
    key = f"3 {file} {status.st_mtime_ns} {status.st_size}"
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
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            imports.add(module)
            imports.update(f"{module}.{alias.name}" if node.module else module + alias.name for alias in node.names)
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a docstring, of a field too, is an expression that is a mere string
            node.body = [entry for entry in body if not _is_text(entry)] or [ast.Pass()]  # type: ignore[attr-defined]
    words: list[str] = []
    _spell(tree, words)
    return {"digest": hashlib.sha256(" ".join(words).encode()).hexdigest(), "imports": sorted(imports)}


def _spell(node: Any, words: list[str]) -> None:
    """A part of a syntax tree as text, the same in every version of Python: `ast.dump` is not.

    What is empty is left out, for newer versions have more fields (`type_params`), and some have empty pieces in f-strings; so is
    whether a name is read or set, which its place tells.
    """
    if isinstance(node, ast.AST):
        words.append(f"{type(node).__name__}(")
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if isinstance(node, ast.JoinedStr):
                value = [piece for piece in node.values if not (isinstance(piece, ast.Constant) and piece.value == "")]
            if value is not None and value != [] and name != "ctx":
                words.append(f"{name}=")
                _spell(value, words)
        words.append(")")
    elif isinstance(node, list):
        words.append("[")
        for entry in node:
            _spell(entry, words)
        words.append("]")
    else:
        words.append(ascii(node))  # `repr` prints as they are the characters that this version's Unicode knows


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
