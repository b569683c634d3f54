"""What the gate decides from: training's report, and what replicas answered on trial. Records only.

`service/judging.py` gathers it, in two parts: what is cheap first, and a trial only for a candidate that is still in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from service.gate.behaviour import Behaviour
from service.gate.statistics import Interval
from service.parity import Parity
from training.contracts import RoundReport


@dataclass(frozen=True)
class Standing:
    """A held-out pair, whose it is, and which policy is right about it."""

    prompt: str  # a digest
    voter: str | None  # a digest; None: an imported pair
    voted_at: datetime | None
    gained: int  # 1: only the candidate is right; -1: only the deployed adapter; 0: both or neither


@dataclass(frozen=True)
class Graded:
    """An item of a suite; True: answered right. None where nobody could tell."""

    slice: str
    base: bool | None
    current: bool | None
    candidate: bool | None


@dataclass(frozen=True)
class Spoken:
    """What both said to the same question, greedily."""

    prompt: str
    current: str
    candidate: str


@dataclass(frozen=True)
class Comparison:
    """Sampled answers to the same prompts, the candidate's against the deployed adapter's, under a judge."""

    prompts: int
    win_rate: Interval  # length-controlled
    plain: Interval  # as the judge said, ties half
    ties: float  # share
    swayed: float  # share where the judge said otherwise when the answers changed places; they count as ties


@dataclass(frozen=True)
class Latency:
    """Median seconds a token of answers that were alone in the engine."""

    current: float
    candidate: float


@dataclass(frozen=True)
class Trial:
    """What replicas answered before anybody is answered by the candidate."""

    fault: str | None = None  # why no replica could load or use it; then nothing else is known
    parity: Parity | None = None  # None: training left no samples to compare with
    current: Behaviour | None = None  # None: no suites, so nobody was asked
    candidate: Behaviour | None = None
    said: tuple[Spoken, ...] = ()
    suites: dict[str, tuple[Graded, ...]] = field(default_factory=dict)
    comparison: Comparison | None = None
    no_comparison: str = "no judge is set (gate.judge)"  # why there is none
    latency: Latency | None = None


@dataclass(frozen=True)
class Evidence:
    report: RoundReport
    integrity_fault: str | None  # why the adapter directory cannot be served; None: it can
    added_by: str | None = None  # who brought the candidate from outside; None: it was trained here
    held_out: tuple[Standing, ...] = ()
    trial: Trial | None = None  # None: nobody has been asked yet
