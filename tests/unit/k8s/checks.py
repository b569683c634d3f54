"""What no schema knows of our manifests: do the names meet, may nothing do more than it must, does Ray take its part? Pure.

Each check takes all objects of an overlay and gives its faults, one line each; `FAULTS_OF` lists them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator

import pydantic
import yaml
from ray.serve.schema import ServeDeploySchema

from service.settings import CLIENT_VARIABLES, PREFIX, Settings
from tests.unit.k8s.meeting import (
    BY_REFERENCE,
    bucket,
    containers,
    disruption,
    hosts,
    pod_templates,
    probed,
    scraped,
    secret_files,
)
from tests.unit.k8s.rendering import Object, named

COMPONENT = "app.kubernetes.io/component"


def restricted(found: list[Object], overlay: str) -> Iterator[str]:
    """Pod Security "restricted", and a root file system that nobody writes to."""
    for name, template in pod_templates(found):
        spec = template["spec"]
        pod = spec.get("securityContext", {})
        if not (pod.get("runAsNonRoot") and pod.get("seccompProfile", {}).get("type") == "RuntimeDefault"):
            yield f"{name} may run as root, or without a seccomp profile"
        if spec.get("enableServiceLinks", True):
            yield f"{name} is given a variable for every service; those of ours would be refused as unknown settings"
        if not name.endswith(" head") and spec.get("automountServiceAccountToken", True):
            yield f"{name} is given a token for Kubernetes' API"
        for container in containers(template):
            context = container.get("securityContext", {})
            if (
                context.get("allowPrivilegeEscalation") is not False
                or context.get("capabilities", {}).get("drop") != ["ALL"]
                or not context.get("readOnlyRootFilesystem")
            ):
                yield f"{name}: container {container['name']} may do more than it must"


def sized(found: list[Object], overlay: str) -> Iterator[str]:
    """A container without requests is the first to be killed, and one without a memory limit kills others."""
    for name, template in pod_templates(found):
        for container in containers(template):
            resources = container.get("resources", {})
            if {"cpu", "memory"} - set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
                yield f"{name}: container {container['name']} says not how much CPU and memory it needs"


def images(found: list[Object], overlay: str) -> Iterator[str]:
    for name, template in pod_templates(found):
        for container in containers(template):
            repository, _, tag = container.get("image", "").rpartition(":")
            if not repository or tag in ("", "latest"):
                yield f"{name}: image '{container.get('image')}' is not pinned to a version"
            if repository.endswith("heliotrope") and not tag.endswith("-gpu" if overlay.startswith("gpu") else "-cpu"):
                yield f"{name}: image '{container['image']}' is not the one for this overlay"


def volumes(found: list[Object], overlay: str) -> Iterator[str]:
    """Every mount has its volume, every volume its source, and every file that the settings name is there."""
    there = {kind: {each["metadata"]["name"] for each in found if each["kind"] == kind} for kind in _SOURCES}
    for kind, given in BY_REFERENCE[overlay].items():
        there[kind] |= set(given)
    for name, template in pod_templates(found):
        spec = template["spec"]
        declared = {volume["name"]: volume for volume in spec.get("volumes", [])}
        declared |= {claim: {} for claim in _claims(found, name)}
        for container in containers(template):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            yield from (f"{name}: '{lost}' is mounted and no volume" for lost in sorted(mounted - set(declared)))
        for volume in declared.values():
            for kind, (field, key) in _SOURCES.items():
                if field in volume and volume[field][key] not in there[kind]:
                    yield f"{name}: {kind} '{volume[field][key]}' does not exist"


_SOURCES = {
    "ConfigMap": ("configMap", "name"),
    "Secret": ("secret", "secretName"),
    "PersistentVolumeClaim": ("persistentVolumeClaim", "claimName"),
}


def _claims(found: list[Object], pod: str) -> set[str]:
    return {
        claim["metadata"]["name"]
        for each in found
        if f"{each['kind']} {each['metadata']['name']}" == pod
        for claim in each["spec"].get("volumeClaimTemplates", [])
    }


def services(found: list[Object], overlay: str) -> Iterator[str]:
    """A service finds pods, and they listen on its port."""
    pods = [template for _, template in pod_templates(found)]
    for service in (each for each in found if each["kind"] == "Service"):
        name, selector = service["metadata"]["name"], service["spec"]["selector"]
        chosen = [pod for pod in pods if selector.items() <= pod["metadata"].get("labels", {}).items()]
        if not chosen:
            yield f"Service {name} selects no pod"
        ports = {
            value
            for pod in chosen
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
            for value in (port["name"], port["containerPort"])
        }
        for port in service["spec"]["ports"]:
            if chosen and port.get("targetPort", port["port"]) not in ports:
                yield f"Service {name}: no container of its pods listens on '{port.get('targetPort', port['port'])}'"


def probes(found: list[Object], overlay: str) -> Iterator[str]:
    """What takes traffic says when it is ready. KubeRay gives Ray's pods theirs."""
    for name, template in pod_templates(found):
        if not name.startswith(("Deployment", "StatefulSet")):
            continue
        for container in template["spec"]["containers"]:
            if "readinessProbe" not in container:
                yield f"{name}: container {container['name']} never says whether it is ready"


