"""The grammar of claims, the arms they speak of, and what is refused with which words."""

from __future__ import annotations

import itertools

import pytest

from simlap.config.claims import THRESHOLD, Grid, check, parse, sides
from simlap.errors import ConfigError

FACTORS = {"filter": ["on", "off"], "pairs": ["arbitrary", "identical", "distinct"], "lr": ["0.01", "0.1"]}
GRID = Grid(
    {
        " ".join(f"{f}={v}" for f, v in zip(FACTORS, levels, strict=True)): dict(zip(FACTORS, levels, strict=True))
        for levels in itertools.product(*FACTORS.values())
    },
    FACTORS,
    "filter=on pairs=arbitrary lr=0.01",
)
ON, OFF = "filter=on pairs=arbitrary lr=0.01", "filter=off pairs=arbitrary lr=0.01"


def test_the_whole_of_a_claim() -> None:
    found = parse("filter=off < filter=on by 0.01 at pairs=distinct lr=1e-1, p < 0.01")
    assert (found.left, found.relation, found.right) == ({"filter": "off"}, "<", {"filter": "on"})
    assert (found.margin, found.at, found.threshold) == (0.01, {"pairs": "distinct", "lr": "1e-1"}, 0.01)
    assert sides(found, GRID) == ("filter=off pairs=distinct lr=0.1", "filter=on pairs=distinct lr=0.1")


@pytest.mark.parametrize(
    ("text", "relation", "margin", "threshold", "arms"),
    [
        ("filter=off < filter=on", "<", 0.0, THRESHOLD, (OFF, ON)),
        ("filter=off<filter=on,p<0.1", "<", 0.0, 0.1, (OFF, ON)),
        ("baseline > filter=off by 2e-3", ">", 0.002, THRESHOLD, (ON, OFF)),
        ("filter=off ~ baseline within 0.5, p < 0.01", "~", 0.5, 0.01, (OFF, ON)),
        ("filter=off, pairs=arbitrary < baseline by 0", "<", 0.0, THRESHOLD, (OFF, ON)),
        ("filter='off' < \"filter\"=on at pairs=arbitrary, lr=0.01, p < 0.2", "<", 0.0, 0.2, (OFF, ON)),
        ("filter=off < lr=0.1", "<", 0.0, THRESHOLD, (OFF, "filter=on pairs=arbitrary lr=0.1")),
    ],
)
def test_forms(text: str, relation: str, margin: float, threshold: float, arms: tuple[str, str]) -> None:
    found = parse(text)
    assert (found.relation, found.margin, found.threshold) == (relation, margin, threshold)
    assert sides(found, GRID) == arms


def test_names_in_quotes() -> None:
    factors = {"sizes": ["[16, 32]", "a=b<c"]}
    grid = Grid({"one": {"sizes": "[16, 32]"}, "two": {"sizes": "a=b<c"}}, factors, "one")
    assert sides(parse("sizes='a=b<c' > sizes=\"[16, 32]\""), grid) == ("two", "one")


def test_a_factor_that_exists_in_some_arms_only() -> None:
    factors = {"gate": ["open", "gumbel"], "noise": ["none", "logistic", "gumbel"]}
    arms = {
        "gate=open": {"gate": "open", "noise": "–"},
        "gate=gumbel noise=logistic": {"gate": "gumbel", "noise": "logistic"},
        "gate=gumbel noise=gumbel": {"gate": "gumbel", "noise": "gumbel"},
    }
    grid = Grid(arms, factors, "gate=open")
    found = parse("gate=gumbel noise=gumbel > baseline")
    assert sides(found, grid) == ("gate=gumbel noise=gumbel", "gate=open")
    with pytest.raises(ConfigError, match=r"leaves open which of 2 arms it is: name the other factors"):
        sides(parse("gate=gumbel > baseline"), grid)
    with pytest.raises(
        ConfigError, match=r"no such arm.*Valid: gate=gumbel noise=logistic, gate=gumbel noise=gumbel\."
    ):
        sides(parse("gate=gumbel noise=none > baseline"), grid)
    other = Grid(arms, factors, "gate=gumbel noise=logistic")
    assert sides(parse("gate=open < baseline"), other) == ("gate=open", "gate=gumbel noise=logistic")


WRONG = {
    "filtre=off < filter=on": ["no such factor (got 'filtre'); did you mean 'filter'? Valid: filter, pairs, lr."],
    "filter=of < filter=on": ["no such level of filter (got 'of'); did you mean 'off'? Valid: on, off."],
    "lr=0.02 < lr=0.1": ["no such level of lr (got '0.02')", "Valid: 0.01, 0.1."],
    "filter=off < filter=on by 1e999": ["expected 0 or a positive number", "(got '1e999')"],
    "filter=off < filter=off": ["both sides are the same arm"],
    "filter=off < filter=on at filter=on": ["filter stands on a side and under `at`"],
    "filter=off filter=on < baseline": ["expected filter once"],
    "filter=off": ["expected <, > or ~", "(got 'the end')", "it is written like `filter=off < filter=on by 0.01"],
    "filter=off is worse": ["expected <, > or ~", "(got 'is')"],
    "filter=off < ": ["expected factor=level or `baseline`"],
    "filter=off < filter=on by": ["expected a number"],
    "filter=off < filter=on by -1": ["expected 0 or a positive number", "(got '-1')"],
    "filter=off < filter=on by 1 %": ["cannot be read from here on", "(got '%')"],
    "filter=off ~ filter=on": ["expected `within`"],
    "filter=off ~ filter=on within 0": ["expected a positive number"],
    "filter=off < filter=on, p > 0.05": ["expected <"],
    "filter=off < filter=on, p < 5": ["expected a p-value below 1"],
    "filter=off < filter=on, p < 0.05 at lr=0.1": ["expected `by`, `at`, `, p <` or the end", "(got 'at')"],
    "filter=off < filter=on within 0.1": ["(got 'within')"],
    "": ["expected factor=level or `baseline`", "(got 'the end')"],
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(["filter=off < baseline", text], GRID, "study.yaml")
    message = str(caught.value)
    assert message.startswith(f"study.yaml: claims.1: `{text}`: ")
    for part in WRONG[text]:
        assert part in message


def test_a_claim_twice() -> None:
    with pytest.raises(ConfigError, match="is claimed twice"):
        check(["filter=off < baseline"] * 2, GRID, "study.yaml")
