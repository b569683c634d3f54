"""Who is killed in a run with rounds, and when: drawn from the run's seed."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from service.contracts import RoundState


class Victim(enum.StrEnum):
    """The processes of a run."""

    CONDUCTOR = "conductor"
    REPLICA = "replica"
    ATTEMPT = "attempt"
    OPERATOR = "operator"
    PEOPLE = "people"


_SHARES = {Victim.CONDUCTOR: 40, Victim.REPLICA: 30, Victim.ATTEMPT: 15, Victim.OPERATOR: 10, Victim.PEOPLE: 5}
# Some states last so much longer than others that moments of the clock alone would hardly ever fall into these.
_MOMENTS = {
    None: 20,
    RoundState.COLLECTING: 8,
    RoundState.TRAINING: 14,
    RoundState.JUDGING: 20,
    RoundState.AWAITING_APPROVAL: 12,
    RoundState.CANARY: 20,
    RoundState.PROMOTED: 6,
}
_AT_ALL_SECONDS = 1.5  # a moment of the clock comes within it
_INTO_SECONDS = 0.25  # ... one of a state so soon after it has begun
_ON_TRIAL = 0.3  # share of killed replicas that are asked about a candidate just then
_AFTERSHOCK = 0.25  # share of kills that come soon after the one before, while the service still recovers
_AFTERSHOCK_SECONDS = 0.3


@dataclass(frozen=True)
class Kill:
    victim: Victim
    state: RoundState | None  # of the newest round, in which it happens; None: in any
    seconds: float  # that pass from then on
    pick: float  # in [0, 1): which of several


def kills(seed: int, count: int) -> list[Kill]:
    """In the order in which they happen."""
    dice = random.Random(seed)
    drawn: list[Kill] = []
    for _ in range(count):
        [victim] = dice.choices(list(_SHARES), list(_SHARES.values()))
        [state] = dice.choices(list(_MOMENTS), list(_MOMENTS.values()))
        seconds = dice.random() * (_AT_ALL_SECONDS if state is None else _INTO_SECONDS)
        if victim is Victim.ATTEMPT:
            state, seconds = RoundState.TRAINING, dice.random() * _INTO_SECONDS
        elif victim is Victim.REPLICA and dice.random() < _ON_TRIAL:
            state, seconds = RoundState.JUDGING, dice.random() * _INTO_SECONDS
        elif drawn and dice.random() < _AFTERSHOCK:
            state, seconds = None, dice.random() * _AFTERSHOCK_SECONDS
        drawn.append(Kill(victim, state, seconds, dice.random()))
    return drawn
