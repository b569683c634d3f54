"""Alerts and dashboard ask for metrics that the service has: a renamed metric would leave them silent for ever."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.unit.k8s.rendering import K8S

ROOT = K8S.parent
METRIC = re.compile(r"heliotrope_[a-z_]+")
OF_A_KIND = re.compile(r"_(?:total|bucket|sum|count|info)$")


@cache
def told() -> set[str]:
    """Every literal in the code that makes metrics: whole names, and parts of them."""
    files = [*(ROOT / "service" / "metrics").glob("*.py"), *(ROOT / "serving").glob("*meter*.py")]
    trees = (ast.walk(ast.parse(file.read_text())) for file in files)
    return {
        node.value for tree in trees for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def expressions() -> dict[str, str]:
    rules = yaml.safe_load((K8S / "monitoring" / "alerts.yaml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    for panel in json.loads((K8S / "monitoring" / "dashboard.json").read_text())["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions().keys())
def test_every_metric_asked_for_is_one_that_the_service_tells(expression: str) -> None:
    names = METRIC.findall(expression)
    assert names
    literals = told()
    for name in names:
        bare = OF_A_KIND.sub("", name)
        candidates = {name, bare, *(each.removeprefix("heliotrope_").removeprefix("chat_") for each in (name, bare))}
        candidates |= {each.removeprefix("heliotrope_") for each in (name, bare)}
        assert candidates & literals, f"nothing tells {name}"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((K8S / "monitoring" / "dashboard.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_files_are_those_that_the_component_names() -> None:
    text = (K8S / "monitoring" / "kustomization.yaml").read_text()
    assert {path.name for path in Path(K8S / "monitoring").iterdir()} - {"kustomization.yaml"} == set(
        re.findall(r"[a-z]+\.(?:yaml|json)", text)
    )
