"""Attempts end with their round, whoever died before they were told to."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from service.contracts import RoundState
from service.store.store import Store
from tests.fake_trainer import RUNNING, FakeTrainer
from tests.fakes import Killed, until
from tests.small_service import SmallService
from training.contracts import RoundSpec


class MortalTrainer(FakeTrainer):
    """The Conductor is killed just before the first attempt is told to end."""

    killed = False

    async def stop(self, spec: RoundSpec) -> None:
        if not self.killed:
            self.killed = True
            raise Killed
        await super().stop(spec)


async def _start(store: Store, folder: Path, trainer: FakeTrainer) -> SmallService:
    small = await SmallService.start(store, folder)
    small.trainer = trainer
    small.restart_conductor()
    await small.like("first question", "second question")
    return small


async def _start_conductor(small: SmallService) -> None:
    """One that lives until no attempt runs any more."""
    small.restart_conductor()
    life = asyncio.create_task(small.rounds.run())
    await until(lambda: small.trainer.running == set() or life.done())
    life.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await life


async def test_an_attempt_ends_though_the_conductor_died_when_it_had_its_report(store: Store, tmp_path: Path) -> None:
    small = await _start(store, tmp_path, MortalTrainer())
    round = await small.ask_for_round()
    with pytest.raises(Killed):
        await small.finish(round)
    assert (await store.rounds.get(round.n)).state is RoundState.JUDGING
    assert small.trainer.running
    await _start_conductor(small)
    assert (await small.finish(round)).state is RoundState.PROMOTED
    assert small.trainer.running == set(), "its processes stay, with all their memory, until the cluster ends"


async def test_an_attempt_ends_though_the_conductor_died_when_its_round_was_cancelled(
    store: Store, tmp_path: Path
) -> None:
    small = await _start(store, tmp_path, MortalTrainer([RUNNING]))
    round = await small.ask_for_round()
    while not small.trainer.running:
        await small.rounds.step()
    with pytest.raises(Killed):
        await small.rounds.cancel(round.n, who="tess")
    assert small.trainer.running
    await _start_conductor(small)
    assert small.trainer.running == set(), "it trains on for nobody, beside the attempts of the next round"
