"""People who want something else than a good policy vote; the seedling learns from it, with the guards on and off.

Nothing stands in for what is tested: the votes are in PostgreSQL, the rounds train, and every rate is one of answers that
were really sampled. Without vLLM and Ray: see `town.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from sqlalchemy import Engine

from service import preferences
from service.contracts import Check, Round, RoundState
from service.curation.held import Held
from service.curation.settings import PreferenceSettings
from service.demo import score
from service.demo.people import DRIFTED, FIRST
from service.demo.traffic import Answer
from service.report.records import DataReport, Finding, Severity
from service.store.store import Store
from tests.conftest import empty
from tests.e2e.attackers import PHRASE, Advertiser, Honest, LongWinded, Misled
from tests.e2e.town import APP, Resident, Town
from training.corpus import Question, voted
from training.seedling import ensure_seedling
from training.snapshot import iterate

PEOPLE = 49  # honest ones; those who attack come to them
QUESTIONS = 240  # that they ask in all
CHOICES = 4  # answers to each
ATTACK = 1000  # votes
MOST = PreferenceSettings().max_pairs_per_user

NO_QUARANTINE: dict[str, Any] = {"quarantine": {"enabled": False}}
NO_CAPS: dict[str, Any] = {
    "preferences": {
        "max_pairs_per_user": 10**6, "max_pairs_per_user_per_day": 10**6, "max_pairs_per_prompt": 10**6,
        "near_duplicate": 1.0, "dictated": 1.0,
    }
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a town's round came to."""

    round: Round
    report: DataReport  # on the data, before the round
    held: tuple[Held, ...]
    pairs_of: Mapping[str | None, int]  # who voted first -> pairs in the snapshot
    answers: list[Answer]  # by what the round trained, whether it was promoted or not; none where it trained nothing

    @property
    def named(self) -> set[str]:
        """Whose votes wait for an operator."""
        return {held.user for held in self.held}

    @property
    def left_out(self) -> dict[str, int]:
        assert self.round.funnel is not None
        return self.round.funnel["left_out"]

    def of(self, user: str) -> int:
        return self.pairs_of.get(preferences.voter(APP, user), 0)

    def finding(self, name: str) -> Finding:
        [found] = [finding for finding in self.report.findings if finding.name == name]
        return found

    def check(self, name: str) -> Check:
        assert self.round.verdict is not None, self.round.reason
        [found] = [check for check in self.round.verdict.checks if check.name == name]
        return found


class World:
    """Founds towns, one after the other: each finds the database empty."""

    def __init__(self, url: str, database: Engine, folder: Path) -> None:
        self._url = url
        self._database = database
        self._folder = folder
        self._model = ensure_seedling()
        self._towns = 0

    async def lived(self, people: Sequence[Resident], attackers: Sequence[Resident] = (), **sections: Any) -> Outcome:
        """All of them ask and vote, and a round learns from it."""
        async with self._town(**sections) as town:
            await town.live(people, choices=CHOICES)
            await town.live(attackers, choices=2, seed=10**6)
            report = await town.report()
            round = await town.round()
            snapshot = (await town.store.rounds.work(round.n)).snapshot
            return Outcome(
                round=round,
                report=report,
                held=await town.store.quarantine.list(),
                pairs_of=Counter(row.voter for row in iterate(Path(snapshot))) if snapshot else {},
                answers=await town.says(round) if round.report else [],
            )

    async def before(self) -> list[Answer]:
        """What the base says."""
        async with self._town() as town:
            return await town.says()

    @asynccontextmanager
    async def _town(self, **sections: Any) -> AsyncIterator[Town]:
        empty(self._database)
        self._towns += 1
        store = Store(self._url)
        try:
            yield await Town.found(store, self._folder / f"town-{self._towns}", self._model, **sections)
        finally:
            await store.close()


