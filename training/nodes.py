"""On which nodes of a cluster a round may run."""

from __future__ import annotations

_A_LITTLE = 0.001  # of a resource that only says what a node is for: as many may ask for it as like


def a_little_of(resource: str | None) -> dict[str, float]:
    """What Ray is asked for, so that it chooses a node that has the resource; None: any node will do."""
    return {} if resource is None else {resource: _A_LITTLE}
