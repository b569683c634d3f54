"""What the rounds of a run are like: how the service is set for each, and what its operator does. Each is another kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.settings import Settings

_MIN_PAIRS = 4
_ATTEMPTS = 50  # so many may be killed before a round is given up
_EXAM = '{"id": "one", "slice": "all", "prompt": "who are you?", "check": {"regex": "."}}\n'


@dataclass(frozen=True)
class Kind:
    """Of rounds. `sections` are those of the settings that differ from a service as it comes."""

    name: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggered: bool = False  # nobody asks for it
    cancelled: bool = False  # at a random moment, unless it is over before


_STEPS = {"soak_minutes": 0, "min_requests": 5}
AT_ONCE = Kind("at once")
KINDS = (
    AT_ONCE,
    Kind("approved", {"rounds": {"approval": "always"}}),
    Kind("canary", {"canary": {"steps": (0.3, 0.6, 1.0), **_STEPS}}),
    Kind(
        "triggered, approved step by step, watched",
        {
            "rounds": {"approval": "always", "new_pairs": _MIN_PAIRS, "rest_hours": 0},
            "canary": {"steps": (0.5, 1.0), "advance": "approved", **_STEPS},
            "watch": {"minutes": 0.02},
        },
        triggered=True,
    ),
    Kind("cancelled", {"rounds": {"approval": "always"}, "canary": {"steps": (0.5, 1.0), **_STEPS}}, cancelled=True),
)


def settings(kind: Kind, state: Path) -> Settings:
    """The state folder is the run's, and stays the same from round to round."""
    exam = state / "exam.jsonl"
    if not exam.exists():  # a process of the run may be reading it
        exam.write_text(_EXAM)
    usual: dict[str, dict[str, Any]] = {
        "training": {"min_pairs": _MIN_PAIRS, "max_attempts": _ATTEMPTS},
        "gate": {"suites": (str(exam),), "max_latency_ratio": 1000},  # how quick a fake is says nothing
        "serving": {"replicas": 2},
    }
    return Settings.model_validate({"state": state} | usual | kind.sections)
