"""Two-level fractional factorial designs 2^(k-p): generators, the fraction's runs, and what is confounded with what.

Words are sets of factors, kept as bit masks over the factors (bit i: factor i); the product of two effects is their exclusive or.
Box, Hunter & Hunter, Statistics for Experimenters (2005), chapter 6. The "-" level of every factor is the baseline's, and of the
2^p fractions the one that holds the baseline is taken: so a word of the defining relation has the sign (-1)^(its length).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHJKL"
MAX_FACTORS = len(LETTERS)

STANDARD: dict[tuple[int, int], str] = {
    (5, 2): "AB AC",
    (6, 2): "ABC BCD",
    (6, 3): "AB AC BC",
    (7, 2): "ABCD ABDE",
    (7, 3): "ABC BCD ACD",
    (7, 4): "AB AC BC ABC",
    (8, 2): "ABCD ABEF",
    (8, 3): "ABC ABD BCDE",
    (8, 4): "BCD ACD ABC ABD",
    (9, 2): "ACDFG BCEFG",
    (9, 3): "ABCD ACEF CDEF",
    (9, 4): "BCDE ACDE ABDE ABCE",
    (9, 5): "ABC BCD ACD ABD ABCD",
    (10, 3): "ABCG BCDE ACDF",
    (10, 4): "BCDF ACDF ABDE ABCE",
    (10, 5): "ABCD ABCE ABDE ACDE BCDE",
    (10, 6): "ABC BCD ACD ABD ABCD AB",
    (11, 4): "ABCG BCDE ACDF ABCDEFG",
    (11, 5): "CDE ABCD ABF BDEF ADEF",
    (11, 6): "ABC BCD CDE ACD ADE BDE",
    (11, 7): "ABC BCD ACD ABD ABCD AB AC",
}
"""(k, p) -> generators of the last p factors, in order, as Box, Hunter & Hunter (2005) tabulate them; of minimum aberration
(Fries & Hunter 1980; Chen, Sun & Wu 1993). Half fractions (p = 1) are made of all other factors."""


class DesignError(ValueError):
    """Why there is no such design, and which there are."""

    def __init__(self, key: str, message: str, value: object = None, choices: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key, self.message, self.value, self.choices = key, message, value, tuple(choices)


@dataclass(frozen=True)
class AliasRow:
    """A main effect or two-factor interaction, and what its estimate cannot be told apart from."""

    effect: str
    aliases: tuple[str, ...]
    """With sign (`-a*b`), of the order asked for; shorter ones first."""


@dataclass(frozen=True)
class AliasTable:
    """What a fraction confounds. Interactions are written `a*b`."""

    factors: tuple[str, ...]
    runs: int
    """Arms of the whole fraction."""
    resolution: int
    """Length of the shortest word."""
    generators: tuple[str, ...]
    """`d = a*b*c`, with sign."""
    relation: tuple[str, ...]
    """The defining relation: words that are constant over the arms, with sign; shorter ones first."""
    word_lengths: dict[int, int]
    """Length -> how many words of the defining relation have it."""
    rows: tuple[AliasRow, ...]
    """Main effects, then two-factor interactions."""
    order: int
    """Effects of more factors than this are left out of `rows`."""
    excluded: int = 0
    """Arms of the fraction that the study leaves out; the table holds exactly where there are none."""


@dataclass(frozen=True)
class Fraction:
    """A 2^(k-p) design. The runs are those of the basic factors, the generated ones follow."""

    factors: tuple[str, ...]
    generators: dict[int, int]
    """Generated factor -> mask of the basic factors that it is the product of."""

    @property
    def basic(self) -> list[int]:
        return [i for i in range(len(self.factors)) if i not in self.generators]

    @property
    def size(self) -> int:
        return 1 << len(self.basic)

    def words(self) -> list[int]:
        """The defining relation without I: products of all non-empty sets of generator words."""
        words = [0]
        for factor, mask in self.generators.items():
            words += [word ^ mask ^ (1 << factor) for word in words]
        return words[1:]

    @property
    def resolution(self) -> int:
        return min(word.bit_count() for word in self.words())

    def runs(self) -> Iterator[tuple[bool, ...]]:
        """Whether each factor has its "+" level, run by run; the first run has none."""
        for signs in itertools.product((False, True), repeat=len(self.basic)):
            high = dict(zip(self.basic, signs, strict=True))
            # with the fraction's signs, a generated factor is "+" where an odd number of its factors are
            for factor, mask in self.generators.items():
                high[factor] = sum(high[i] for i in self.basic if mask >> i & 1) % 2 == 1
            yield tuple(high[i] for i in range(len(self.factors)))


def aliases(fraction: Fraction, order: int = 2) -> AliasTable:
    """What each main effect and two-factor interaction is confounded with.

    Args:
        fraction: the design.
        order: the most factors of an effect that is listed as an alias; those of more are commonly held to be negligible.
    """
    words = sorted(fraction.words(), key=lambda word: (word.bit_count(), word))
    k = len(fraction.factors)

    def named(mask: int) -> str:
        return "*".join(fraction.factors[i] for i in range(k) if mask >> i & 1)

    def sign(word: int) -> str:
        return "-" if word.bit_count() % 2 else ""

    rows = []
    for size in (1, 2):
        for members in itertools.combinations(range(k), size):
            effect = sum(1 << i for i in members)
            others = [(effect ^ word, sign(word)) for word in words if 0 < (effect ^ word).bit_count() <= order]
            others.sort(key=lambda other: (other[0].bit_count(), other[0]))
            rows.append(AliasRow(named(effect), tuple(minus + named(other) for other, minus in others)))
    return AliasTable(
        factors=fraction.factors,
        runs=fraction.size,
        resolution=fraction.resolution,
        generators=tuple(
            f"{fraction.factors[factor]} = {sign(mask | 1 << factor)}{named(mask)}"
            for factor, mask in fraction.generators.items()
        ),
        relation=tuple(sign(word) + named(word) for word in words),
        word_lengths=dict(sorted(Counter(word.bit_count() for word in words).items())),
        rows=tuple(rows),
        order=order,
    )


def standard(factors: Sequence[str], *, resolution: int | None = None, runs: int | None = None) -> Fraction:
    """The minimum aberration design of given size, or the smallest one of a resolution at least as high. Raises DesignError.

    Args:
        factors: in any order; the letters of the tables are given to them in alphabetical order, so that the order of the keys
            in a file does not matter.
        resolution: 3, 4 or 5.
        runs: how many arms.
    """
    k = len(factors)
    key, value = ("resolution", resolution) if runs is None else ("runs", runs)
    if not 3 <= k <= MAX_FACTORS:
        raise DesignError(
            key, f"standard fractions have 3 to {MAX_FACTORS} factors, and this study has {k}; give generators", value
        )
    fractions = [_lettered(factors, words) for words in _tabulated(k)]  # smallest first
    fitting = [f for f in fractions if (f.size == runs if runs is not None else f.resolution >= (resolution or 3))]
    if not fitting:
        have = [f"{f.size} arms with resolution {f.resolution}" for f in fractions]
        what = "so high a resolution" if runs is None else "so many arms"
        raise DesignError(key, f"no standard fraction of {k} two-level factors has {what}", value, have)
    return fitting[0]


def generated(factors: Sequence[str], names: dict[str, int], generators: Sequence[str]) -> Fraction:
    """The fraction with these generators (`d = a*b*c`). Raises DesignError.

    Args:
        factors: in the order of the file.
        names: what generators may call the factors -> their place in `factors`.
        generators: one per generated factor.
    """
    parsed: dict[int, int] = {}
    for i, text in enumerate(generators):
        factor, members = _parse(text, f"generators.{i}", names)
        if factor in parsed:
            raise DesignError(f"generators.{i}", f"{factors[factor]} has a generator already", text)
        parsed[factor] = sum(1 << member for member in members)
    for i, (text, (factor, mask)) in enumerate(zip(generators, parsed.items(), strict=True)):
        key = f"generators.{i}"
        basic = [factors[j] for j in range(len(factors)) if j not in parsed]
        if inside := [factors[j] for j in parsed if mask >> j & 1]:
            raise DesignError(key, f"is made of {inside[0]}, which has a generator itself", text, basic)
        same = next(j for j, other in parsed.items() if other == mask)
        if same != factor:
            raise DesignError(key, f"repeats the word of {factors[same]}: the two would be changed together", text)
    fraction = Fraction(tuple(factors), parsed)
    if fraction.resolution < 3:
        short = min(fraction.words(), key=int.bit_count)
        pair = " and ".join(factors[i] for i in range(len(factors)) if short >> i & 1)
        raise DesignError(
            "generators",
            f"make a design of resolution {fraction.resolution}, which cannot tell {pair} apart; at least 3",
            generators,
        )
    return fraction


def _parse(text: str, key: str, names: dict[str, int]) -> tuple[int, list[int]]:
    left, equals, right = (part.strip() for part in text.partition("="))
    words = [word.strip() for word in right.split("*")]
    if not equals or not left or not all(words):
        raise DesignError(key, "a generator is written d = a*b*c, with names of factors", text)
    if words[0].startswith("-") and words[0] not in names:
        raise DesignError(key, "has no sign: that fraction is taken which holds the baseline", text)
    for word in (left, *words):
        if word not in names:
            raise DesignError(key, "no such factor", word, list(names))
    members = [names[word] for word in words]
    if len(set(members)) != len(members) or names[left] in members:
        raise DesignError(key, "names a factor twice", text)
    if len(members) < 2:
        raise DesignError(
            key, "makes a design of resolution 2: the two factors would be changed together; at least 3", text
        )
    return names[left], members


def _tabulated(k: int) -> list[list[str]]:
    """Generators of the standard fractions of k factors, the smallest design first."""
    listed = [words.split() for (factors, _), words in sorted(STANDARD.items(), reverse=True) if factors == k]
    return [*listed, [LETTERS[: k - 1]]]


def _lettered(factors: Sequence[str], words: Sequence[str]) -> Fraction:
    """A tabulated design, with the factors in the order given and the letters in that of their names."""
    places = sorted(range(len(factors)), key=lambda i: factors[i])
    first = len(factors) - len(words)
    masks = [sum(1 << places[LETTERS.index(letter)] for letter in word) for word in words]
    return Fraction(tuple(factors), {places[first + i]: mask for i, mask in enumerate(masks)})
