"""What is named in one object is there in another: files, hosts, ports, buckets, keys. Pure; the checks are listed in
`checks.py`.
"""

from __future__ import annotations

import base64
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from tests.unit.k8s.rendering import Object, named

# Made by whoever installs, and by no manifest of ours: k8s/README.md says what is in them.
_OF_A_CLUSTER: dict[str, dict[str, set[str]]] = {
    "Secret": {"heliotrope-store": {"url"}, "heliotrope-keys": {"operator", "metrics"}, "heliotrope-artifacts": {"credentials"}},
    "PersistentVolumeClaim": {"heliotrope-model": set()},
}  # fmt: skip
BY_REFERENCE = {"local": {}, "gpu": _OF_A_CLUSTER, "gpu-sharded": _OF_A_CLUSTER}
MADE_BY_KUBERAY = {"heliotrope-serve-svc": {8000}}
SECRET_FILE = re.compile(r"/run/secrets/[\w./-]+")
_HOST = re.compile(r"^(?:[a-z]+://)?(?:[^/@]*@)?([a-z][a-z-]*)(?::(\d+))?(?:/|$)")
_NAMES_A_HOST = ("HELIOTROPE_URL", "RAY_SERVE", "AWS_ENDPOINT_URL_S3")


def pod_templates(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that would run, with a name for it."""
    for each in found:
        name, spec = f"{each['kind']} {each['metadata']['name']}", each.get("spec", {})
        match each["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                yield name, spec["template"]
            case "CronJob":
                yield name, spec["jobTemplate"]["spec"]["template"]
            case "RayService":
                cluster = spec["rayClusterConfig"]
                yield f"{name} head", cluster["headGroupSpec"]["template"]
                for group in cluster["workerGroupSpecs"]:
                    yield f"{name} {group['groupName']}", group["template"]


def containers(template: Object) -> list[Object]:
    """Those that come first as well."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def toml(found: list[Object]) -> str:
    return named(found, "ConfigMap", "heliotrope-settings")["data"]["heliotrope.toml"]


def secret_files(found: list[Object], overlay: str) -> Iterator[str]:
    """Each file below /run/secrets that a container is told of is one that a Secret brings to it."""
    for name, template in pod_templates(found):
        for container in containers(template):
            told = " ".join(map(str, _values(container)))
            told += toml(found) if "/etc/heliotrope" in str(container.get("volumeMounts")) else ""
            lost = sorted(set(SECRET_FILE.findall(told)) - _brought(found, overlay, template["spec"], container))
            mounts = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
            for file in (each for each in lost if each not in mounts):
                yield f"{name}: container {container['name']} reads {file}, which no Secret brings"


def _values(container: Object) -> Iterator[Any]:
    yield from (variable.get("value") for variable in container.get("env", []))
    yield from (*container.get("args", []), *container.get("command", []))


def _brought(found: list[Object], overlay: str, spec: Object, container: Object) -> set[str]:
    given = {each["metadata"]["name"]: set(each.get("data", {})) for each in found if each["kind"] == "Secret"}
    given |= BY_REFERENCE[overlay].get("Secret", {})
    secrets = {v["name"]: given.get(v["secret"]["secretName"], set()) for v in spec.get("volumes", []) if "secret" in v}
    mounts = container.get("volumeMounts", [])
    return {f"{m['mountPath']}/{file}" for m in mounts if m["name"] in secrets for file in secrets[m["name"]]}


def hosts(found: list[Object], overlay: str) -> Iterator[str]:
    """Each host that is named is a Service, on a port of it."""
    ports = {s["metadata"]["name"]: {p["port"] for p in s["spec"]["ports"]} for s in found if s["kind"] == "Service"}
    ports |= MADE_BY_KUBERAY
    for who, address in _addresses(found):
        host = _HOST.match(address)
        if host is None or host[1] not in ports or int(host[2] or 80) not in ports[host[1]]:
            yield f"{who} names {address}, where no Service is"


def _addresses(found: list[Object]) -> Iterator[tuple[str, str]]:
    for name, template in pod_templates(found):
        for container in containers(template):
            told = {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}
            yield from ((name, told[variable]) for variable in _NAMES_A_HOST if variable in told)
    endpoint = re.search(r'^endpoint = "(.+)"', toml(found), re.M)
    if endpoint:
        yield "heliotrope.toml", endpoint[1]
    for secret in (each for each in found if each["kind"] == "Secret" and "url" in each.get("data", {})):
        yield f"Secret {secret['metadata']['name']}", base64.b64decode(secret["data"]["url"]).decode()


def bucket(found: list[Object], overlay: str) -> Iterator[str]:
    """Where a manifest makes the bucket, it is the one that the settings name."""
    named_there = re.search(r'^url = "s3://([^/"]+)', toml(found), re.M)
    if named_there is None:
        yield "heliotrope.toml names no bucket"
        return
    for name, template in pod_templates(found):
        made = re.search(r"makedirs\('([^']+)'", " ".join(map(str, _values(template["spec"]["containers"][0]))))
        if made and made[1] != named_there[1]:
            yield f"{name} makes the bucket '{made[1]}', the settings name '{named_there[1]}'"


def scraped(found: list[Object], overlay: str) -> Iterator[str]:
    """Prometheus finds a Service and a port of it, and shows a key that the service lets in from the start."""
    try:
        keys = tomllib.loads(toml(found)).get("server", {}).get("first_keys", {})
    except tomllib.TOMLDecodeError:
        return  # said by `settings`
    for monitor in (each for each in found if each["kind"] == "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"].items()
        services = [s for s in found if s["kind"] == "Service" and labels <= s["metadata"].get("labels", {}).items()]
        offered = {port["name"] for service in services for port in service["spec"]["ports"]}
        for endpoint in monitor["spec"]["endpoints"]:
            key = endpoint["authorization"]["credentials"]
            if endpoint["port"] not in offered:
                yield f"ServiceMonitor {monitor['metadata']['name']}: no Service offers the port '{endpoint['port']}'"
            if not str(keys.get(key["key"])).endswith(f"/{key['key']}"):
                yield f"Prometheus shows the key '{key['key']}' of {key['name']}, which server.first_keys does not let in"


def probed(found: list[Object], overlay: str) -> Iterator[str]:
    """Each probe asks a port that its container listens on."""
    for name, template in pod_templates(found):
        for container in template["spec"]["containers"]:
            listens = {value for port in container.get("ports", []) for value in (port["name"], port["containerPort"])}
            for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
                probe = container.get(kind, {})
                asked = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                if asked is not None and asked not in listens:
                    yield f"{name}: {kind} of container {container['name']} asks port '{asked}', where nobody listens"


def disruption(found: list[Object], overlay: str) -> Iterator[str]:
    """Who answers is drained one at a time. Kubernetes knows no number that a RayCluster wants, so only `minAvailable`
    says something about its pods."""
    budgets = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "PodDisruptionBudget"}
    cluster = named(found, "RayService", "heliotrope")["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    labels = [template["metadata"].get("labels", {}) for _, template in pod_templates(found)]
    for name, budget in budgets.items():
        if not any(budget["selector"]["matchLabels"].items() <= each.items() for each in labels):
            yield f"PodDisruptionBudget {name} is about no pod"
    kept = budgets.get("heliotrope-serving", {}).get("minAvailable")
    if not isinstance(kept, int) or not 0 < kept < groups["serving"]["minReplicas"]:
        yield f"of the pods that answer {kept} may not be drained: at least one stays and at least one may go"
    if "heliotrope-edge" not in budgets:
        yield "all pods of the edge may be drained at once"