def network(found: list[Object], overlay: str) -> Iterator[str]:
    """Everything is closed, every policy is about pods that exist, and each hop of a request is open on both ends."""
    policies = [each for each in found if each["kind"] == "NetworkPolicy"]
    closed = [p for p in policies if p["spec"]["podSelector"] == {} and not ({"ingress", "egress"} & set(p["spec"]))]
    if not any({"Ingress", "Egress"} <= set(p["spec"]["policyTypes"]) for p in closed):
        yield "no policy closes everything"
    labels = [template["metadata"].get("labels", {}) | _kuberay_labels(name) for name, template in pod_templates(found)]
    for policy in policies:
        if not any(_selects(policy["spec"]["podSelector"], each) for each in labels):
            yield f"NetworkPolicy {policy['metadata']['name']} is about no pod"
    edge, ray = {"app.kubernetes.io/name": "heliotrope", COMPONENT: "edge"}, {"ray.io/cluster": "x"}
    hops = [({COMPONENT: "rounds"}, edge, 8002), (edge, ray, 8000), (ray, ray, 6379)]
    if overlay == "local":
        store = {"app.kubernetes.io/name": "postgres", COMPONENT: "store"}
        objects = {"app.kubernetes.io/name": "seaweedfs"}
        hops += [(ray, store, 5432), (ray, objects, 8333), ({COMPONENT: "bucket"}, objects, 8333)]
    for sender, receiver, port in hops:
        for side, peers, me, other in (("egress", "to", sender, receiver), ("ingress", "from", receiver, sender)):
            if not _open(policies, side, peers, me, other, port):
                yield f"port {port} of {_say(receiver)} is closed to {_say(sender)} ({side})"
    for policy in policies:
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", [{}]):
                block = peer.get("ipBlock", {})
                if not peer or ("cidr" in block and "169.254.0.0/16" not in block.get("except", [])):
                    yield f"NetworkPolicy {policy['metadata']['name']} opens the cloud's metadata service"


def _kuberay_labels(pod: str) -> dict[str, str]:
    return {"ray.io/cluster": "made-by-kuberay"} if pod.startswith("RayService") else {}


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(each["key"] in labels for each in selector.get("matchExpressions", []))


def _open(policies: list[Object], side: str, peers: str, me: Object, other: Object, port: int) -> bool:
    for policy in policies:
        if not _selects(policy["spec"]["podSelector"], me):
            continue
        for rule in policy["spec"].get(side, []):
            ports = [each["port"] for each in rule.get("ports", [])]
            meant = any("podSelector" in p and _selects(p["podSelector"], other) for p in rule.get(peers, []))
            inside = any("ipBlock" in p and p["ipBlock"]["cidr"] == "0.0.0.0/0" for p in rule.get(peers, []))
            if (meant or inside) and (not ports or port in ports):
                return True
    return False


def _say(labels: dict[str, str]) -> str:
    return labels.get(COMPONENT) or labels.get("app.kubernetes.io/name") or "Ray"


