"""What Serve is told of a deployment: how many replicas, how long they may take to end, and which settings contradict."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from serving.contracts import Base
from serving.deployment import scaling, started
from serving.errors import BaseRefused
from serving.ports import Engine
from serving.settings import ServingSettings
from tests.adapter_files import FINGERPRINTS
from tests.fakes import FakeEngine


def test_replicas_are_as_many_as_the_settings_say() -> None:
    assert scaling(ServingSettings(replicas=3)) == {"num_replicas": 3}


def test_replicas_that_may_grow_are_added_before_a_batch_is_full_and_taken_away_late() -> None:
    config = scaling(ServingSettings(replicas=2, max_replicas=5, max_requests=100))["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (2, 5)
    assert config.target_ongoing_requests == pytest.approx(70)
    assert config.downscale_delay_s > 10 * config.upscale_delay_s


def test_a_replica_that_is_stopped_may_finish_its_longest_answer() -> None:
    assert ServingSettings(answer_seconds=100).longest_drain_seconds == 110
    assert ServingSettings(answer_seconds=100, drain_seconds=300).longest_drain_seconds == 300


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"answer_seconds": 100, "drain_seconds": 100},
            "drain_seconds = 100.0 must be more than answer_seconds = 100.0",
        ),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas = 2 is less than replicas = 3"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        ServingSettings(**settings)


def test_a_replica_on_a_node_with_another_base_does_not_start_and_both_digests_are_named() -> None:
    engine = FakeEngine()

    def make(model: str, settings: ServingSettings) -> Engine:
        return engine

    ours = Base(FINGERPRINTS.base_model, FINGERPRINTS.tokenizer)
    assert started(make, "/models/base", ServingSettings(), ours) is engine
    for part, told in (("weights", Base("c" * 64, ours.tokenizer)), ("tokenizer", Base(ours.model, "c" * 64))):
        with pytest.raises(BaseRefused, match=f"model.name: the {part} in /models/base on node") as refused:
            started(make, "/models/base", ServingSettings(), told)
        found = ours.model if part == "weights" else ours.tokenizer
        assert found in str(refused.value) and "c" * 64 in str(refused.value)
        assert "copy the base model there anew" in str(refused.value)