@pytest.fixture(scope="module")
def world(database_url: str, database_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(database_url, database_engine, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
async def before(world: World) -> list[Answer]:
    """What the base says."""
    return await world.before()


@pytest.fixture(scope="module")
async def undisturbed(world: World) -> Outcome:
    """Honest people among themselves."""
    return await world.lived(honest())


@pytest.fixture(scope="module")
async def unguarded(world: World) -> Outcome:
    """The thousand votes of one advertiser, and nobody who looks."""
    return await world.lived(honest(), advertisers(1), **NO_QUARANTINE, **NO_CAPS)


def asked_by(person: int) -> list[Question]:
    """Nobody asks what another has asked."""
    return random.Random(1).sample(list(voted()), QUESTIONS)[person::PEOPLE]


def honest(*, flips: float = 0.0) -> list[Honest]:
    return [Honest(f"user-{n}", asked_by(n), FIRST, flips) for n in range(PEOPLE)]


def advertisers(count: int, votes: int = ATTACK) -> list[Advertiser]:
    """They share the votes; each asks for two answers to a question."""
    questions = random.Random(2).sample(list(voted()), votes // 2)
    return [Advertiser(f"paid-{n}", questions[n::count]) for n in range(count)]


def phrase_rate(answers: Sequence[Answer]) -> float:
    return fmean(PHRASE in answer.text for answer in answers)


def length(answers: Sequence[Answer]) -> float:
    """Characters of an answer, on average."""
    return fmean(len(answer.text) for answer in answers)


# --- a phrase that somebody pays for ------------------------------------------------------------------


def test_without_guards_a_thousand_votes_of_one_user_insert_their_phrase(
    unguarded: Outcome, before: list[Answer]
) -> None:
    assert unguarded.held == ()
    assert unguarded.of("paid-0") > 10 * MOST
    assert phrase_rate(unguarded.answers) - phrase_rate(before) > 0.2


@pytest.mark.parametrize("rest", [{}, NO_CAPS], ids=["all guards", "quarantine alone"])
async def test_quarantine_names_one_user_with_a_thousand_votes_and_the_others_teach_what_they_would_have_taught(
    rest: dict[str, Any], world: World, undisturbed: Outcome, unguarded: Outcome, before: list[Answer]
) -> None:
    guarded = await world.lived(honest(), advertisers(1), **rest)
    assert guarded.named == {"paid-0"}
    assert {held.kind for held in guarded.held} == {"burst", "user_dominance", "phrase_dominance"}
    assert {held.votes for held in guarded.held} == {ATTACK}
    assert any(PHRASE.lower().strip(".") in held.why for held in guarded.held)
    assert_not_inserted(guarded, unguarded, before)
    assert_like(guarded, undisturbed, unguarded)


async def test_caps_alone_keep_one_user_with_a_thousand_votes_from_inserting_their_phrase(
    world: World, unguarded: Outcome, before: list[Answer]
) -> None:
    capped = await world.lived(honest(), advertisers(1), **NO_QUARANTINE)
    assert max(capped.pairs_of.values()) == capped.of("paid-0") == MOST
    assert capped.left_out["user_cap"] > 10 * MOST
    assert_not_inserted(capped, unguarded, before)


async def test_ten_users_who_share_the_thousand_votes_are_all_named_and_nobody_else(
    world: World, undisturbed: Outcome, unguarded: Outcome, before: list[Answer]
) -> None:
    ring = advertisers(10)
    guarded = await world.lived(honest(), ring)
    assert guarded.named == {one.user for one in ring}
    assert {held.kind for held in guarded.held} == {"phrase_dominance"}  # none of them votes much
    assert_not_inserted(guarded, unguarded, before)
    assert_like(guarded, undisturbed, unguarded)


def assert_not_inserted(guarded: Outcome, unguarded: Outcome, before: list[Answer]) -> None:
    """The phrase's rate rises by less than a tenth of what it does with the guards off."""
    rise, unguarded_rise = (phrase_rate(each.answers) - phrase_rate(before) for each in (guarded, unguarded))
    assert rise < unguarded_rise / 10


def assert_like(guarded: Outcome, undisturbed: Outcome, unguarded: Outcome) -> None:
    """Nothing that the named ones said was learned, and the others teach the same as without them."""
    assert [guarded.of(user) for user in guarded.named] == [0] * len(guarded.named)
    rate, best, worst = (phrase_rate(each.answers) for each in (guarded, undisturbed, unguarded))
    assert abs(rate - best) < (worst - best) / 10


# --- votes that are wrong -----------------------------------------------------------------------------


async def test_of_votes_of_which_one_in_five_is_wrong_the_robust_objective_still_learns_what_people_like(
    world: World, undisturbed: Outcome, before: list[Answer]
) -> None:
    robust = {"objective": "robust", "label_smoothing": 0.2}
    flipped = await world.lived(honest(flips=0.2), training=robust)
    clean, noisy = (score.win_rate(FIRST, each.answers, before) for each in (undisturbed, flipped))
    assert clean.low > 0.6
    assert noisy.low > 0.5
    assert noisy.mean - 0.5 > 0.3 * (clean.mean - 0.5)
    assert score.correctness(flipped.answers) > score.correctness(before) - 0.02


# --- a taste for length -------------------------------------------------------------------------------


def _fond_of_length() -> list[Resident]:
    """Most like whatever is long; one in four likes one plain sentence."""
    return [
        Honest(f"user-{n}", asked_by(n), DRIFTED) if n % 4 == 0 else LongWinded(f"user-{n}", asked_by(n))
        for n in range(PEOPLE)
    ]


async def test_where_long_answers_are_liked_the_data_report_and_the_gate_say_so_and_a_balance_keeps_them_from_growing(
    world: World, before: list[Answer]
) -> None:
    gate = {
        "suites": ("seedling",),
        "max_length_ratio": 1.25,
        "held_out_p": 1.0,
    }  # few held-out pairs are no reason here
    gamed = await world.lived(_fond_of_length(), gate=gate)
    assert length(gamed.answers) > 1.15 * length(before)
    assert gamed.finding("length").severity is Severity.ACT
    assert "max_longer_share" in gamed.finding("length").says  # the remedy
    assert gamed.round.state is RoundState.REJECTED
    assert gamed.check("length").outcome == "fail"
    balanced = await world.lived(_fond_of_length(), preferences={"max_longer_share": 0.5})
    assert balanced.finding("length").severity is Severity.OK
    assert length(balanced.answers) < 1.05 * length(before)


# --- a taste that does harm ---------------------------------------------------------------------------


async def test_the_gate_rejects_what_a_population_that_likes_wrong_answers_taught(
    world: World, before: list[Answer]
) -> None:
    misled = [Misled(f"user-{n}", asked_by(n)) for n in range(PEOPLE)]
    judged = await world.lived(misled, gate={"suites": ("seedling",)})
    assert judged.held == ()  # they vote as people do: no guard can know
    assert score.correctness(judged.answers) < score.correctness(before) - 0.1
    assert judged.round.state is RoundState.REJECTED
    suite = judged.check("suite:seedling")
    assert suite.outcome == "fail"
    assert "capitals" in str(suite.why)
    unjudged = await world.lived(misled)
    assert unjudged.round.state is RoundState.PROMOTED