def settings(found: list[Object], overlay: str) -> Iterator[str]:
    """The settings file is one that the service would start with, and the pods are those that it counts on."""
    text = named(found, "ConfigMap", "heliotrope-settings")["data"]["heliotrope.toml"]
    try:
        loaded = Settings.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, pydantic.ValidationError) as fault:
        yield f"heliotrope.toml: {fault}"
        return
    ray = named(found, "RayService", "heliotrope")["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in ray["workerGroupSpecs"]}
    for role, wanted in (("serving", loaded.serving.node_resource), ("training", loaded.training.node_resource)):
        if f'\\"{wanted}\\"' not in groups[role]["rayStartParams"].get("resources", ""):
            yield f"no node of the group '{role}' has the resource '{wanted}' that the settings ask for"
    if groups["serving"]["maxReplicas"] < (loaded.serving.max_replicas or loaded.serving.replicas):
        yield "there may be more replicas than pods for them"
    resources = groups["serving"]["template"]["spec"]["containers"][0]["resources"]
    needs = "nvidia.com/gpu" in resources.get("limits", {})
    if not needs and not cpus(resources) / 2 < loaded.serving.cpus_per_replica <= cpus(resources):
        yield "serving.cpus_per_replica does not put one replica into one pod"
    if (loaded.serving.device == "gpu") != needs:
        yield "the settings and the pods that answer do not agree about a GPU"
    training = groups["training"]
    gpus = int(training["template"]["spec"]["containers"][0]["resources"].get("limits", {}).get("nvidia.com/gpu", 0))
    if needs and training["maxReplicas"] * gpus < loaded.training.workers:
        yield "a round would wait for ever: it has more workers than there may be GPUs that train"


def cpus(resources: Object) -> float:
    """That KubeRay tells Ray a pod has: its limit, and where there is none what it asks for."""
    said = resources.get("limits", {}).get("cpu") or resources["requests"]["cpu"]
    return int(said.removesuffix("m")) / 1000 if said.endswith("m") else float(said)


def variables(found: list[Object], overlay: str) -> Iterator[str]:
    """What is said by an environment variable of ours is something that somebody reads."""
    for name, template in pod_templates(found):
        for container in containers(template):
            for variable in container.get("env", []):
                if variable["name"].startswith(PREFIX) and variable["name"] not in CLIENT_VARIABLES:
                    yield f"{name}: nobody reads {variable['name']}"


def serve_config(found: list[Object], overlay: str) -> Iterator[str]:
    """Ray's own class takes it; both applications are functions of ours, on the routes that the contract names."""
    ray = named(found, "RayService", "heliotrope")
    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(ray["spec"]["serveConfigV2"]))
    except pydantic.ValidationError as fault:
        yield f"serveConfigV2: {fault}"
        return
    routes = {each.name: (each.route_prefix, each.import_path) for each in config.applications}
    if routes != {"chat": ("/v1", "service.cluster:chat"), "operations": ("/", "service.cluster:operations")}:
        yield f"serveConfigV2 runs {routes}"
    where = named(found, "RayService", "heliotrope")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    paths = {mount["mountPath"] for mount in where["containers"][0]["volumeMounts"]}
    for each in config.applications:
        file = str(each.args.get("settings"))
        if file.rpartition("/")[0] not in paths:
            yield f"application {each.name} reads {file}, which is not mounted"


def version(found: list[Object], overlay: str) -> Iterator[str]:
    import ray

    told = named(found, "RayService", "heliotrope")["spec"]["rayClusterConfig"]["rayVersion"]
    if told != ray.__version__:
        yield f"the manifests say Ray {told}, the lock says {ray.__version__}"


Check = Callable[[list[Object], str], Iterator[str]]
CHECKS: tuple[Check, ...] = (
    restricted, sized, images, volumes, services, probes, network, settings, variables, serve_config, version,
    secret_files, hosts, bucket, scraped, probed, disruption,
)  # fmt: skip


def faults(found: list[Object], overlay: str) -> list[str]:
    return [fault for check in CHECKS for fault in check(found, overlay)]
