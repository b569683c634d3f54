"""What is killed in a run, and when: drawn from the run's seed."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from tests.chaos.replica import Death, Point


class Victim(enum.StrEnum):
    """The processes that a run kills from outside."""

    REPLICA = "replica"
    USERS = "users"
    MATCHER = "matcher"
    POSTMASTER = "postmaster"
    BACKEND = "backend"
    CHECKPOINTER = "checkpointer"
    WALWRITER = "walwriter"


# Shares of the kills. A replica's is the cheapest; of the database's processes each takes it down in its own way.
_SHARES = {
    Victim.REPLICA: 25,
    Victim.USERS: 10,
    Victim.MATCHER: 10,
    Victim.POSTMASTER: 20,
    Victim.BACKEND: 15,
    Victim.CHECKPOINTER: 10,
    Victim.WALWRITER: 10,
}
_MOST_KILLS = 5
_AFTERSHOCK = 0.3  # share of kills that come soon after the one before, while the service still recovers
_AFTERSHOCK_SECONDS = 0.6
_HESITATION_SECONDS = 0.01  # so that a kill does not always follow upon an answer


@dataclass(frozen=True)
class Kill:
    victim: Victim
    votes: int  # acknowledged ones, from which on it happens
    seconds: float  # that pass from then on
    pick: float  # in [0, 1): which of several


def kills(seed: int, votes: int) -> list[Kill]:
    """In the order in which they happen."""
    dice = random.Random(seed)
    moments = sorted(dice.randrange(votes) for _ in range(dice.randint(2, _MOST_KILLS)))
    victims = dice.choices(list(_SHARES), list(_SHARES.values()), k=len(moments))
    drawn: list[Kill] = []
    for victim, moment in zip(victims, moments, strict=True):
        seconds = dice.random() * _HESITATION_SECONDS
        if drawn and dice.random() < _AFTERSHOCK:
            moment, seconds = drawn[-1].votes, dice.random() * _AFTERSHOCK_SECONDS
        drawn.append(Kill(victim, moment, seconds, dice.random()))
    return drawn


def deaths(seed: int, votes: int, replicas: int) -> list[Death | None]:
    """Of the first process of each replica, by its own hand."""
    dice = random.Random(f"deaths/{seed}")
    most = max(1, votes // replicas // 2)
    return [
        Death(dice.choice(list(Point)), dice.randint(1, most)) if dice.random() < 0.5 else None for _ in range(replicas)
    ]
