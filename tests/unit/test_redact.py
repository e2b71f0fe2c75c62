"""What is taken for a secret, in all its forms, and what is not."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from simlap.data.places import filesystem
from simlap.errors import UserError
from simlap.redact import hide_credentials, hide_in_bytes, hide_in_error, hide_in_tree, refuse_credentials
from simlap.storage import Storage

HUSH = "9x/Hush+Hush=7"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("to http://me:pw@host:1/a", "to http://host:1/a"),
        ("--storage=s3://key:secret@b/x 'postgresql://a:b@c/d'", "--storage=s3://b/x 'postgresql://c/d'"),
        ("s3://AKIA:ab/cd+e@bucket/x", "s3://bucket/x"),
        ("http://me:p@ss@host/a", "http://host/a"),
        ("abfs://c@a.net/x?sig=abc%2F&sv=2", "abfs://a.net/x?sig=***&sv=2"),
        ("db://h/x?password=abc;a=1 ?X-Amz-Signature=aa", "db://h/x?password=***;a=1 ?X-Amz-Signature=***"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: Basic bWU6=", "authorization: Basic ***"),
    ],
)
def test_secrets_by_their_place(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden
    assert hide_credentials(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "me@host http://host/@x sqlite:////a/b@c.db", "http://host:80/a@b", "s3://b/x?scheme=http&region=us",
        "a?design=2&sigma=3", "tokens: 5", "epoch=3, key=value",
    ],
)  # fmt: skip
def test_what_is_none_stays(text: str) -> None:
    assert hide_credentials(text) == text


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD", "RAY_AUTH_TOKEN", "X_CREDENTIALS", "db_pwd"],
)
def test_secrets_by_their_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, HUSH)
    for form in (HUSH, "9x%2FHush%2BHush%3D7"):
        assert hide_credentials(f"no {form}!") == "no ***!"
        assert hide_in_bytes(f"no {form}!\n".encode()) == b"no " + b"*" * len(form) + b"!\n"
    assert hide_in_tree({"a": [HUSH, 1, None], "b": {"c": (HUSH,)}}) == {"a": ["***", 1, None], "b": {"c": ("***",)}}


@pytest.mark.parametrize(
    "name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "MONKEY"]
)
def test_other_names_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, HUSH)
    assert hide_credentials(HUSH) == HUSH


def test_short_words_and_paths_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "digits")
    monkeypatch.setenv("MY_CREDENTIALS", str(tmp_path))
    assert hide_credentials(f"digits in {tmp_path}") == f"digits in {tmp_path}"


def test_a_password_of_an_address_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hush%2Fhush@host/db")
    monkeypatch.setattr("sys.argv", ["simlap", "--tracking-uri=http://me:another-one@host"])
    assert hide_credentials("not hush/hush nor hush%2Fhush nor another-one") == "not *** nor *** nor ***"


def test_a_header_of_mlflows_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    assert hide_credentials("sent bWU6aHVzaA==") == "sent ***"


def test_bytes_that_are_no_text_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", HUSH)
    data = b"\xff\x00 http://me:pw@host ?sig=ab \xfe"
    assert hide_in_bytes(data) == b"\xff\x00 http://*****@host ?sig=** \xfe"


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:hushhush@bucket/x", "s3://AKIA:hush/hush@bucket", "abfs://c@a.net/x?sig=hushhush"]
)
def test_an_address_of_files_with_a_secret_is_refused(uri: str) -> None:
    for open_it in (Storage, lambda uri: filesystem("data.path", uri), lambda uri: refuse_credentials(uri, "x")):
        with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as error:
            open_it(uri)
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    ["s3://b/x?endpoint_override=127.0.0.1%3A99&scheme=http", "abfs://c@a.net/x", "hdfs://h:80/a@b", "/a:b@c"],
)
def test_other_addresses_are_not(uri: str) -> None:
    refuse_credentials(uri, "storage")


def test_errors_lose_their_secrets_and_keep_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", HUSH)

    def fail() -> None:
        try:
            raise OSError(13, f"denied to {HUSH}", f"/x/{HUSH}")
        except OSError as cause:
            error = UserError(f"no {HUSH}", value=HUSH, choices=[HUSH])
            error.add_note(f"with {HUSH}")
            raise error from cause

    with pytest.raises(UserError) as caught:
        fail()
    error, cause = caught.value, caught.value.__cause__
    assert cause is not None
    cause.__context__ = error  # a circle
    hide_in_error(error)
    text = "".join(traceback.format_exception(error))
    assert HUSH not in text
    assert HUSH not in repr(vars(error))
    assert str(cause) == "[Errno 13] denied to ***: '/x/***'"
    assert "UserError: no ***" in text
    assert "with ***" in text
    hide_in_error(None)
