"""What Serve is told of a deployment: how many replicas, how long they may take to end, and which settings contradict."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from serving.deployment import scaling
from serving.settings import ServingSettings


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
