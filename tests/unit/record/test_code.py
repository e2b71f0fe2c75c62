"""What counts as other code, and what does not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from simlap.record.code import ROOT, _parse, code_hash, hash_of, modules

SOURCE = """
import a.b as c
from ..d import e

X: int = 1
Y, *Z = {**{}, None: -1.5e3}, "é\\u3000", b"\\x00", 2j, ...

@c.decorated(key="v")
class A(e, metaclass=type):
    'Doc.'
    x: list[int]

    def __init__(self, /, a, *rest, b=None, **more) -> None: ...

    @property
    async def f(self):
        async with self as one, e:
            return [i async for i in one if i]

def g(n, width=3):
    global X
    try:
        match n:
            case [1, *_] | {"k": None, **other} if n:
                yield f"{n!r:>{width}}" "tail" f"{{{other}}} {n=:.2f}" "" f"{n:}"
            case A(x=-1) as found:
                del found
            case _:
                return lambda *, k=0: (k := k + 1)
    except* (ValueError, OSError) as error:
        raise RuntimeError("no") from error
    finally:
        assert not X, "why"
    while n > 0 and n != 1:
        n -= 1
    else:
        pass
"""


def test_the_hash_is_of_what_training_imports(tmp_path: Path) -> None:
    package = tmp_path / "simlap"
    package.mkdir()
    files = {
        "__init__": "", "a": "from simlap.b import f\n", "b": "def f():\n    'Doc.'\n    import simlap.c\n", "c": "X = 1\n",
        "other": "Y = 1\n",
    }  # fmt: skip
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)

    def digest() -> str:
        return hash_of(modules(["simlap.a"], package), package)

    assert modules(["simlap.a"], package) == {"simlap", "simlap.a", "simlap.b", "simlap.c"}
    before = digest()
    (package / "other.py").write_text("Y = 2\n")
    (package / "b.py").write_text("# a comment\ndef f():\n    'Another doc.'\n    import simlap.c  # why\n")
    assert digest() == before
    (package / "c.py").write_text("X = 22\n")
    assert digest() != before
    known = modules(["simlap.train.loop"], ROOT)
    assert {"simlap.losses.subspace_info_nce", "simlap.nn.filter", "simlap.train.step", "simlap.data.loader"} <= known
    assert not any(name.startswith(("simlap.study", "simlap.cli", "simlap.report")) for name in known)
    assert len(code_hash()) == 16


def test_the_hash_is_the_same_in_every_version_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _parse(SOURCE)["digest"][:16] == "1592014ff97fff87", "as made with 3.11, 3.12 and 3.13"

    class FunctionDef(ast.FunctionDef):
        """Of a version to come."""

        _fields = (*ast.FunctionDef._fields, "to_come")

    def parse(source: str) -> ast.AST:
        tree: ast.AST = compile(source, "", "exec", ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if type(node) is ast.FunctionDef:
                node.__class__ = FunctionDef
                vars(node)["to_come"] = []
        return tree

    before = _parse(SOURCE)
    monkeypatch.setattr(ast, "parse", parse)
    assert _parse(SOURCE) == before
