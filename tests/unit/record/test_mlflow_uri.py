"""Addresses of tracking stores, and the cursor kept for each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simlap.errors import UserError
from simlap.record.tracking.cursor import Cursor, Entry, study_cursor
from simlap.record.tracking.uri import (
    artifact_location,
    holds_runs,
    resolve_tracking_uri,
    run_link,
    study_link,
    uri_hash,
)
from simlap.redact import hide_credentials
from simlap.storage import Storage


def test_the_default_is_absolute_and_mlflows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = resolve_tracking_uri(None)
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_tracking_uri(uri) == uri
    from mlflow import get_tracking_uri

    assert get_tracking_uri() == uri
    assert artifact_location(uri, "filter") == f"file://{tmp_path}/mlruns/filter"


def test_the_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert resolve_tracking_uri(None) == "http://host:5000"
    assert resolve_tracking_uri("https://other") == "https://other"
    assert artifact_location("https://other", "filter") is None


def test_relative_sqlite_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri("sqlite:///sub/a.db?timeout=5") == f"sqlite:///{tmp_path}/sub/a.db?timeout=5"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"])
def test_stores_that_keep_nothing_are_refused_with_a_remedy(uri: str) -> None:
    with pytest.raises(UserError, match=r"mlflow\.db"):
        resolve_tracking_uri(uri)


def test_links_lead_to_the_page_and_show_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    url = run_link("https://ada:secret@host/ml", "digits", "3", "abc")
    assert url == "https://host/ml/#/experiments/3/runs/abc?workflowType=machine_learning"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////data/mlflow.db")
    assert study_link("sqlite:////data/mlflow.db", "filter", "3") == "simlap ui filter"
    elsewhere = study_link("sqlite:////data/my runs/mlflow.db", "filter", "3")
    assert elsewhere == "simlap ui filter --tracking-uri 'sqlite:////data/my runs/mlflow.db'"
    assert "secret" not in run_link("postgresql://ada:secret@host/ml", "digits", "3", "abc")
    assert uri_hash("https://ada:secret@host/ml") == uri_hash("https://bob:other@host/ml") != uri_hash("https://host")


def test_a_cursor_survives_and_a_broken_one_is_empty(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    cursor = study_cursor(storage, "filter", "http://host")
    cursor.experiment_id, cursor.runs = "7", {"study": Entry("r", epoch=2, artifacts={"a": "b"})}
    cursor.save(storage, "http://host")
    assert study_cursor(storage, "filter", "http://host").runs == cursor.runs
    assert study_cursor(storage, "filter", "http://other").runs == {}
    for broken in (b"{", b"[]", b'{"schema_version": 99}', b'{"schema_version": 1, "runs": {"a": {"no": 1}}}', b"\xff"):
        storage.write(cursor.path, broken)
        assert Cursor.load(storage, cursor.path).runs == {}


def test_a_missing_or_foreign_store_holds_nothing(tmp_path: Path) -> None:
    assert not holds_runs(f"sqlite:///{tmp_path}/none.db", ["a"])
    (tmp_path / "other.db").write_text("this is no database, but long enough to be looked at as if it were one")
    assert not holds_runs(f"sqlite:///{tmp_path}/other.db", ["a"])
    assert holds_runs("http://host", ["a"])


def test_a_password_in_a_servers_address_goes_where_the_client_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")
    assert resolve_tracking_uri("https://me:a%40b@host/mlflow/") == "https://host/mlflow"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "a@b")
    assert resolve_tracking_uri("https://host") == "https://host"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (
            "simlap ablate x.yaml --tracking-uri http://me:pw@host:1/a",
            "simlap ablate x.yaml --tracking-uri http://host:1/a",
        ),
        ("--storage=s3://key:secret@bucket/x 'postgresql://a:b@c/d'", "--storage=s3://bucket/x 'postgresql://c/d'"),
        ("me@host http://host/@x sqlite:////a/b@c.db", "me@host http://host/@x sqlite:////a/b@c.db"),
    ],
)
def test_what_is_shown_has_no_credentials(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden
