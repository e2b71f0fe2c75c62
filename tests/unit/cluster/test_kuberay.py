"""cluster/kuberay and cluster/image: the files are what KubeRay takes, and do what their page says."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

import simlap
from simlap.config import yaml as strict_yaml
from simlap.run.cluster import _ENVIRONMENT
from tests.unit.test_docs import check_command

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "cluster/kuberay"
IMAGE = ROOT / "cluster/image"
SCHEMAS = ROOT.parent / "shared/schemas"
FILES = sorted(FOLDER.glob("*.yaml"))
PAGES = [FOLDER / "README.md", IMAGE / "README.md"]
OURS = f"simlap:{simlap.__version__}-cpu"
METADATA = {"type": "object", "properties": {"name": {}, "labels": {"type": "object"}, "annotations": {"type": "object"}}}
FREE = {"labels", "annotations", "rayStartParams", "requests", "limits"}
"""Mappings whose keys are the user's."""

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="no ../shared/schemas beside the checkout")


def parts(path: Path) -> list[str]:
    return path.read_text().split("\n---\n")


@cache
def documents(kind: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All documents of a kind with a name for each; `Ray`: of both of Ray's kinds."""
    found = [(path.name, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]
    return [
        (f"{name} {document['kind']}", document)
        for name, document in found
        if document["kind"] == kind or not kind or (kind == "Ray" and document["kind"].startswith("Ray"))
    ]


def each(kind: str = "") -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", [pytest.param(found, id=name) for name, found in documents(kind)])


def below(tree: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every mapping of the tree that has this key."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree
        for value in tree.values():
            yield from below(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from below(value, key)


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in below(document, "containers") for container in pod["containers"]]


def ray_pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs of head and workers, in that order."""
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def environment(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def amount(text: str | int) -> float:
    """A quantity of Kubernetes' as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}[unit]


# --- schemas -----------------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """The schema with every key forbidden that it does not name, whatever it says itself."""
    if isinstance(schema, list):
        return [strict(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: strict(value) for key, value in schema.items()}
    if isinstance(named.get("properties"), dict):
        metadata = named["properties"].get("metadata")
        if metadata is not None and "properties" not in metadata:
            named["properties"]["metadata"] = {**METADATA, "additionalProperties": False}
        if "type" in named:  # else `properties` is a field's name
            named.setdefault("additionalProperties", False)
    return named


@cache
def validator(kind: str) -> Draft202012Validator:
    """For RayJob and RayCluster, and for a pod's template and a volume claim, which are parts of them."""
    ray = {"RayJob": "rayjob", "RayCluster": "raycluster"}.get(kind, "raycluster")
    schema = strict(json.loads((SCHEMAS / f"{ray}.v1.schema.json").read_text()))
    if kind in {"Pod", "PersistentVolumeClaim"}:
        schema = schema["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    if kind == "PersistentVolumeClaim":
        volume = schema["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
        schema = volume["ephemeral"]["properties"]["volumeClaimTemplate"]
    return Draft202012Validator(schema)


def errors(kind: str, document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator(kind).iter_errors(document)]


def planted(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The document with one key mistyped, for every key whose name is not the user's."""

    def mistype(tree: Any, path: str, free: bool) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
        if isinstance(tree, list):
            for index, value in enumerate(tree):
                yield from mistype(value, f"{path}[{index}]", False)
        elif isinstance(tree, dict):
            for key in list(tree):
                if not free:
                    yield f"{path}.{key}", lambda k=key: tree.update({f"{k}x": tree.pop(k)}), lambda k=key: tree.update({k: tree.pop(f"{k}x")})  # type: ignore[misc]  # fmt: skip
                yield from mistype(tree[key], f"{path}.{key}", key in FREE)

    changed = copy.deepcopy(document)
    for path, plant, mend in list(mistype(changed, "", False)):
        plant()
        yield path, changed
        mend()
    assert changed == document


@needs_schemas
@each("Ray")
def test_kuberay_takes_it(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == "ray.io/v1"
    assert errors(document["kind"], document) == []
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"])


@needs_schemas
@pytest.mark.parametrize("name", ["rayjob-ablate-kueue.yaml RayJob", "raycluster.yaml RayCluster", "raycluster-ft.yaml RayCluster"])
def test_every_mistyped_field_is_found(name: str) -> None:
    document = dict(documents("Ray"))[name]
    tried = [(path, bool(errors(document["kind"], changed))) for path, changed in planted(document)]
    assert [path for path, found in tried if not found] == []
    assert len(tried) > 100


@needs_schemas
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "2"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "groupName"), None),
        (("rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("backoffLimit",), True),
    ],
)
def test_a_wrong_value_is_found(place: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(dict(documents("Ray"))["rayjob-ablate.yaml RayJob"])
    tree = document["spec"]
    for key in place[:-1]:
        tree = tree[key]
    tree.update({place[-1]: value})
    if value is None:
        del tree[place[-1]]
    assert errors("RayJob", document)


@needs_schemas
def test_other_pods_and_claims() -> None:
    """Kubernetes' own kinds have no schema here, but their pods and claims are those that a RayCluster has."""
    checked = []
    for name, document in documents():
        if document["kind"] == "Pod":
            checked.append((name, errors("Pod", {"spec": document["spec"]})))
        elif document["kind"] in {"Deployment", "StatefulSet"}:
            checked.append((name, errors("Pod", document["spec"]["template"])))
        elif document["kind"] == "PersistentVolumeClaim":
            checked.append((name, errors("PersistentVolumeClaim", {"spec": document["spec"]})))
        for claim in document["spec"].get("volumeClaimTemplates", []):
            checked.append((name, errors("PersistentVolumeClaim", claim)))
    assert [found for found in checked if found[1]] == []
    assert len(checked) == 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_both_readings_of_yaml_agree(path: Path) -> None:
    """Kubernetes reads YAML 1.1, where 0400 is 256 and `on` is true; nothing may depend on that. Aliases and double keys are errors."""
    read = [strict_yaml.parse(part, file=path.name) for part in parts(path)]
    assert read == list(yaml.safe_load_all(path.read_text()))
    assert all({"apiVersion", "kind", "metadata", "spec"} >= set(document) for document in read)
    assert all(document["metadata"]["name"] for document in read)
    assert max(map(len, path.read_text().splitlines())) <= 150


# --- what runs ---------------------------------------------------------------------------------------------------------


@each("RayJob")
def test_entry_point(document: dict[str, Any]) -> None:
    spec = document["spec"]
    line = spec["entrypoint"]
    words = shlex.split(line)
    assert words[:2] in (["simlap", "run"], ["simlap", "ablate"])
    check_command(shlex.join(word.removeprefix("/app/") for word in words))
    # the submitter's shell reads the same words: nothing in them is a pattern, a variable or another command
    read = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    assert read.stdout.splitlines() == words
    assert words[words.index("--address") + 1] == "auto"
    assert ("--resume" in words) == (words[1] == "run")
    storage = words[words.index("--storage") + 1]
    for pod in ray_pods(document):
        mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        if "://" in storage:
            assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "simlap-s3"}}]
        else:
            assert "/storage" in mounts
            assert storage.startswith("/storage/")
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
    assert "runtimeEnvYAML" not in spec  # Ray refuses what `connect` sets as well


@each("Ray")
def test_environment_is_not_against_the_runner(document: dict[str, Any]) -> None:
    for pod in ray_pods(document):
        for name, entry in environment(pod["containers"][0]).items():
            assert entry.get("value", "") == _ENVIRONMENT.get(name, entry.get("value", "")), name


@each("Ray")
def test_versions(document: dict[str, Any]) -> None:
    pins = dict(line.split(" ;")[0].split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    (cluster,) = below(document, "rayVersion")
    assert cluster["rayVersion"] == pins["ray"]


@each()
def test_images(document: dict[str, Any]) -> None:
    for container in containers(document):
        _, _, tag = container["image"].rpartition(":")
        assert re.match(r"\d", tag), container["image"]  # no `latest`, and none left out
        assert container["image"] == OURS or container["name"] in {"postgres", "redis"}


def test_ray_documents_do_not_drift_apart() -> None:
    """But for where runs are kept, who drives and how many workers there are, all clusters are the same."""

    def plain(pod: dict[str, Any]) -> dict[str, Any]:
        pod = copy.deepcopy(pod)
        pod.pop("automountServiceAccountToken", None)  # the autoscaler beside a head needs it
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "storage"]
        for container in pod["containers"]:
            container.pop("envFrom", None)
            container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "storage"]
            container["env"] = [entry for entry in container["env"] if not entry["name"].startswith("MLFLOW_")]
        return pod

    found = [[plain(pod) for pod in ray_pods(document)] for _, document in documents("Ray")]
    assert len(found) == 7
    assert all(one == found[0] for one in found)
    heads = [environment(ray_pods(document)[0]["containers"][0]) for _, document in documents("Ray")]
    assert all(head == heads[0] for head in heads)
    assert "MLFLOW_TRACKING_URI" in heads[0]


# --- who may do what, and how much -------------------------------------------------------------------------------------


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
    for pod in below(document, "containers"):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["fsGroup"] == (1000 if pod["containers"][0]["image"] == OURS else 999)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod.get("automountServiceAccountToken", bool(asked)) is bool(asked) or pod not in ray_pods_of(document)
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        claimed = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])} | claimed


