"""Alarms: rung with what they tell of, kept, brought to webhooks at least once, and rung by the lookout once each."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.alarm_settings import REVEALED, AlarmSettings
from service.alarms import Alarm, AlarmKind, ring
from service.alarms.delivery import LAST_RETRY_SECONDS, Postman, retry_seconds
from service.alarms.letters import MOST_CHARACTERS, letter
from service.errors import BadRequest
from service.settings import Settings, load
from service.store.store import Store
from tests.receiver import Receiver
from tests.small_service import Refusal, SmallService, refusal

FAILED = AlarmKind.ROUND_FAILED
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


async def rung(store: Store, subject: str = "round 1", once: str | None = None) -> Alarm:
    await ring(store, FAILED, subject, "no memory was left", {"round": 1}, once)
    return (await store.alarms.list())[0]


# --- ringing ------------------------------------------------------------------------------------------


async def test_what_was_rung_is_listed_the_newest_first_and_page_by_page(store: Store) -> None:
    for subject in ("round 1", "round 2", "round 3"):
        await rung(store, subject)
    newest, *_ = listed = await store.alarms.list()
    assert [alarm.subject for alarm in listed] == ["round 3", "round 2", "round 1"]
    assert (newest.kind, newest.message, newest.detail) == ("round_failed", "no memory was left", {"round": 1})
    assert (newest.attempts, newest.delivered_at, newest.trouble) == (0, None, None)
    behind = await store.alarms.list(limit=1, after=newest.seq)
    assert [alarm.subject for alarm in behind] == ["round 2"]


async def test_what_is_to_be_rung_once_is_rung_once_and_uses_up_no_number(store: Store) -> None:
    answers = [await ring(store, FAILED, "round 1", "why", {}, once="round 1 failed") for _ in range(3)]
    assert answers == [True, False, False]
    assert (await rung(store)).seq == 2


async def test_an_alarm_of_a_change_that_is_taken_back_was_never_rung(store: Store) -> None:
    async with store._sessions.transaction() as connection:
        assert await ring(connection, FAILED, "round 1", "why", {})
        await connection.rollback()
    assert await store.alarms.list() == ()


# --- letters ------------------------------------------------------------------------------------------


def an_alarm(**fields: Any) -> Alarm:
    given = {
        "seq": 7,
        "at": NOW,
        "kind": "rollback",
        "subject": "policy-1",
        "message": "down-votes",
        "detail": {"n": 3},
    }
    return Alarm.model_validate(given | fields)


def test_a_letter_in_json_says_all_and_is_known_by_its_id() -> None:
    sent = letter(an_alarm(), format="json", secret=None, now_seconds=0)
    assert sent.body == (
        b'{"id":"alarm-7","at":"2026-01-02T03:04:05Z","kind":"rollback","subject":"policy-1","message":"down-votes",'
        b'"detail":{"n":3}}'
    )
    assert sent.headers == {"content-type": "application/json", "heliotrope-alarm-id": "alarm-7"}


def test_a_letter_for_slack_is_one_short_text_without_markup_of_others() -> None:
    sent = letter(an_alarm(message="<!channel> a & b " + "x" * 9000), format="slack", secret=None, now_seconds=0)
    assert sent.body.startswith(b'{"text":"*rollback* policy-1: &lt;!channel&gt; a &amp; b xxx')
    assert len(sent.body) == MOST_CHARACTERS + len('{"text":""}')


def test_the_signature_covers_body_and_time() -> None:
    sent = letter(an_alarm(), format="json", secret="s3cret", now_seconds=1_700_000_000)
    expected = hmac.new(b"s3cret", b"1700000000." + sent.body, hashlib.sha256).hexdigest()
    assert sent.headers["heliotrope-signature"] == f"t=1700000000,v1={expected}"


# --- delivery -----------------------------------------------------------------------------------------


def postman(store: Store, *urls: str, **settings: Any) -> Postman:
    """Tries again at once."""
    return Postman(store, AlarmSettings.model_validate({"webhooks": urls, **settings}), wait_seconds=lambda _: 0.0)


async def test_an_alarm_is_delivered_once_and_marked(store: Store, receiver: Receiver) -> None:
    alarm = await rung(store)
    post = postman(store, receiver.url, secret="s3cret")
    assert [await post.deliver(), await post.deliver()] == [1, 0]
    (received,) = receiver.received
    assert (received.path, received.json["subject"]) == ("/hook/secret-path", "round 1")
    assert received.headers["heliotrope-alarm-id"] == f"alarm-{alarm.seq}"
    time, _, digest = received.headers["heliotrope-signature"].partition(",v1=")
    signed = time.removeprefix("t=").encode() + b"." + received.body
    assert digest == hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    (kept,) = await store.alarms.list()
    assert (kept.attempts, kept.trouble) == (1, None)
    assert kept.delivered_at is not None


@pytest.mark.parametrize("status", [500, 404, 302], ids=["broken", "unknown", "redirected"])
async def test_what_is_not_taken_is_tried_again_with_the_same_id(
    store: Store, receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    await rung(store)
    receiver.answers = [status]
    post = postman(store, receiver.url)
    with caplog.at_level(logging.WARNING):
        await post.deliver()
    (kept,) = await store.alarms.list()
    assert (kept.delivered_at, kept.trouble) == (None, f"127.0.0.1 answered {status}")
    assert "secret-path" not in caplog.text
    await post.deliver()
    (kept,) = await store.alarms.list()
    assert (kept.attempts, kept.trouble) == (2, None)
    assert kept.delivered_at is not None
    assert [one.path for one in receiver.received] == ["/hook/secret-path"] * 2
    assert receiver.received[0].body == receiver.received[1].body


async def test_nobody_listening_is_trouble_that_names_the_host_only(store: Store, receiver: Receiver) -> None:
    await rung(store)
    await postman(store, "http://127.0.0.1:9/hook/secret-path").deliver()
    (kept,) = await store.alarms.list()
    assert kept.trouble == "127.0.0.1: ConnectError"


async def test_a_webhook_that_has_it_is_not_asked_again_because_another_has_not(
    store: Store, receiver: Receiver
) -> None:
    await rung(store)
    with Receiver() as other:
        other.answers = [503, 503]
        post = postman(store, receiver.url, other.url)
        for _ in range(3):
            await post.deliver()
        assert (len(receiver.received), len(other.received)) == (1, 3)
    assert (await store.alarms.list())[0].delivered_at is not None


async def test_of_two_postmen_one_brings_an_alarm(store: Store, receiver: Receiver) -> None:
    for n in range(5):
        await rung(store, f"round {n}")
    first = await store.alarms.claim(3, within=timedelta(hours=1), claim=timedelta(seconds=60))
    second = await store.alarms.claim(3, within=timedelta(hours=1), claim=timedelta(seconds=60))
    assert [due.alarm.subject for due in first] == ["round 0", "round 1", "round 2"]
    assert [due.alarm.subject for due in second] == ["round 3", "round 4"]


async def test_a_claim_that_nobody_fulfils_passes_to_the_next(store: Store, receiver: Receiver) -> None:
    await rung(store)
    assert len(await store.alarms.claim(9, within=timedelta(hours=1), claim=timedelta())) == 1  # and then it died
    assert await postman(store, receiver.url).deliver() == 1
    assert len(receiver.received) == 1


async def test_after_a_day_delivery_is_given_up(store: Store, receiver: Receiver, database_engine: Engine) -> None:
    await rung(store)
    with database_engine.begin() as connection:
        connection.execute(text("UPDATE alarms SET at = now() - interval '25 hours'"))
    assert await postman(store, receiver.url).deliver() == 0


async def test_without_webhooks_alarms_are_only_kept(store: Store) -> None:
    await rung(store)
    assert await postman(store).deliver() == 0
    assert (await store.alarms.list())[0].attempts == 0


def test_each_wait_is_longer_up_to_a_bound() -> None:
    waits = [retry_seconds(attempts) for attempts in (1, 2, 3, 100_000)]
    assert waits == [2, 4, 8, LAST_RETRY_SECONDS]


def test_urls_and_the_secret_do_not_show() -> None:
    given = {"webhooks": ["https://hooks.example/T/secret"], "secret": "s3cret"}
    settings = load(environment={}, overrides={"alarms": given})
    for shown in (repr(settings), settings.model_dump_json()):
        assert "hooks.example" not in shown
        assert "s3cret" not in shown
    written = settings.model_dump_json(context=REVEALED)  # for the process of a detached `up`
    assert Settings.model_validate_json(written) == settings


@pytest.mark.parametrize("webhook", ["hooks.example", "ftp://hooks.example", "https://"])
def test_a_webhook_that_is_no_url_is_refused_and_named(webhook: str) -> None:
    with pytest.raises(BadRequest, match=r"alarms\.webhooks.*must be a URL"):
        load(environment={}, overrides={"alarms": {"webhooks": [webhook]}})


# --- what rings ---------------------------------------------------------------------------------------


async def test_a_rollback_by_hand_is_rung_with_the_change_itself(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    adapter = await small.publish(1)
    await small.registry.promote(adapter.name, who="tess")
    await small.registry.rollback(who="tess", reason="rude")
    (alarm,) = await store.alarms.list()
    assert (alarm.kind, alarm.subject) == ("rollback", adapter.name)
    assert alarm.message == f"tess took {adapter.name} back, base answers again: rude"


# --- over HTTP ----------------------------------------------------------------------------------------


async def test_operators_read_what_was_rung_page_by_page(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    operator = await small.operator()
    for subject in ("round 1", "round 2"):
        await rung(store, subject)
    newest, older = (await operator.get("/ops/alarms")).json()["data"]
    assert (newest["subject"], newest["kind"], newest["detail"]) == ("round 2", "round_failed", {"round": 1})
    behind = await operator.get("/ops/alarms", params={"after": newest["seq"], "limit": 5})
    assert behind.json()["data"] == [older]
    shop = (await small.app()).headers["authorization"]
    forbidden = await operator.get("/ops/alarms", headers={"authorization": shop})
    assert refusal(forbidden) == Refusal(403, "insufficient_role")
