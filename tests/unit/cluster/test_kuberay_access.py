"""cluster/kuberay: who may do what there, with how much, and that no secret is in a file."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.unit.cluster.kube import (
    FILES,
    FOLDER,
    OURS,
    PAGES,
    amount,
    below,
    containers,
    documents,
    each,
    environment,
    ray_pods,
)


@each("Ray")
def test_token_authentication(document: dict[str, Any]) -> None:
    (cluster,) = below(document, "authOptions")
    secret = cluster["authOptions"]["secretName"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": secret}
    for pod in ray_pods(document):
        container = pod["containers"][0]
        given = environment(container)
        assert given["RAY_AUTH_MODE"]["value"] == "token"
        folder, _, key = given["RAY_AUTH_TOKEN_PATH"]["value"].rpartition("/")
        (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == folder]
        assert mount["readOnly"] is True
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
        assert volume["secret"] == {"secretName": secret, "defaultMode": 0o400}
        assert (secret, key) in made_secrets()


@each()
def test_limits_and_users(document: dict[str, Any]) -> None:
    asked = [*below(document, "autoscalerOptions")]
    for container in containers(document) + [options["autoscalerOptions"] for options in asked]:
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        assert {"cpu", "memory", "ephemeral-storage"} <= set(limits)
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    own = ray_pods(document)[0] if asked else None  # with the account that KubeRay makes for its autoscaler
    for pod in below(document, "containers"):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["fsGroup"] == (1000 if pod["containers"][0]["image"] == OURS else 999)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod is own or pod["automountServiceAccountToken"] is False
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        claimed = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])} | claimed


@each("Ray")
def test_shared_memory_and_grace(document: dict[str, Any]) -> None:
    for pod in ray_pods(document):
        (container,) = pod["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
        assert volume["emptyDir"]["medium"] == "Memory"
        limits = container["resources"]["limits"]
        assert amount(volume["emptyDir"]["sizeLimit"]) <= amount(limits["memory"]) / 2
        cache = float(environment(container)["SIMLAP_CACHE_GB"]["value"]) * 1e9
        assert cache <= amount(limits["ephemeral-storage"]) / 2
        assert pod["terminationGracePeriodSeconds"] >= 60


def asked_secrets() -> set[tuple[str, str]]:
    """Every key of a Secret that some file names."""
    asked = set()
    for _, document in documents():
        asked |= {(ref["secretKeyRef"]["name"], ref["secretKeyRef"]["key"]) for ref in below(document, "secretKeyRef")}
        for volume in below(document, "secret"):
            asked |= {(volume["secret"]["secretName"], item["key"]) for item in volume["secret"].get("items", [])}
    return asked


@cache
def made_secrets() -> dict[tuple[str, str], str]:
    """What secrets.sh makes where nothing is there, told by a kubectl that writes down what it is given."""
    with tempfile.TemporaryDirectory() as folder:
        kubectl = Path(folder, "kubectl")
        kubectl.write_text(
            "#!/bin/sh\n"
            'case "$1" in get) exit 1 ;; create) echo --- >> "$LOG"; cat >> "$LOG" ;; *) exit 2 ;; esac\n'
            'echo "$*" >> "$LOG.args"\n'
        )
        kubectl.chmod(0o755)
        log = Path(folder, "log")
        surroundings = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(log)}
        subprocess.run(["sh", str(FOLDER / "secrets.sh")], env=surroundings, check=True, capture_output=True)
        made = [document for document in yaml.safe_load_all(log.read_text()) if document]
        assert set(log.with_name("log.args").read_text().split()) == {"create", "-f", "-"}  # no value on a command line
    assert all((one["apiVersion"], one["kind"]) == ("v1", "Secret") for one in made)
    return {(one["metadata"]["name"], key): value for one in made for key, value in one["stringData"].items()}


def test_secrets_are_referenced_never_contained() -> None:
    assert documents("Secret") == []
    for _, document in documents():
        for container in containers(document):
            for name, entry in environment(container).items():
                if re.search(r"PASSWORD|SECRET|TOKEN|BACKEND_STORE", name) and not name.endswith("_PATH"):
                    assert set(entry) == {"name", "valueFrom"}, name
    made = made_secrets()
    assert asked_secrets() <= set(made)
    whole = {volume["secret"]["secretName"] for _, document in documents() for volume in below(document, "secret")}
    assert whole <= {name for name, _ in made}
    assert {name for name, _ in made} == {"simlap-ray-token", "simlap-redis", "simlap-mlflow"}
    written = "".join(path.read_text() for path in [*FILES, FOLDER / "secrets.sh", *PAGES])
    assert not any(value in written for (_, key), value in made.items() if key != "username")


def test_secrets_are_random_and_fit_together() -> None:
    made = made_secrets()
    made_secrets.cache_clear()
    again = made_secrets()
    assert {key for key, value in made.items() if again[key] == value} == {("simlap-mlflow", "username")}
    password = made["simlap-mlflow", "postgres-password"]
    assert re.fullmatch("[0-9a-f]{48}", password)
    assert f"simlap:{password}@postgres/mlflow" in made["simlap-mlflow", "backend-store-uri"]
    assert f"database_uri = {made['simlap-mlflow', 'backend-store-uri']}" in made["simlap-mlflow", "auth.ini"]
    assert len(made["simlap-mlflow", "password"]) >= 12  # MLflow's least


def test_mlflow() -> None:
    ((_, deployment),) = documents("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = environment(container)
    assert given["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]["value"] == "false"
    command = container["command"]
    assert command[:2] == ["mlflow", "server"]
    assert command[command.index("--app-name") + 1] == "basic-auth"
    ((_, service),) = [found for found in documents("Service") if found[0].startswith("mlflow")]
    assert all(document["spec"]["type"] == "ClusterIP" for _, document in documents("Service"))
    for _, document in documents("Ray"):
        uri = environment(ray_pods(document)[0]["containers"][0])["MLFLOW_TRACKING_URI"]["value"]
        assert uri == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        assert uri.removeprefix("http://") in given["MLFLOW_SERVER_ALLOWED_HOSTS"]["value"].split(",")
    labels = [
        one["spec"]["template"]["metadata"]["labels"]
        for kind in ("Deployment", "StatefulSet")
        for _, one in documents(kind)
    ]
    assert [document["spec"]["selector"] for _, document in documents("Service")] == labels
