"""A candidate's exam: the suites' questions, asked of it, of the deployed adapter and of the base, by way of a replica.

Gathers what `service/gate` decides from, and what people may want to read of it; decides nothing. Answers are greedy, or
sampled with fixed seeds. What does not change, an adapter's answers to frozen questions, is asked once (`baselines.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from service.arbiter import Arbiter, ArbiterSilent, gathered
from service.baselines import Answers, Baselines
from service.errors import AdapterRejected, Unavailable
from service.gate.behaviour import Behaviour, look
from service.gate.comparison import Duel, compare
from service.gate.evidence import Comparison, Graded, Latency, Spoken, Trial
from service.gate.settings import GateSettings, JudgeSettings
from service.registry import Registry
from service.suites.grading import right
from service.suites.items import Item, Suite
from serving.contracts import BASE, Ask, Said

ASKS_A_CALL = 128  # a call must end well before a replica is given up
TIMED_ITEMS = 4
TIMED_TURNS = 2  # the candidate and the deployed adapter take turns, so that a busy minute hits both
TIMED_TOKENS = 16
SHOWN = 8  # answers before and after, for people


@dataclass(frozen=True)
class Examination:
    trial: Trial
    behaviour: dict[str, Any]  # kept with the round: numbers, and answers side by side


class Examiner:
    """One per service, in the Conductor. Without suites nobody is asked anything."""

    def __init__(
        self,
        registry: Registry,
        settings: GateSettings,
        suites: Sequence[Suite],
        arbiter: Arbiter | None,
        folder: Path,  # for what was asked once
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._suites = tuple(suites)
        self._items = tuple(item for suite in suites for item in suite.items)
        self._arbiter = arbiter
        self._judge = settings.judge
        judged_by = settings.judge.model if settings.judge else None
        self._baselines = Baselines(folder, [[suite.digest for suite in suites], judged_by])

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self._items)

    async def examine(self, directory: str, name: str, current: str) -> Examination:
        """The candidate in `directory` beside `current`, which must be served. Raises what `Registry.sample` raises."""
        began = time.monotonic()
        if not self.asks:
            await self._registry.sample(name, directory, [], 1)  # it must load all the same
            return Examination(Trial(), {})
        candidate = await self._answers(directory, name)
        self._keep(name, candidate)  # promoted, it is what the next candidate is compared with
        baseline = await self._baseline(current)
        base = baseline if current == BASE else await self._baseline(BASE)
        trial = Trial(
            current=self._behaviour(baseline),
            candidate=self._behaviour(candidate),
            said=tuple(
                Spoken(item.question, before.text, after.text)
                for item, before, after in zip(self._items, baseline.said, candidate.said, strict=True)
            ),
            suites=self._graded(base, baseline, candidate),
            latency=await self._latency(directory, name, current),
        )
        seconds = {"suites": time.monotonic() - began}
        trial = await self._compared(trial, directory, name, current)
        seconds["all"] = time.monotonic() - began
        return Examination(trial, self._report(trial, baseline, candidate) | {"seconds": seconds})

    # --- the suites ---------------------------------------------------------------------------------

    async def _baseline(self, name: str) -> Answers:
        """Of an adapter that is served, asked at most once."""
        known = self._baselines.read(name)
        if known is None:
            known = await self._answers(None, name)
            self._keep(name, known)
        return known

    def _keep(self, name: str, answers: Answers) -> None:
        """Unless a judge left out a grade: it may speak next time."""
        both = zip(self._items, answers.right, strict=True)
        judged = [grade for item, grade in both if item.check is not None and item.check.judge is not None]
        if self._arbiter is None or None not in judged:
            self._baselines.write(name, answers)

    async def _answers(self, directory: str | None, name: str) -> Answers:
        said = await self._ask(directory, name, [Ask(messages=i.chat, max_tokens=i.max_tokens) for i in self._items])
        try:
            grades = await gathered(self._grade(item, one) for item, one in zip(self._items, said, strict=True))
        except ArbiterSilent:
            grades = [_right(item, one) for item, one in zip(self._items, said, strict=True)]
        return Answers(said=tuple(said), right=tuple(grades))

    async def _grade(self, item: Item, said: Said) -> bool | None:
        found = _right(item, said)
        if found is None and self._arbiter is not None and item.check is not None and item.check.judge is not None:
            return await self._arbiter.meets(item.chat, said.text, item.check.judge)
        return found

    async def _ask(self, directory: str | None, name: str, asks: Sequence[Ask]) -> list[Said]:
        rest, said = iter(asks), list[Said]()
        while group := list(islice(rest, ASKS_A_CALL)):
            said += await self._sample(directory, name, group, self._settings.at_once)
        return said

    async def _sample(self, directory: str | None, name: str, asks: Sequence[Ask], at_once: int) -> tuple[Said, ...]:
        """Without a directory it is served already, and that it does not answer says nothing against the candidate."""
        try:
            return (await self._registry.sample(name, directory, asks, at_once)).answers
        except AdapterRejected as refused:
            if directory is not None:
                raise
            raise Unavailable(f"{name} does not answer the gate's questions: {refused.message}") from refused

    def _behaviour(self, answers: Answers) -> Behaviour:
        both = zip(self._items, answers.said, strict=True)
        return Behaviour(tuple(look(s.text, s.tokens, s.finish_reason, harmful=i.harmful) for i, s in both))

    def _graded(self, base: Answers, current: Answers, candidate: Answers) -> dict[str, tuple[Graded, ...]]:
        """Of each suite the items that ask for something right."""
        found: dict[str, tuple[Graded, ...]] = {}
        marks = zip(self._items, base.right, current.right, candidate.right, strict=True)
        for suite in self._suites:
            of_suite = list(islice(marks, len(suite.items)))
            if graded := tuple(Graded(item.slice, *three) for item, *three in of_suite if item.check is not None):
                found[suite.name] = graded
        return found

    # --- seconds ------------------------------------------------------------------------------------

    async def _latency(self, directory: str, name: str, current: str) -> Latency | None:
        """Each answer alone in the engine, but for what users ask meanwhile."""
        asks = [Ask(messages=item.chat, max_tokens=TIMED_TOKENS) for item in self._items[:TIMED_ITEMS]]
        ours, theirs = list[float](), list[float]()
        for _ in range(TIMED_TURNS):
            theirs += _seconds_a_token(await self._sample(None, current, asks, 1))
            ours += _seconds_a_token(await self._sample(directory, name, asks, 1))
        return Latency(median(theirs), median(ours)) if ours and theirs else None

    # --- under a judge ------------------------------------------------------------------------------

    async def _compared(self, trial: Trial, directory: str, name: str, current: str) -> Trial:
        """With the win rate, or why there is none."""
        if self._arbiter is None or self._judge is None:
            return trial
        try:
            found = await self._compare(self._arbiter, self._judge, directory, name, current)
        except ArbiterSilent as silent:
            return replace(trial, no_comparison=str(silent))
        return replace(trial, comparison=found, no_comparison="the judge said of fewer than two prompts what is better")

    async def _compare(
        self, arbiter: Arbiter, judge: JudgeSettings, directory: str, name: str, current: str
    ) -> Comparison | None:
        items = sorted(self._items, key=lambda item: item.check is not None)[: judge.prompts]  # open questions first
        asks = [
            Ask(messages=item.chat, max_tokens=item.max_tokens, temperature=judge.temperature, seed=seed)
            for seed in range(judge.samples)
            for item in items
        ]
        ours = await self._ask(directory, name, asks)
        theirs = await self._ask(None, current, asks)
        duels = await gathered(
            _duel(arbiter, item, our.text, their.text)
            for item, our, their in zip(items * judge.samples, ours, theirs, strict=True)
        )
        return compare([duel for duel in duels if duel is not None])

    # --- for people ---------------------------------------------------------------------------------

    def _report(self, trial: Trial, current: Answers, candidate: Answers) -> dict[str, Any]:
        assert trial.current is not None and trial.candidate is not None
        return {
            "suites": {suite.name: {"digest": suite.digest, "items": len(suite.items)} for suite in self._suites},
            "current": trial.current.summary(),
            "candidate": trial.candidate.summary(),
            "win_rate": None if trial.comparison is None else asdict(trial.comparison),
            "latency": None if trial.latency is None else asdict(trial.latency),
            "samples": [
                {"prompt": self._items[n].question, "before": current.said[n].text, "after": candidate.said[n].text}
                for n in _spread(self._items)
            ],
        }


def _right(item: Item, said: Said) -> bool | None:
    return None if item.check is None else right(item.check, said.text)


def _seconds_a_token(answers: Iterable[Said]) -> list[float]:
    return [answer.seconds / answer.tokens for answer in answers if answer.tokens]


async def _duel(arbiter: Arbiter, item: Item, ours: str, theirs: str) -> Duel | None:
    """None: the judge said nothing that could be read. Equal answers are a tie that needs no judge."""
    if ours == theirs:
        return Duel(item.id, 0.5, 0.5, 0)
    first, second = await gathered((arbiter.prefers(item.chat, ours, theirs), arbiter.prefers(item.chat, theirs, ours)))
    if first is None or second is None:
        return None
    return Duel(item.id, first, 1 - second, len(ours) - len(theirs))


def _spread(items: Sequence[Item]) -> list[int]:
    """The places of a few items, from as many slices as there are, in their order."""
    of_slice: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        of_slice.setdefault(item.slice, []).append(place)
    rounds = sorted((turn, places[0], place) for places in of_slice.values() for turn, place in enumerate(places))
    return sorted(place for _, _, place in rounds[:SHOWN])
