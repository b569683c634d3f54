"""What a round learns from and is judged by: new pairs, held-out ones, replayed ones, as the rows of its snapshot.

Reads the store and decides by the pure `preferences.py` and `replay.py`; `rounds.py` freezes what it collects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from service import preferences
from service.contracts import Round
from service.pairs import Funnel, Pair
from service.preferences import Reasons
from service.replay import ancestry, choose
from service.settings import TrainingSettings
from service.store.store import Store
from service.votes import Vote
from training.contracts import REPLAY
from training.objective import Objective, parse
from training.snapshot import SnapshotRow


@dataclass(frozen=True)
class Found:
    """All effective votes, the new pairs in them, and why the other votes are in none."""

    votes: list[Vote]
    pairs: list[Pair]
    funnel: Funnel
    left_out: Reasons


@dataclass(frozen=True)
class Collection:
    """The input of one round."""

    pairs: list[Pair]  # that the round uses up: no other will learn them as new ones
    held_out: set[str]  # the ids of those that are kept for the evaluation
    rows: list[SnapshotRow]
    funnel: Funnel


class Collector:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, settings: TrainingSettings) -> None:
        self._store = store
        self._settings = settings

    async def look(self, objective: str | None = None) -> Found:
        """What a round of this objective would find now; without one, a round with the settings' own."""
        thumbs = bool(parse(objective or self._settings.objective).unpaired)
        votes = await self._store.preferences.effective_votes()
        learned = await self._store.preferences.learned_choices()
        imported = await self._store.preferences.imported_new()
        built = await asyncio.to_thread(preferences.build, votes, learned, imported, thumbs=thumbs)
        return Found(votes, *built)

    async def collect(self, round: Round, found: Found, parent: str) -> Collection:
        """`found`, parted and joined by older pairs that `parent` has learned, as the round asks for."""
        objective = parse(str(round.settings["objective"]))
        held_out = preferences.hold_out(found.pairs, self._settings.held_out_share)
        rows = await self._store.preferences.snapshot_rows(found.pairs, held_out)
        older = await self._replay(round, found.pairs, held_out, parent, objective)
        rows += await self._store.preferences.snapshot_rows(older, set(), origin=REPLAY)
        funnel = found.funnel.model_copy(update={"pairs_replayed": len(older)})
        return Collection(found.pairs, held_out, rows, funnel)

    async def collect_for_candidate(self) -> Collection:
        """Every new pair, to judge an adapter from outside by. It learns none, so none is used up."""
        found = await self.look("dpo")  # a single thumb compares no answers
        held_out = {pair.id for pair in found.pairs}
        rows = await self._store.preferences.snapshot_rows(found.pairs, held_out)
        return Collection([], held_out, rows, found.funnel)

    async def _replay(
        self, round: Round, new: Sequence[Pair], held_out: AbstractSet[str], parent: str, objective: Objective
    ) -> list[Pair]:
        share = float(round.settings.get("replay", 0))
        if share == 0:
            return []
        rounds = ancestry(parent, await self._store.adapters.list())
        trained = await self._store.preferences.trained_in(rounds)
        of_use = [pair for pair in trained if objective.unpaired or not pair.is_thumb]
        return choose(
            of_use,
            sum(pair.id not in held_out for pair in new),
            share,
            {pair.prompt_digest for pair in new if pair.id in held_out},
            seed=self._settings.seed,
            round=round.n,
        )


def missing(funnel: Funnel, objective: str, needed: int) -> str | None:
    """Why there is too little to learn from; None: there is enough.

    Thumbs count where the objective learns from nothing else: there every vote is an example of its own.
    """
    thumbs = 0 if parse(objective).paired else funnel.thumbs
    found, kind = funnel.pairs + thumbs, "pairs and thumbs" if thumbs else "pairs"
    if found >= needed:
        return None
    return f"{found} new {kind}, {needed} are needed (min_pairs): {needed - found} are missing"
