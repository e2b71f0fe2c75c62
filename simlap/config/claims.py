"""What a study file claims: a small grammar, and the arms that a claim speaks of.

    claim    = side ("<" | ">") side ["by" number] ["at" levels] ["," "p" "<" number]
             | side "~" side "within" number       ["at" levels] ["," "p" "<" number]
    side     = levels | "baseline"
    levels   = factor=level { [","] factor=level }

`A < B by 0.01` says that the metric of B is more than 0.01 above that of A; `A ~ B within 0.01` that they differ by less than
0.01. A factor that is named nowhere has the baseline's level. A name with spaces, commas or any of `<>~=` stands in quotes:
`widths="[16, 32]"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simlap.errors import ConfigError

THRESHOLD = 0.05
"""Of a claim that names none."""
_NAME = r"""(?:"[^"]*"|'[^']*'|[^\s"'=<>~,]+)"""
_TOKEN = re.compile(
    rf"(?P<level>{_NAME}={_NAME})|(?P<sign>[<>~])|(?P<comma>,)|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![^\s,])"
    r"|(?P<word>[A-Za-z]+)(?![^\s,<>~])"
)
EXAMPLE = "filter=off < filter=on by 0.01 at pairs=arbitrary, p < 0.05"

Relation = Literal["<", ">", "~"]


@dataclass(frozen=True)
class Claim:
    """One claim, as it is written."""

    text: str
    left: Mapping[str, str]
    """Levels of factors; none: the baseline."""
    relation: Relation
    right: Mapping[str, str]
    margin: float
    """In the metric's units."""
    at: Mapping[str, str]
    """Levels that both sides have."""
    threshold: float
    """The adjusted p-value has to be below it."""


@dataclass(frozen=True)
class Grid:
    """The arms of a study, by which claims speak of them."""

    arms: Mapping[str, Mapping[str, str]]
    """Levels by name of the arm."""
    factors: Mapping[str, Sequence[str]]
    """Levels by factor; an arm's level that is not among them stands for a factor that does not exist there."""
    baseline: str
    """Name of an arm."""


def parse(text: str) -> Claim:
    """A claim. Raises ConfigError with what was expected, and where it stands."""
    return _Parser(text).claim()


def sides(claim: Claim, grid: Grid) -> tuple[str, str]:
    """The names of the two arms that a claim speaks of, left and right. Raises ConfigError."""
    for factor in claim.at:
        if factor in claim.left or factor in claim.right:
            raise _wrong(claim.text, f"{factor} stands on a side and under `at`", factor)
    left, right = (_arm(claim, side, grid) for side in (claim.left, claim.right))
    if left == right:
        raise _wrong(claim.text, "both sides are the same arm", left)
    return left, right


def check(claims: Sequence[str], grid: Grid, file: str) -> None:
    """Raises ConfigError for the first claim that cannot be read, or speaks of what the study does not have."""
    for i, text in enumerate(claims):
        try:
            if text in claims[:i]:
                raise _wrong(text, "is claimed twice", text)
            sides(parse(text), grid)
        except ConfigError as error:
            raise ConfigError(
                error.message, file=file, key=f"claims.{i}", value=error.value, choices=error.choices
            ) from None  # fmt: skip


def _arm(claim: Claim, side: Mapping[str, str], grid: Grid) -> str:
    """The one arm with these levels, that has the baseline's levels elsewhere."""
    baseline = grid.arms[grid.baseline]
    wanted = {**_known(claim, side, grid), **_known(claim, claim.at, grid)}

    def usual(factor: str, level: str) -> bool:
        exists = [level in grid.factors[factor] for level in (level, baseline[factor])]
        return not all(exists) or level == baseline[factor]

    def shared(name: str) -> int:
        return sum(grid.arms[name][factor] == level for factor, level in wanted.items())

    named = {name: have for name, have in grid.arms.items() if shared(name) == len(wanted)}
    found = [name for name, have in named.items() if all(f in wanted or usual(f, have[f]) for f in have)]
    if len(found) == 1:
        return found[0]
    spoken = " ".join(f"{factor}={level}" for factor, level in wanted.items()) or "baseline"
    if found:
        more = f"leaves open which of {len(found)} arms it is: name the other factors under `at`"
        raise _wrong(claim.text, more, spoken, found[:20])
    raise _wrong(
        claim.text, "the study has no such arm, the baseline's levels being those of all other factors", spoken,
        [name for name in grid.arms if shared(name) == max(map(shared, grid.arms))][:20],
    )  # fmt: skip


