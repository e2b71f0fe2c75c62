"""cluster/kuberay: the files are what KubeRay takes, and run what they should."""

from __future__ import annotations

import copy
import json
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

from simlap.config import yaml as strict_yaml
from simlap.run.cluster import _ENVIRONMENT
from tests.unit.cluster.kube import FILES, OURS, ROOT, amount, below, containers, documents, each, environment, ray_pods
from tests.unit.test_docs import check_command

SCHEMAS = ROOT.parent / "shared/schemas"
METADATA = {
    "type": "object",
    "properties": {"name": {}, "labels": {"type": "object"}, "annotations": {"type": "object"}},
}
FREE = {"labels", "annotations", "rayStartParams", "requests", "limits"}
"""Mappings whose keys are the user's."""

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="no ../shared/schemas beside the checkout")


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


Place = tuple[str | int, ...]


def places(tree: Any, place: Place = ()) -> Iterator[Place]:
    """Of all keys whose names are not the user's."""
    if isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*place, index))
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if not place or place[-1] not in FREE:
                yield (*place, key)
            yield from places(value, (*place, key))


def changed(document: dict[str, Any], place: Place, change: Callable[[dict[str, Any], Any], object]) -> dict[str, Any]:
    """A copy in which `change(mapping, key)` was done where `place` leads."""
    whole = tree = copy.deepcopy(document)
    for key in place[:-1]:
        tree = tree[key]  # type: ignore[index]
    change(tree, place[-1])
    return whole


def mistype(mapping: dict[str, Any], key: str) -> None:
    mapping[f"{key}x"] = mapping.pop(key)


@needs_schemas
@each("Ray")
def test_kuberay_takes_it(document: dict[str, Any]) -> None:
    assert document["apiVersion"] == "ray.io/v1"
    assert errors(document["kind"], document) == []
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"])


@needs_schemas
@pytest.mark.parametrize(
    "name", ["rayjob-ablate-kueue.yaml RayJob", "raycluster.yaml RayCluster", "raycluster-ft.yaml RayCluster"]
)
def test_every_mistyped_field_is_found(name: str) -> None:
    document = dict(documents("Ray"))[name]
    # the pods of all clusters are the same: those of one are enough
    found = [place for place in places(document) if "template" not in place or document["kind"] == "RayJob"]
    assert len(found) > 20
    check = validator(document["kind"])
    assert [place for place in found if check.is_valid(changed(document, place, mistype))] == []


@needs_schemas
@pytest.mark.parametrize(
    ("place", "change"),
    [
        (("rayClusterSpec", "workerGroupSpecs", 0, "replicas"), lambda group, key: group.update({key: "2"})),
        (("rayClusterSpec", "workerGroupSpecs", 0, "groupName"), dict.pop),
        (("rayClusterSpec", "authOptions", "mode"), lambda options, key: options.update({key: "tokens"})),
        (("backoffLimit",), lambda spec, key: spec.update({key: True})),
    ],
)
def test_a_wrong_value_is_found(place: Place, change: Callable[[dict[str, Any], Any], object]) -> None:
    document = dict(documents("Ray"))["rayjob-ablate.yaml RayJob"]
    assert errors("RayJob", changed(document, ("spec", *place), change))


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
        for claim in document.get("spec", {}).get("volumeClaimTemplates", []):
            checked.append((name, errors("PersistentVolumeClaim", claim)))
    assert [found for found in checked if found[1]] == []
    assert len(checked) == 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_both_readings_of_yaml_agree(path: Path) -> None:
    """Kubernetes reads YAML 1.1, where 0400 is 256 and `on` is true: nothing may depend on that."""
    read = [strict_yaml.parse(part, file=path.name) for part in path.read_text().split("\n---\n")]
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
    names = {entry["name"] for entry in below(spec, "name")}
    assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & names  # KubeRay sets them, and refuses them here
    assert "MLFLOW_TRACKING_URI" in environment(
        ray_pods({"spec": spec})[1]["containers"][0]
    )  # the launch is on a worker


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
