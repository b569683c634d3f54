"""What can be wrong with an answer that people got. Each is a yes or no of one user, so that each can be counted. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Harm(enum.StrEnum):
    """Of the answers to one user in one step of a canary."""

    DISLIKED = "disliked"  # a thumb down that counts, on any of them
    FAILED = "failed"  # the engine failed on any of them
    REFUSED = "refused"  # the first of them declines to answer
    SLOW = "slow"  # the first of them began later than 9 of 10 did before the canary
    LONG = "long"  # the first of them is longer than 9 of 10 were before the canary


USUAL = 0.9  # the share of earlier answers within which an answer is neither slow nor long


@dataclass(frozen=True)
class Usual:
    """How the adapter that answered so far did before. None: nobody had asked it, so nothing is slow, or long."""

    first_token_seconds: float | None = None
    tokens: float | None = None