def ray_pods_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return ray_pods(document)[:1] if document["kind"].startswith("Ray") else []


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
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        kubectl = Path(folder, "kubectl")
        kubectl.write_text(
            '#!/bin/sh\ncase "$1" in get) exit 1 ;; create) echo --- >> "$LOG"; cat >> "$LOG" ;; *) exit 2 ;; esac\necho "$*" >> "$LOG.args"\n'
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


# --- single files ------------------------------------------------------------------------------------------------------


def test_autoscaling() -> None:
    spec = dict(documents("Ray"))["raycluster.yaml RayCluster"]["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    (group,) = spec["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]  # a launch needs room for one cell
    assert not any("restartPolicy" in pod for pod in ray_pods({"spec": spec}))  # the second autoscaler sets it


def test_head_that_may_be_lost() -> None:
    spec = dict(documents("Ray"))["raycluster-ft.yaml RayCluster"]["spec"]
    host, _, port = spec["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
    (service,) = [document for name, document in documents("Service") if name.startswith("redis")]
    assert (service["metadata"]["name"], service["spec"]["ports"][0]["port"]) == (host, int(port))
    assert not below_any(spec, "REDIS_PASSWORD", "RAY_REDIS_ADDRESS")  # KubeRay refuses its own names in `env`
    assert "MLFLOW_TRACKING_URI" in environment(ray_pods({"spec": spec})[1]["containers"][0])  # the launch is on a worker


def below_any(tree: Any, *names: str) -> list[str]:
    return [entry["name"] for entry in below(tree, "name") if entry["name"] in names]


def test_kueue() -> None:
    job = dict(documents("Ray"))["rayjob-ablate-kueue.yaml RayJob"]
    kinds = {document["kind"]: document for name, document in documents() if name.startswith("queue-kueue")}
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == kinds["LocalQueue"]["metadata"]["name"]
    assert kinds["LocalQueue"]["spec"]["clusterQueue"] == kinds["ClusterQueue"]["metadata"]["name"]
    (group,) = kinds["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == kinds["ResourceFlavor"]["metadata"]["name"]
    quota = {resource["name"]: amount(resource["nominalQuota"]) for resource in flavor["resources"]}
    assert list(quota) == group["coveredResources"]
    head, workers = ray_pods(job)
    pods = [head, job["spec"]["submitterPodTemplate"]["spec"]]
    pods += [workers] * job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    for name, there in quota.items():
        needed = sum(amount(pod["containers"][0]["resources"]["requests"][name]) for pod in pods)
        assert needed <= there < 2 * needed, name
    assert {name for pod in pods for name in pod["containers"][0]["resources"]["requests"]} == set(quota)


def test_volcano() -> None:
    labels = dict(documents("Ray"))["rayjob-ablate-volcano.yaml RayJob"]["metadata"]["labels"]
    ((_, queue),) = documents("Queue")
    assert labels == {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": queue["metadata"]["name"]}


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
    for _, document in documents("Service"):
        selected = [one for _, one in documents() if one["metadata"]["name"] == document["metadata"]["name"] != ""]
        assert any(below(one, "template") for one in selected)


# --- pages and image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_page(page: Path) -> None:
    text = page.read_text()
    lines = [line.strip() for line in re.findall(r"`([^`\n]+)`", text) + text.splitlines()]
    ours = [found[1] for line in lines if (found := re.search(r"(?:^|-- )(simlap (?:[a-z]+).*?)(?:\s+#.*)?$", line))]
    for line in ours:
        check_command(line.rstrip("`").replace("/app/", ""))
    for link in re.findall(r"\[[^\]]*\]\(([^)#\s]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for name in re.findall(r"[\w-]+\.yaml\b", text):
        assert (page.parent / name).exists() or list(ROOT.glob(f"*/{name}")), name
    assert len(ours) > 8 or page.parent == IMAGE


def test_page_names_every_file() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.(?:yaml|sh))\)", (FOLDER / "README.md").read_text()))
    assert linked == {path.name for path in FOLDER.iterdir()} - {"README.md"}


def test_image() -> None:
    text = (IMAGE / "Containerfile").read_text()
    allowed = [line[1:] for line in (IMAGE / "Containerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    instructions = re.sub(r"\\\n(\s*#[^\n]*\n)?", " ", text)
    installs = re.findall(r"pip install .*?(?=&&|\n|$)", instructions)
    assert len(installs) == 3
    assert all("-c constraints.txt" in line or "--no-deps ." in line for line in installs)
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["1000:1000"]
    assert "ARG DEVICE=cpu" in text
    assert not re.search(r"https?://|:latest", text)
    for page in PAGES:
        assert OURS in page.read_text()
