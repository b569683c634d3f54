"""What both applications are deployed as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ray import serve

from service.app import Blueprint, chat, operations
from service.settings import Settings
from tests.adapter_files import FINGERPRINTS


@pytest.mark.parametrize("build", [chat, operations])
def test_ray_writes_no_line_for_each_request(build: Callable[[Blueprint], serve.Application]) -> None:
    blueprint = Blueprint(Settings(), "postgresql://nobody@nowhere/none", Path("model"), FINGERPRINTS, use_gpu=False)
    config = build(blueprint)._bound_deployment._deployment_config.logging_config
    assert config is not None
    assert (config["enable_access_log"], config["log_level"]) == (False, "WARNING")
