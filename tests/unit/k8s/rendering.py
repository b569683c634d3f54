"""The manifests as `kubectl apply --kustomize` would send them: rendered by kubectl itself, without a cluster."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).parents[3] / "k8s"
OVERLAYS = ("local", "gpu", "gpu-sharded")
KUBECTL = shutil.which("kubectl")

Object = dict[str, Any]


@cache
def rendered(overlay: str) -> str:
    """YAML of all objects of an overlay. Raises `CalledProcessError` with kubectl's own words."""
    assert KUBECTL is not None
    command = [KUBECTL, "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(overlay: str) -> list[Object]:
    """Fresh copies: a test may change them."""
    return copy.deepcopy(_parsed(overlay))


@cache
def _parsed(overlay: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(rendered(overlay)) if each]


def named(found: list[Object], kind: str, name: str) -> Object:
    """The object of that name; a generated one may carry a hash behind it."""
    return next(
        each
        for each in found
        if each["kind"] == kind
        and (each["metadata"]["name"] == name or each["metadata"]["name"].startswith(f"{name}-"))
    )
