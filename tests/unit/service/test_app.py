"""What Ray is told of both applications: where they may run, what their processes find, what is logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from service.app import Blueprint, chat, operations
from service.settings import Settings
from tests.adapter_files import FINGERPRINTS


def blueprint(**sections: dict[str, Any]) -> Blueprint:
    settings = Settings.model_validate(sections)
    return Blueprint(settings, "postgresql://nobody@nowhere/none", Path("model"), FINGERPRINTS, use_gpu=False)


def asked_of_ray(**sections: dict[str, Any]) -> list[dict[str, Any]]:
    """For an actor of each application."""
    made = blueprint(**sections)
    return [build(made)._bound_deployment.ray_actor_options or {} for build in (chat, operations)]


@pytest.mark.parametrize("build", [chat, operations])
def test_ray_writes_no_line_for_each_request(build: Callable[[Blueprint], serve.Application]) -> None:
    config = build(blueprint())._bound_deployment._deployment_config.logging_config
    assert config is not None
    assert (config["enable_access_log"], config["log_level"]) == (False, "WARNING")


def test_both_run_on_nodes_that_answer_and_not_on_one_that_may_go_after_a_round() -> None:
    for options in asked_of_ray(serving={"node_resource": "serving"}):
        assert 0 < options["resources"]["serving"] < 0.01


def test_any_node_will_do_where_none_is_named() -> None:
    assert [options["resources"] for options in asked_of_ray()] == [{}, {}]


def test_both_find_the_object_store() -> None:
    for options in asked_of_ray(artifacts={"url": "s3://bucket", "endpoint": "http://objects:8333"}):
        assert options["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL_S3"] == "http://objects:8333"
