"""Each overlay as it would be applied: its shape, its names, what it may do. No cluster is asked."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.k8s.checks import faults
from tests.unit.k8s.rendering import K8S, KUBECTL, OVERLAYS, Object, named, objects
from tests.unit.k8s.schemas import EXCERPT, KUBERAY_SCHEMAS, kuberay_faults, shape_faults

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not here: the manifests cannot be rendered")


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_object_has_the_shape_that_the_api_server_asks_for(overlay: str) -> None:
    assert shape_faults(objects(overlay)) == []


def test_names_meet_and_nothing_may_do_more_than_it_must(overlay: str) -> None:
    assert faults(objects(overlay), overlay) == []


def test_the_whole_crd_of_kuberay_takes_the_ray_service_too(overlay: str) -> None:
    file = KUBERAY_SCHEMAS / EXCERPT.name
    if not file.is_file():
        pytest.skip("KubeRay's whole CRD is not here (set KUBERAY_SCHEMAS): the excerpt of it was asked alone")
    assert kuberay_faults(named(objects(overlay), "RayService", "heliotrope"), file) == []


# --- a broken manifest is found ---------------------------------------------------------------------------

Break = Callable[[list[Object]], None]


def ray(found: list[Object]) -> Any:
    return named(found, "RayService", "heliotrope")["spec"]["rayClusterConfig"]


def head(found: list[Object]) -> Any:
    return ray(found)["headGroupSpec"]["template"]["spec"]


def answering(found: list[Object]) -> Any:
    return ray(found)["workerGroupSpecs"][0]["template"]["spec"]


def edge(found: list[Object]) -> Any:
    return named(found, "Deployment", "heliotrope-edge")["spec"]["template"]["spec"]


def rounds(found: list[Object]) -> Any:
    return named(found, "CronJob", "heliotrope-rounds")["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def bucket(found: list[Object]) -> Any:
    return named(found, "Job", "bucket")["spec"]["template"]["spec"]["containers"][0]


def _settings(found: list[Object], old: str, new: str) -> None:
    data = named(found, "ConfigMap", "heliotrope-settings")["data"]
    assert old in data["heliotrope.toml"]
    data["heliotrope.toml"] = data["heliotrope.toml"].replace(old, new)


def _serve(found: list[Object], old: str, new: str) -> None:
    spec = named(found, "RayService", "heliotrope")["spec"]
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)


def _without(found: list[Object], kind: str, name: str) -> None:
    found.remove(named(found, kind, name))


# Each is one mistake that a person makes, and a word of the fault that must name it.
MISTAKES: dict[str, tuple[str, Break]] = {
    "a container as root": ("may run as root", lambda o: head(o)["securityContext"].pop("runAsNonRoot")),
    "a writable root": ("more than it must", lambda o: edge(o)["containers"][0]["securityContext"].clear()),
    "service links": ("unknown settings", lambda o: answering(o).pop("enableServiceLinks")),
    "an API token": ("a token", lambda o: edge(o).pop("automountServiceAccountToken")),
    "no memory limit": ("how much CPU", lambda o: answering(o)["containers"][0]["resources"].pop("limits")),
    "an image without a tag": ("not pinned", lambda o: edge(o)["containers"][0].update(image="haproxy")),
    "the latest image": ("not pinned", lambda o: head(o)["containers"][0].update(image="heliotrope:latest")),
    "the other overlay's image": ("not the one", lambda o: head(o)["containers"][0].update(image="heliotrope:1-rpi")),
    "a lost volume": ("no volume", lambda o: head(o)["volumes"].pop()),
    "a secret of another name": (
        "does not exist",
        lambda o: answering(o)["volumes"][1]["secret"].update(secretName="heliotrope-stores"),
    ),
    "a lost settings file": ("does not exist", lambda o: head(o)["volumes"][0]["configMap"].update(name="lost")),
    "a selector that finds nothing": (
        "selects no pod",
        lambda o: named(o, "Service", "heliotrope-chat")["spec"]["selector"].update({"app.kubernetes.io/name": "x"}),
    ),
    "a port that nobody listens on": (
        "listens on",
        lambda o: named(o, "Service", "heliotrope-chat")["spec"]["ports"][0].update(targetPort="chatt"),
    ),
    "no readiness": ("whether it is ready", lambda o: edge(o)["containers"][0].pop("readinessProbe")),
    "an open network": ("closes everything", lambda o: _without(o, "NetworkPolicy", "default-deny")),
    "a closed hop": ("is closed to", lambda o: _without(o, "NetworkPolicy", "edge")),
    "a policy about nobody": (
        "is about no pod",
        lambda o: named(o, "NetworkPolicy", "rounds")["spec"]["podSelector"].update(matchLabels={"a": "b"}),
    ),
    "the metadata service": (
        "metadata service",
        lambda o: named(o, "NetworkPolicy", "ray")["spec"]["egress"][1]["to"][0]["ipBlock"].pop("except"),
    ),
    "an unknown setting": ("extra_forbidden", lambda o: _settings(o, "replicas =", "replicass =")),
    "settings that are no TOML": ("heliotrope.toml", lambda o: _settings(o, "[serving]", "[serving")),
    "a secret file that is not mounted": (
        "which no Secret brings",
        lambda o: _settings(o, "store/url", "store/dsn"),
    ),
    "a resource that no node has": ("that the settings ask for", lambda o: _settings(o, '"training"', '"gpu"')),
    "an unknown key for Serve": ("serveConfigV2", lambda o: _serve(o, "import_path", "import_pth")),
    "a wrong route": ("serveConfigV2 runs", lambda o: _serve(o, "/v1", "/v2")),
    "a function that is not there": ("serveConfigV2 runs", lambda o: _serve(o, "cluster:chat", "cluster:chatt")),
    "settings read from elsewhere": ("not mounted", lambda o: _serve(o, "/etc/heliotrope/", "/etc/elsewhere/")),
    "a variable that nobody reads": (
        "nobody reads",
        lambda o: edge(o)["containers"][0]["env"].append({"name": "HELIOTROPE_KEYFILE", "value": "x"}),
    ),
    "another Ray": ("the lock says", lambda o: ray(o).update(rayVersion="2.59.0")),
    "a secret file of another name": (
        "reads /run/secrets/heliotrope/keys/operators, which no Secret brings",
        lambda o: rounds(o)["containers"][0]["env"][1].update(value="/run/secrets/heliotrope/keys/operators"),
    ),
    "credentials that are not mounted": (
        "reads /run/secrets/heliotrope/artifacts/credentials, which no Secret brings",
        lambda o: head(o)["initContainers"][0]["volumeMounts"].pop(3),
    ),
    "a host that is not there": (
        "where no Service is",
        lambda o: rounds(o)["containers"][0]["env"][0].update(value="http://heliotrope-operation"),
    ),
    "a port that no Service has": (
        "where no Service is",
        lambda o: edge(o)["containers"][0]["env"][0].update(value="heliotrope-serve-svc:8001"),
    ),
    "no bucket": ("names no bucket", lambda o: _settings(o, 'url = "s3://', 'url = "')),
    "a probe of another port": (
        "where nobody listens",
        lambda o: edge(o)["containers"][0]["readinessProbe"]["httpGet"].update(port="chatt"),
    ),
    "a budget that lets nobody go": (
        "at least one may go",
        lambda o: named(o, "PodDisruptionBudget", "heliotrope-serving")["spec"].update(minAvailable=2),
    ),
    "a budget that Kubernetes cannot count for": (
        "None may not be drained",
        lambda o: named(o, "PodDisruptionBudget", "heliotrope-serving")["spec"].pop("minAvailable"),
    ),
    "a budget about nobody": (
        "heliotrope-edge is about no pod",
        lambda o: named(o, "PodDisruptionBudget", "heliotrope-edge")["spec"]["selector"].update(matchLabels={"a": "b"}),
    ),
    "no budget": ("drained at once", lambda o: _without(o, "PodDisruptionBudget", "heliotrope-edge")),
    "a first container as root": (
        "more than it must",
        lambda o: head(o)["initContainers"][0]["securityContext"].pop("capabilities"),
    ),
    "a claim of another name": (
        "PersistentVolumeClaim 'model' does not exist",
        lambda o: head(o)["volumes"][4]["persistentVolumeClaim"].update(claimName="model"),
    ),
    "fewer pods than replicas": (
        "more replicas than pods",
        lambda o: ray(o)["workerGroupSpecs"][0].update(maxReplicas=1),
    ),
}


def test_a_base_in_parts_changes_nothing_but_how_it_is_trained() -> None:
    whole, parts = (
        tomllib.loads(named(objects(overlay), "ConfigMap", "heliotrope-settings")["data"]["heliotrope.toml"])
        for overlay in ("gpu", "gpu-sharded")
    )
    assert parts == whole | {"training": whole["training"] | {"workers": 8, "shard_base": True}}


def test_more_workers_than_gpus_are_named() -> None:
    found = objects("gpu-sharded")
    ray(found)["workerGroupSpecs"][1]["maxReplicas"] = 1
    assert any("more workers than" in each for each in faults(found, "gpu-sharded"))


def test_replicas_that_would_share_a_pod_for_one_are_named() -> None:
    found = objects("local")
    _settings(found, "cpus_per_replica = 2", "cpus_per_replica = 1")
    assert "serving.cpus_per_replica does not put one replica into one pod" in faults(found, "local")


@pytest.mark.parametrize(("fault", "break_it"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(overlay: str, fault: str, break_it: Break) -> None:
    found = objects(overlay)
    break_it(found)
    assert any(fault in each for each in faults(found, overlay)), faults(found, overlay)


# Of what only one overlay has.
OF_ONE: dict[str, tuple[str, str, Break]] = {
    "another bucket": (
        "local",
        "makes the bucket 'heliotropes', the settings name 'heliotrope'",
        lambda o: bucket(o).update(command=[each.replace("'heliotrope'", "'heliotropes'") for each in bucket(o)["command"]]),
    ),
    "an object store of another name": (
        "local",
        "heliotrope.toml names http://object:8333",
        lambda o: _settings(o, "http://objects:", "http://object:"),
    ),
    "a database of another name": (
        "local",
        "Secret heliotrope-store",
        lambda o: named(o, "Service", "postgres")["metadata"].update(name="postgresql"),
    ),
    "a key that nobody lets in": ("gpu", "server.first_keys does not let in", lambda o: _settings(o, "metrics =", "app =")),
    "a port that is not scraped": (
        "gpu",
        "no Service offers the port",
        lambda o: named(o, "ServiceMonitor", "heliotrope")["spec"]["endpoints"][0].update(port="metrics"),
    ),
    "no GPU": (
        "gpu",
        "do not agree about a GPU",
        lambda o: answering(o)["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("overlay", "fault", "break_it"), OF_ONE.values(), ids=OF_ONE.keys())
def test_a_mistake_in_what_one_overlay_has_is_named(overlay: str, fault: str, break_it: Break) -> None:
    found = objects(overlay)
    break_it(found)
    assert any(fault in each for each in faults(found, overlay)), faults(found, overlay)


MISSHAPEN: dict[str, Break] = {
    "a misspelt field": lambda o: edge(o).update(terminationGracePeriod=3),
    "a number for a text": lambda o: edge(o)["containers"][0]["env"][0].update(value=1),
    "a kind that was taken away": lambda o: o[0].update(apiVersion="extensions/v1beta1"),
    "a policy without pods": lambda o: named(o, "NetworkPolicy", "edge")["spec"].update(podSelectors={}),
}


@pytest.mark.parametrize("break_it", MISSHAPEN.values(), ids=MISSHAPEN.keys())
def test_a_misshapen_object_is_named(overlay: str, break_it: Break) -> None:
    found = objects(overlay)
    break_it(found)
    assert shape_faults(found)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda o: ray(o).update(rayVersions="2.60.0"),
        lambda o: ray(o)["workerGroupSpecs"][0].update(replicas="two"),
        lambda o: ray(o)["gcsFaultToleranceOptions"].update(backend="sqlite"),
        lambda o: head(o).update(containers=None),
        lambda o: answering(o)["containers"][0].update(comand=["sh"]),
    ],
    ids=[
        "a misspelt field",
        "a text for a number",
        "an unknown back end",
        "no containers",
        "a misspelt field of a pod",
    ],
)
def test_a_misshapen_ray_cluster_is_named(overlay: str, break_it: Break) -> None:
    found = objects(overlay)
    break_it(found)
    assert shape_faults(found)


def test_the_readme_says_what_the_pods_reserve(overlay: str) -> None:
    column = {"local": 1, "gpu": 3, "gpu-sharded": 4}[overlay]
    rows = [line.strip("| ").split(" | ") for line in (K8S / "README.md").read_text().splitlines() if "CPU, " in line]
    said = {row[0]: row[min(column, len(row) - 1)] for row in rows}
    for row, number in (("a pod that answers", 0), ("the pod that learns", 1)):
        container = ray(objects(overlay))["workerGroupSpecs"][number]["template"]["spec"]["containers"][0]
        requests = container["resources"]["requests"]
        cores = float(requests["cpu"].removesuffix("m")) / (1000 if requests["cpu"].endswith("m") else 1)
        reserved = [f"{cores:g} CPU", f"{requests['memory'].removesuffix('Gi')} GiB"]
        assert said[row].split(", ")[:2] == reserved
