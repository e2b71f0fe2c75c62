"""The MLflow client as this package uses it. mlflow is imported on the first call: that takes seconds."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeated POST would create a run twice; we retry with a look-up
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # drops data silently under load
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set before mlflow is imported, where the user has not set them."""


def quiet_client(tracking_uri: str) -> MlflowClient:
    """A client that says nothing and does not retry behind our back."""
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # importing mlflow configures its own loggers
            logging.getLogger(name).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
