"""From a published candidate to one that answers everybody: the steps of a canary, the promotion, or the way back.

Between `service/gate`, which let the candidate pass, and `service/registry.py`, which changes the route. Every change of
the route that a round makes is fenced: it happens only while the round is where it was, so who cancels a round first has
cancelled it. Each method can be repeated; what it has done already it finds in the route.
"""

from __future__ import annotations

from datetime import timedelta

from service.canary import deciding
from service.canary.state import CanaryState, WatchState
from service.contracts import Round, RoundState
from service.errors import PreconditionFailed
from service.registry import Registry
from service.settings import Settings
from service.store.round_rows import Fence, RoundFields
from service.store.store import Store
from serving.contracts import Route


class Rollout:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, registry: Registry, settings: Settings) -> None:
        self._store = store
        self._registry = registry
        self._canary = settings.canary
        self._watch = settings.watch

    async def begin(self, round: Round, adapter: str, reason: str) -> None:
        """A candidate that may answer: its canary, or where there is none, everybody at once."""
        assert round.parent is not None
        if not self._canary.shares:
            await self._promote(round, adapter, reason)
            return
        usual = await self._store.canaries.usual(round.parent, timedelta(hours=self._watch.reference_hours))
        await self._store.rounds.move(
            round.n, expect=round.state, to=RoundState.CANARY, attempt=round.attempt, adapter=adapter, reason=reason,
            canary=CanaryState(candidate=adapter, stable=round.parent, usual=usual),
        )  # fmt: skip

    async def step(self, round: Round) -> None:
        """One look at a canary, and what follows from it."""
        state, route = CanaryState.model_validate(round.canary), await self._store.route.read()
        if route.stable == state.candidate:  # promoted by us and not said yet, or by an operator
            await self._promoted(round, state.candidate, round.reason or "")
        elif route.stable != state.stable or (state.now is not None and route.candidate != state.candidate):
            await self._stop(round, state, f"the route was changed meanwhile: {_told(route)}")
        elif state.now is None:
            await self._next(round, state, route)
        elif (
            route.candidate_share != state.now.share
        ):  # an operator said another: what was counted so far stays counted
            await self._keep(round, await self._begun(state, route))
        else:
            await self._look(round, state)

    async def take_off(self, round: Round) -> None:
        """The round is over, and its candidate was not promoted: nobody is drawn for it any more."""
        state = CanaryState.model_validate(round.canary)
        route = await self._store.route.read()
        if route.candidate == state.candidate and route.stable != state.candidate:
            await self._registry.split(
                candidate=None, who=f"round {round.n}", reason=round.reason, expected_generation=route.generation
            )
        ended = state.end(await self._store.canaries.now()).model_copy(update={"open": False})
        await self._store.rounds.keep(round.n, canary=ended)

    # --- steps --------------------------------------------------------------------------------------

    async def _look(self, round: Round, state: CanaryState) -> None:
        evidence = await self._store.canaries.evidence(state)
        seen, decision = deciding.look(state, evidence, self._canary)
        if decision.do == "stop":
            await self._stop(round, seen, decision.why)
        elif decision.do == "advance":
            await self._keep(round, seen.end(evidence.now))
        elif seen != state:
            await self._keep(round, seen)

    async def _next(self, round: Round, state: CanaryState, route: Route) -> None:
        """Begin the next step, or promote where none is left."""
        shares = self._canary.shares
        if state.step >= len(shares):
            await self._promote(round, state.candidate, round.reason or "")
            return
        share = min(shares[state.step], 1 - route.baseline_share)
        try:
            switch = await self._registry.split(
                candidate=state.candidate, candidate_share=share, who=f"round {round.n}",
                reason=f"step {state.step + 1} of {len(shares)} of its canary", expected_generation=route.generation,
                fence=_fence(round),
            )  # fmt: skip
        except PreconditionFailed:  # somebody changes the route just now: the next look sees how
            return
        # A Conductor that dies here is followed by one that finds the share in the route, and counts from then on.
        begun = await self._begun(state.model_copy(update={"step": state.step + 1}), switch.route)
        await self._keep(round, begun)
        await self._tell(round, "canary", step=begun.step, steps=len(shares), share=share, adapter=state.candidate)

    async def _begun(self, state: CanaryState, route: Route) -> CanaryState:
        """The users are drawn anew from now on, with the shares of this route."""
        now = await self._store.canaries.now()
        left = 1 - route.baseline_share
        return state.end(now).begin(route.candidate_share, route.candidate_share / left if left else 0.0, now)

    async def _keep(self, round: Round, state: CanaryState) -> None:
        here = RoundState.CANARY
        await self._store.rounds.move(round.n, expect=here, to=here, attempt=round.attempt, canary=state)

    async def _stop(self, round: Round, state: CanaryState, why: str) -> None:
        """For good. The round's end comes first, so that nothing of it changes the route after this."""
        over = await self._store.rounds.move(
            round.n, expect=RoundState.CANARY, to=RoundState.REJECTED, attempt=round.attempt, canary=state,
            reason=f"stopped in its canary: {why}",
        )  # fmt: skip
        await self.take_off(over)

    # --- the promotion ------------------------------------------------------------------------------

    async def _promote(self, round: Round, adapter: str, reason: str) -> None:
        # An operator who changed the route while we trained has decided; we do not decide against them.
        answers = (await self._store.route.read()).stable == adapter  # we did, and died before we said so
        switch = await self._registry.promote(
            adapter, who=f"round {round.n}", reason=reason, expected_current=adapter if answers else round.parent,
            fence=_fence(round),
        )  # fmt: skip
        await self._tell(
            round, "swap", to=adapter, prepare_seconds=switch.prepare_seconds, flip_seconds=switch.flip_seconds
        )
        await self._promoted(round, adapter, reason)

    async def _promoted(self, round: Round, adapter: str, reason: str) -> None:
        assert round.parent is not None
        now = await self._store.canaries.now()
        known: RoundFields = {"adapter": adapter, "reason": reason}
        if round.canary is not None:
            state = CanaryState.model_validate(round.canary)
            known["canary"] = state.end(now).model_copy(update={"open": False, "waits_for": None})
        if self._watch.minutes:
            until = now + timedelta(minutes=self._watch.minutes)
            known["watch"] = WatchState(adapter=adapter, before=round.parent, began=now, until=until)
        await self._store.rounds.move(
            round.n, expect=round.state, to=RoundState.PROMOTED, attempt=round.attempt, **known
        )

    async def _tell(self, round: Round, kind: str, **data: object) -> None:
        await self._store.rounds.add_event(round.n, kind, {"attempt": round.attempt, **data})


def _fence(round: Round) -> Fence:
    return Fence(round.n, round.attempt, round.state)


def _told(route: Route) -> str:
    return f"{route.stable} answers" + (f", {route.candidate} is the candidate" if route.candidate else "")
