"""The loop's process ends at a moment that nobody chose, again and again; what is in the store and in the cluster stays."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from service.contracts import RoundState
from service.store.store import Store
from serving.adapters import verify
from serving.contracts import BASE
from tests.adapter_files import FINGERPRINTS
from tests.small_service import SmallService

ROUNDS = 3
KILLS = 8  # of each round, at most
LONGEST_SECONDS = 0.4  # that a Conductor lives

SECTIONS = {
    "rounds": {"approval": "always"},
    "canary": {"steps": (0.999,), "soak_minutes": 0, "min_requests": 1},
    "watch": {"minutes": 60},
}


async def _live(small: SmallService, n: int) -> None:
    """The round's Conductor, an operator who approves, and users who ask; until the round is over."""
    while not (round := await small.store.rounds.get(n)).state.final:
        if round.state is RoundState.AWAITING_APPROVAL and round.approved_by is None:
            await small.rounds.approve(n, who="tess", reason=None)
        if round.state is RoundState.CANARY:
            for replica in small.host.replicas.values():
                await replica.reconcile()
            await small.answers_by()
        await small.rounds.step()
        await small.rounds.settle()


async def test_rounds_end_well_however_often_their_conductor_dies(store: Store, tmp_path: Path) -> None:
    chance, kills = random.Random(4), 0
    small = await SmallService.start(store, tmp_path, sections=SECTIONS, max_attempts=100)
    for number in range(ROUNDS):
        await small.like(f"first question {number}", f"second question {number}")
        round = await small.ask_for_round()
        for _ in range(KILLS):
            conductor = asyncio.create_task(_live(small, round.n))
            await asyncio.wait([conductor], timeout=chance.uniform(0, LONGEST_SECONDS))
            kills += conductor.cancel()
            await asyncio.gather(conductor, return_exceptions=True)
            await _route_is_sound(small)
            small.restart_conductor()
        await _live(small, round.n)
        ended = await store.rounds.get(round.n)
        assert ended.state is RoundState.PROMOTED, ended.reason
        assert (await store.route.read()).stable == ended.adapter
    assert kills > ROUNDS
    published = await store.adapters.list()
    assert sorted(adapter.round or 0 for adapter in published) == list(range(1, ROUNDS + 1)), "one of each round"
    promoted = [entry.subject for entry in await store.audit.list() if entry.action == "promote"]
    assert sorted(promoted) == sorted(adapter.name for adapter in published), "each once"


async def _route_is_sound(small: SmallService) -> None:
    """What the route names was published, and its files are whole."""
    route = await small.store.route.read()
    for name in route.wanted() - {BASE}:
        adapter = await small.store.adapters.get(name)
        verify(
            Path(adapter.directory), name=name, base=FINGERPRINTS.base_model, tokenizer=FINGERPRINTS.tokenizer,
            max_rank=small.settings.serving.max_lora_rank, manifest_sha256=adapter.manifest_sha256,
        )  # fmt: skip
