"""What MLflow accepts, and what we turn it into."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simlap.record.tracking.names import MAX_KEY, Point, batches, clip, finite, flatten, safe_name


def test_flatten_gives_dotted_text() -> None:
    tree = {"a": {"b": 1, "c": {"d": 0.003}}, "e": [1, {"f": None}], "g": True, "h": "text", "i": {}, "j": None}
    assert flatten(tree) == {
        "a.b": "1", "a.c.d": "0.003", "e": '[1, {"f": null}]', "g": "true", "h": "text", "i": "{}", "j": "null",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["train/loss", "val/knn_top1_k20", "factor.filter", "a b", "größe"])
def test_accepted_names_stay(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name", ["p@1", "a[0]", "../up", "a//b", "/a", ".", "", "a/./b", "x" * 300, "a=b, c=d", "trail/"]
)
def test_refused_names_are_changed_for_mlflow(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    safe = safe_name(name)
    assert safe != name
    assert len(safe) <= MAX_KEY
    _validate_metric_name(safe)
    _validate_param_name(safe)
    _validate_tag_name(safe)


@given(st.text(alphabet="ab/.@[ é\n:", max_size=12))
def test_any_name_is_accepted_by_mlflow_once_made_safe(name: str) -> None:
    assert _accepted_by_mlflow(safe_name(name))


def _accepted_by_mlflow(name: str) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric_name

    try:
        _validate_metric_name(name)
    except MlflowException:
        return False
    return True


@given(st.lists(st.text(alphabet="a/@[.", max_size=4), unique=True))
def test_two_names_never_become_one(names: list[str]) -> None:
    assert len({safe_name(name) for name in names}) == len(names)


def test_values_that_mlflow_would_distort_are_left_out() -> None:
    assert finite({"a": 1, "b": math.nan, "c": math.inf, "d": -math.inf, "e@": 2.0}) == {"a": 1.0, safe_name("e@"): 2.0}


def test_clip_keeps_the_limit() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("abcd", 3) == "ab…"


@given(st.integers(0, 2500), st.integers(0, 250), st.integers(0, 250), st.sampled_from([1, 6000]))
def test_batches_respect_the_limits_and_lose_nothing(metrics: int, params: int, tags: int, length: int) -> None:
    points = [Point("m", float(i), 0, i) for i in range(metrics)]
    param = {f"p{i}": "x" * length for i in range(params)}
    tag = {f"t{i}": "y" * length for i in range(tags)}
    sent_points: list[Point] = []
    sent_params: dict[str, str] = {}
    sent_tags: dict[str, str] = {}
    for some, p, t in batches(points, param, tag):
        assert len(p) <= 100
        assert len(t) <= 100
        assert len(some) + len(p) + len(t) <= 1000
        assert sum(map(len, (*p.values(), *t.values()))) < 900_000
        sent_points += some
        sent_params |= p
        sent_tags |= t
    assert (sent_points, sent_params, sent_tags) == (points, param, tag)
