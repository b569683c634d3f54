"""Does an object have the shape that the API server asks for? Unknown fields are faults: a server drops them silently.

Kubernetes' own kinds, pod templates among them, against the schemas in `kubernetes-validate`; KubeRay's fields against
`rayservice.v1.schema.json`, an excerpt of its CRD. Where the whole CRD is at hand, a RayService is held to that as well.
"""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tests.unit.k8s.rendering import Object

KUBERNETES = "1.37"
KUBERAY = "ray.io/v1"
FOREIGN = frozenset({"monitoring.coreos.com/v1"})  # CRDs of the Prometheus operator: no schema of theirs is at hand
EXCERPT = Path(__file__).with_name("rayservice.v1.schema.json")
KUBERAY_SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", Path(__file__).parents[4] / "shared" / "k8s"))


def shape_faults(found: list[Object]) -> list[str]:
    return [fault for each in found for fault in _faults(each)]


def _faults(each: Object) -> list[str]:
    name = f"{each['kind']} {each['metadata']['name']}"
    if each["apiVersion"] == KUBERAY:
        found = kuberay_faults(each, EXCERPT) + [
            fault for template in _templates(each) for fault in _built_in(template)
        ]
    elif each["apiVersion"] in FOREIGN:
        found = []
    else:
        found = _built_in(each)
    return [f"{name}: {fault}" for fault in found]


def _built_in(each: Object) -> list[str]:
    try:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as fault:
        return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}"]
    except kubernetes_validate.SchemaNotFoundError as fault:
        return [fault.message]
    return []


def _templates(each: Object) -> list[Object]:
    """The pods of a RayService, each as an object of Kubernetes' own that holds nothing but its template."""
    cluster = each.get("spec", {}).get("rayClusterConfig", {})
    groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", [])]
    return [{"apiVersion": "v1", "kind": "PodTemplate", "template": group.get("template")} for group in groups]


def kuberay_faults(each: Object, file: Path) -> list[str]:
    """`file`: the schema of its kind, in Kubernetes' dialect."""
    validator = jsonschema.Draft202012Validator(_kuberay_schema(file))
    return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in validator.iter_errors(each)]


@cache
def _kuberay_schema(file: Path) -> dict[str, Any]:
    schema = copy.deepcopy(json.loads(file.read_text()))
    _make_strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}  # a CRD leaves it to the API server
    return schema


def _make_strict(node: Any) -> None:
    """Turn Kubernetes' dialect into JSON Schema: an unknown field is a fault unless the CRD keeps it on purpose."""
    if isinstance(node, list):
        for inner in node:
            _make_strict(inner)
    if not isinstance(node, dict):
        return
    if node.pop("x-kubernetes-int-or-string", False):
        node.pop("type", None)
        node.pop("anyOf", None)
        node["type"] = ["integer", "string"]
    keeps = node.pop("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node and not keeps:
        node["additionalProperties"] = False
    for inner in list(node.values()):
        _make_strict(inner)
