"""When rounds start by themselves: times of the week, what is due, and the loop that starts them against the real store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contracts import Pause, Round, RoundState
from service.store.store import Store
from service.triggers.cron import parse
from service.triggers.due import REQUESTED_BY, Occasion, Situation, due
from service.triggers.settings import RoundSettings
from tests.fake_api import a_round
from tests.small_service import SmallService

NOW = datetime(2026, 3, 4, 3, 20, tzinfo=UTC)  # a Wednesday


# --- times of the week --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "latest", "following"),
    [
        ("0 3 * * *", "2026-03-04 03:00", "2026-03-05 03:00"),
        ("30 3 * * *", "2026-03-03 03:30", "2026-03-04 03:30"),
        ("*/15 * * * *", "2026-03-04 03:15", "2026-03-04 03:30"),
        ("20 3 * * *", "2026-03-04 03:20", "2026-03-05 03:20"),
        ("0 22 * * 1-5", "2026-03-03 22:00", "2026-03-04 22:00"),
        ("0 0 * * 0", "2026-03-01 00:00", "2026-03-08 00:00"),
        ("0 0 * * 7", "2026-03-01 00:00", "2026-03-08 00:00"),
        ("0 0 1 * *", "2026-03-01 00:00", "2026-04-01 00:00"),
        ("0 0 13 * 5", "2026-02-27 00:00", "2026-03-06 00:00"),  # the 13th, and every Friday
        ("5,10 1-3/2 * * *", "2026-03-04 03:10", "2026-03-05 01:05"),
        ("0 0 29 2 *", "2024-02-29 00:00", "2028-02-29 00:00"),
    ],
)
def test_the_times_before_and_after_now(cron: str, latest: str, following: str) -> None:
    found = parse(cron).latest(NOW), parse(cron).next(NOW)
    assert found == tuple(datetime.fromisoformat(time).replace(tzinfo=UTC) for time in (latest, following))


def test_a_day_that_never_comes_has_no_time() -> None:
    assert parse("0 0 31 2 *").latest(NOW) is None
    assert parse("0 0 31 2 *").next(NOW) is None


def test_other_time_zones_are_read_as_utc() -> None:
    there = NOW.astimezone(tz=datetime.fromisoformat("2026-03-04T05:20:00+02:00").tzinfo)
    assert parse("0 3 * * *").latest(there) == datetime(2026, 3, 4, 3, tzinfo=UTC)


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)), st.integers(0, 59))
def test_between_the_time_before_and_the_time_after_there_is_none(now: datetime, minute: int) -> None:
    cron = parse(f"{minute} */6 * * 1,3")
    before, after = cron.latest(now), cron.next(now)
    assert before is not None and after is not None
    assert before <= now < after
    assert cron.next(before) == after
    assert cron.latest(after) == after


@pytest.mark.parametrize(
    ("cron", "named"),
    [("0 3 * *", "4 fields"), ("60 * * * *", "minute"), ("0 24 * * *", "hour"), ("0 0 0 * *", "day"),
     ("0 0 * 13 *", "month"), ("0 0 * * 8", "weekday"), ("x * * * *", "minute"), ("5-1 * * * *", "minute"),
     ("*/0 * * * *", "minute"), ("", "0 fields")],
)  # fmt: skip
def test_what_is_no_time_of_the_week_is_refused_by_its_field(cron: str, named: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=named):
        RoundSettings(cron=cron)


# --- what is due --------------------------------------------------------------------------------------


def situation(**fields: Any) -> Situation:
    usual: dict[str, Any] = {
        "now": NOW, "pause": None, "last": None, "watching": False, "new_pairs": 40, "missing": None,
    }  # fmt: skip
    return Situation(**(usual | fields))


def ended(state: RoundState = RoundState.PROMOTED, ago: timedelta = timedelta(hours=5), **fields: Any) -> Round:
    return a_round(7, state, **({"created_at": NOW - ago, "updated_at": NOW - ago} | fields))


ENOUGH = RoundSettings(new_pairs=40)
HOURLY = RoundSettings(every_hours=4)
NIGHTLY = RoundSettings(cron="0 3 * * *")


def test_without_triggers_nothing_is_ever_due() -> None:
    assert due(RoundSettings(), situation(new_pairs=10**6)) is None


def test_enough_new_pairs_make_a_round_due_and_one_less_does_not() -> None:
    assert due(ENOUGH, situation()) == Occasion("new_pairs", "trigger new_pairs after round 0")
    assert due(ENOUGH, situation(new_pairs=39)) is None


def test_a_round_is_due_so_long_after_the_one_before() -> None:
    assert due(HOURLY, situation(last=ended())) == Occasion("every_hours", "trigger every_hours after round 7")
    assert due(HOURLY, situation(last=ended(ago=timedelta(hours=3)))) is None
    assert isinstance(due(HOURLY, situation()), Occasion), "there was none yet"


def test_a_round_is_due_at_its_time_of_the_week_and_a_while_after() -> None:
    assert due(NIGHTLY, situation(last=ended())) == Occasion("cron", "trigger cron 2026-03-04T03:00:00+00:00")
    assert due(NIGHTLY, situation(now=NOW + timedelta(hours=2))) is None
    started = ended(ago=timedelta(minutes=10), requested_by=REQUESTED_BY + "cron")
    assert due(NIGHTLY, situation(last=started)) is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pause": Pause(who="tess", reason="audit", at=NOW)}, "paused by tess: audit"),
        ({"last": ended(RoundState.CANARY)}, "round 7 is canary"),
        ({"watching": True}, "the adapter that was promoted last is still watched"),
        ({"missing": "2 users, 5 are needed"}, "2 users, 5 are needed"),
        ({"last": ended(RoundState.FAILED, timedelta(minutes=5))}, "round 7 was failed less than 1 hours ago"),
        ({"last": ended(RoundState.REJECTED, timedelta(minutes=5))}, "round 7 was rejected less than 1 hours ago"),
        ({"last": ended(RoundState.CANCELLED, timedelta(minutes=5))}, "round 7 was cancelled less than 1 hours ago"),
    ],
)
def test_what_is_due_waits_and_says_for_what(fields: dict[str, Any], why: str) -> None:
    assert due(ENOUGH, situation(**fields)) == why


def test_after_a_promotion_there_is_no_rest() -> None:
    assert isinstance(due(ENOUGH, situation(last=ended(ago=timedelta(minutes=5)))), Occasion)


def test_a_clock_that_jumps_names_the_same_occasion() -> None:
    for jump in (timedelta(minutes=-10), timedelta(minutes=30)):
        assert due(NIGHTLY, situation(now=NOW + jump)) == due(NIGHTLY, situation())
        assert due(ENOUGH, situation(now=NOW + jump)) == due(ENOUGH, situation())


def test_a_round_from_the_future_keeps_nobody_waiting_for_years() -> None:
    ahead = ended(ago=timedelta(days=-365))
    assert due(HOURLY, situation(last=ahead)) == Occasion("every_hours", "trigger every_hours after round 7")
    assert due(HOURLY, situation(last=ended(ago=timedelta(hours=-1)))) is None


# --- the loop -----------------------------------------------------------------------------------------

QUESTIONS = ["first question", "second question"]


async def a_service(store: Store, folder: Path, **rounds: Any) -> SmallService:
    return await SmallService.start(store, folder, sections={"rounds": rounds})


async def test_enough_votes_start_one_round_and_only_one(store: Store, tmp_path: Path) -> None:
    small = await a_service(store, tmp_path, new_pairs=2)
    assert await small.triggers.look() is None
    await small.like(*QUESTIONS)
    started = await small.triggers.look()
    assert started is not None
    assert (started.state, started.requested_by) == (RoundState.QUEUED, "trigger: new_pairs")
    assert await small.triggers.look() is None
    await small.finish(started)
    assert await small.triggers.look() is None, "its pairs are used up"


async def test_an_occasion_that_started_a_round_starts_none_again(store: Store, tmp_path: Path) -> None:
    """Whatever became of the round, whatever came after it, and whoever looks: the store remembers."""
    now = await store.canaries.now()
    small = await a_service(store, tmp_path, cron=f"{now.minute} {now.hour} * * *", rest_hours=0)
    await small.like(*QUESTIONS)
    first = await small.triggers.look()
    assert first is not None
    await small.rounds.cancel(first.n, who="tess")
    assert await small.triggers.look() is None
    by_hand = await small.ask_for_round()
    await small.rounds.cancel(by_hand.n, who="tess")
    small.restart_conductor()
    assert await small.triggers.look() is None
    assert len(await store.rounds.list()) == 2


async def test_too_few_users_start_nothing_and_are_said_to_be_missing(store: Store, tmp_path: Path) -> None:
    small = await a_service(store, tmp_path, new_pairs=2, min_users=3, min_apps=2)
    await small.like(*QUESTIONS)
    assert await small.triggers.look() is None
    assert (await small.triggers.status())["waits_for"] == (
        "2 users, 3 are needed (rounds.min_users): 1 are missing; 1 apps, 2 are needed (rounds.min_apps): 1 are missing"
    )
    ended = await small.round()
    assert ended.state is RoundState.FAILED, "a round that is asked for by hand does nothing either"
    assert str(ended.reason).startswith("2 users, 3 are needed")
    assert (await small.rounds.preview()).pairs == 2


async def test_a_pause_lets_no_round_start_by_itself_and_a_resumption_does(store: Store, tmp_path: Path) -> None:
    small = await a_service(store, tmp_path, new_pairs=2)
    await small.like(*QUESTIONS)
    pause = await store.pauses.begin(who="tess", reason="holidays")
    assert await store.pauses.begin(who="tom", reason=None) == pause
    assert await small.triggers.look() is None
    assert len(await small.answers_by()) == 1, "answers go on"
    assert await store.pauses.end(who="tess", reason=None)
    assert not await store.pauses.end(who="tess", reason=None)
    assert await small.triggers.look() is not None
    assert [(e.who, e.action) for e in reversed(await store.audit.list())] == [("tess", "pause"), ("tess", "resume")]


async def test_a_pause_does_not_stop_a_round_that_runs(store: Store, tmp_path: Path) -> None:
    small = await a_service(store, tmp_path)
    await small.like(*QUESTIONS)
    round = await small.ask_for_round()
    await store.pauses.begin(who="tess", reason=None)
    assert (await small.finish(round)).state.final


async def test_status_says_what_starts_rounds_and_when(store: Store, tmp_path: Path) -> None:
    small = await a_service(store, tmp_path, new_pairs=50, cron="0 3 * * *")
    await small.like(*QUESTIONS)
    status = await small.triggers.status()
    assert status["triggers"] == {"new_pairs": 50, "cron": "0 3 * * *"}
    assert (status["new_pairs"], status["missing"], status["pause"]) == (2, None, None)
    assert status["next_cron"] > await store.canaries.now()