def _known(claim: Claim, levels: Mapping[str, str], grid: Grid) -> dict[str, str]:
    found = {}
    for factor, level in levels.items():
        if factor not in grid.factors:
            raise _wrong(claim.text, "no such factor", factor, grid.factors)
        name = _level(level, grid.factors[factor])
        if name is None:
            raise _wrong(claim.text, f"no such level of {factor}", level, grid.factors[factor])
        found[factor] = name
    return found


def _level(text: str, levels: Sequence[str]) -> str | None:
    """The level by its name, or of numbers by its value: `1e-2` for 0.01."""
    if text in levels:
        return text
    number = _number(text)
    return next((level for level in levels if number is not None and _number(level) == number), None)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _wrong(claim: str, message: str, value: str, choices: Iterable[str] = ()) -> ConfigError:
    return ConfigError(f"`{claim}`: {message}", key="claims", value=value, choices=choices)


class _Parser:
    """From left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text, self._place, self._tokens = text, 0, list[tuple[str, str]]()
        end = 0
        while text[end:].strip():
            end += len(text[end:]) - len(text[end:].lstrip())
            match = _TOKEN.match(text, end)
            if match is None:
                raise _wrong(text, f"cannot be read from here on; it is written like `{EXAMPLE}`", text[end:])
            assert match.lastgroup is not None
            self._tokens.append((match.lastgroup, match[0]))
            end = match.end()

    def claim(self) -> Claim:
        left = self._side()
        relation = self._take("sign", "<, > or ~")
        right = self._side()
        margin = 0.0
        if relation == "~":
            self._word("within")
            margin = self._positive()
        elif self._is("word", "by"):
            self._place += 1
            margin = self._positive(zero=True)
        at: dict[str, str] = {}
        if self._is("word", "at"):
            self._place += 1
            at = self._levels("factor=level")
        threshold = THRESHOLD
        if self._is("comma"):
            self._place += 1
            self._word("p")
            if self._take("sign", "<") != "<":
                raise self._expected("<", back=1)
            threshold = self._positive()
            if threshold >= 1:
                raise self._expected("a p-value below 1", back=1)
        if self._place < len(self._tokens):
            raise self._expected("`by`, `at`, `, p <` or the end" if relation != "~" else "`at`, `, p <` or the end")
        relations: dict[str, Relation] = {"<": "<", ">": ">", "~": "~"}
        return Claim(self.text, left, relations[relation], right, margin, at, threshold)

    def _side(self) -> dict[str, str]:
        if self._is("word", "baseline"):
            self._place += 1
            return {}
        return self._levels("factor=level or `baseline`")

    def _levels(self, expected: str) -> dict[str, str]:
        found: dict[str, str] = {}
        while not found or self._more_levels():
            factor, level = _split(self._take("level", expected))
            if factor in found:
                raise self._expected(f"{factor} once", back=1)
            found[factor] = level
        return found

    def _more_levels(self) -> bool:
        if self._is("level"):
            return True
        if self._is("comma") and self._kind(1) == "level":
            self._place += 1
            return True
        return False

    def _positive(self, *, zero: bool = False) -> float:
        value = float(self._take("number", "a number"))
        if not (0 < value < math.inf or (zero and value == 0)):
            raise self._expected("0 or a positive number" if zero else "a positive number", back=1)
        return value

    def _word(self, word: str) -> None:
        if self._take("word", f"`{word}`") != word:
            raise self._expected(f"`{word}`", back=1)

    def _take(self, kind: str, expected: str) -> str:
        if not self._is(kind):
            raise self._expected(expected)
        self._place += 1
        return self._tokens[self._place - 1][1]

    def _kind(self, ahead: int = 0) -> str | None:
        place = self._place + ahead
        return self._tokens[place][0] if place < len(self._tokens) else None

    def _is(self, kind: str, word: str | None = None) -> bool:
        return self._kind() == kind and (word is None or self._tokens[self._place][1] == word)

    def _expected(self, what: str, *, back: int = 0) -> ConfigError:
        place = self._place - back
        got = self._tokens[place][1] if place < len(self._tokens) else "the end"
        return _wrong(self.text, f"expected {what}; it is written like `{EXAMPLE}`", got)


def _split(level: str) -> tuple[str, str]:
    """`factor=level` without quotes; the first may have an equals sign in them."""
    match = re.fullmatch(rf"({_NAME})=({_NAME})", level)
    assert match is not None  # so it was read
    factor, name = (part[1:-1] if part[0] in "\"'" else part for part in match.groups())
    return factor, name
