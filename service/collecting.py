"""What a round learns from and is judged by: new pairs, held-out ones, replayed ones, as the rows of its snapshot.

Reads the pairs that `matching.py` keeps up to date and decides by the pure `curation/guards.py`, `preferences.py` and
`replay.py`; `rounds.py` freezes what it collects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from service import preferences
from service.contracts import Round
from service.curation.guards import Context, Selection, select
from service.lineage import ancestry, behind
from service.matching import Matcher
from service.pairs import Funnel, LeftOut, Pair
from service.replay import choose
from service.settings import Settings
from service.store.preferences import Open
from service.store.store import Store
from service.suites.frozen import frozen
from service.suites.loader import chosen
from training.contracts import REPLAY
from training.objective import Objective, parse
from training.snapshot import SnapshotRow


@dataclass(frozen=True)
class Found:
    """What a round would learn from, what the guards keep from it, and what became of every vote."""

    pairs: list[Pair]  # by id; single thumbs are among them where the objective learns from those
    left_out: list[tuple[Pair, LeftOut]]  # by the guards; by id
    settled: list[Pair]  # those of them on whose matter one of `pairs` has the word; by id
    funnel: Funnel


@dataclass(frozen=True)
class Collection:
    """The input of one round."""

    pairs: list[Pair]  # that the round uses up: no other will learn them as new ones
    settled: list[Pair]  # that are used up with them, and learned by none
    held_out: set[str]  # the ids of those pairs that are kept for the evaluation
    rows: list[SnapshotRow]
    funnel: Funnel


class Collector:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.matcher = Matcher(store, settings.preferences, settings.quarantine)
        self._store = store
        self._settings = settings
        self._frozen = frozen(chosen(settings.gate, settings.model.name))

    async def look(self, objective: str | None = None, round: Round | None = None) -> Found:
        """What a round of this objective finds, by default one with the settings' own that would start now.

        Every vote that is durable already is taken into account.
        """
        thumbs = bool(parse(objective or self._settings.training.objective).unpaired)
        await self.matcher.catch_up()
        open = await self._store.preferences.open()
        selection = await self.guard(open, open.now if round is None else round.created_at)
        of_use = [pair for pair in open.pairs if thumbs or not pair.is_thumb]
        return Found(
            pairs=[pair for pair in selection.kept if thumbs or not pair.is_thumb],
            left_out=[(pair, selection.left_out[pair.id]) for pair in of_use if pair.id in selection.left_out],
            settled=[pair for pair in of_use if pair.id in selection.settled],
            funnel=preferences.funnel(open.left_out, open.pairs, selection, thumbs=thumbs),
        )

    async def guard(self, open: Open, now: datetime) -> Selection:
        """Which of the open pairs count, for a round that was created then."""
        stable = (await self._store.route.read()).stable
        context = Context(now, behind(stable, await self._store.adapters.parents()), open.counted, self._frozen)
        return await asyncio.to_thread(select, open.pairs, self._settings.preferences, context)

    async def collect(self, round: Round, found: Found, parent: str) -> Collection:
        """`found`, parted and joined by older pairs that `parent` has learned, as the round asks for."""
        objective = parse(str(round.settings["objective"]))
        held_out = preferences.hold_out(found.pairs, self._settings.training.held_out_share)
        rows = await self._store.preferences.snapshot_rows(found.pairs, held_out)
        older = await self._replay(round, found.pairs, held_out, parent, objective)
        rows += await self._store.preferences.snapshot_rows(older, set(), origin=REPLAY)
        funnel = found.funnel.model_copy(update={"pairs_replayed": len(older)})
        return Collection(found.pairs, found.settled, held_out, rows, funnel)

    async def collect_for_candidate(self, round: Round) -> Collection:
        """Every new pair, to judge an adapter from outside by. It learns none, so none is used up."""
        found = await self.look("dpo", round)  # a single thumb compares no answers
        held_out = {pair.id for pair in found.pairs}
        rows = await self._store.preferences.snapshot_rows(found.pairs, held_out)
        return Collection([], [], held_out, rows, found.funnel)

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
            seed=self._settings.training.seed,
            round=round.n,
        )


def missing(funnel: Funnel, objective: str, needed: int, *, users: int = 0, apps: int = 0) -> str | None:
    """Why there is too little to learn from; None: there is enough.

    Thumbs count where the objective learns from nothing else: there every vote is an example of its own. `users` and
    `apps` are how many a round needs at least.
    """
    thumbs = 0 if parse(objective).paired else funnel.thumbs
    needs = (
        (funnel.pairs + thumbs, "new pairs and thumbs" if thumbs else "new pairs", needed, "min_pairs"),
        (funnel.users, "users", users, "rounds.min_users"),
        (funnel.apps, "apps", apps, "rounds.min_apps"),
    )
    lacking = [
        f"{found} {kind}, {least} are needed ({setting}): {least - found} are missing"
        for found, kind, least, setting in needs
        if found < least
    ]
    return "; ".join(lacking) or None
