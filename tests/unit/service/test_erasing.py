"""Erasing a person: after it nothing of theirs is in any table or file, and it is on record who learned from it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.contracts import Adapter, RoundState
from service.keeping import snapshots
from service.lineage import descendants
from service.store.erasure import Traces
from service.store.store import Store
from service.store.tables import metadata
from service.votes import FeedbackBody, Rating, Rival
from serving.contracts import Caller
from tests.fake_trainer import RUNNING
from tests.small_service import Refusal, SmallService, refusal
from training.contracts import HELD_OUT, TRAIN
from training.snapshot import SnapshotRow, iterate, write_snapshot

MARKER = "zebrafinch-7319"
USER = f"{MARKER}/of the/shop"  # as awkward as an app may name somebody
OTHERS = [f"question {number}" for number in range(6)]


def _everything(engine: Engine) -> str:
    """All tables, as text."""
    with engine.connect() as connection:
        rows = [connection.execute(text(f'SELECT t::text FROM "{table}" t')).scalars() for table in metadata.tables]
        return "\n".join(line for lines in rows for line in lines)


def _files(folder: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def _talk(small: SmallService, user: str | None, question: str) -> str:
    body: dict[str, Any] = {"model": "policy", "n": 2, "messages": [{"role": "user", "content": question}]}
    body |= {"metadata": {"page": question}} | ({"user": user} if user else {})
    return (await small.replica.chat(body, Caller(app="shop"))).completion_id


async def _say(small: SmallService, **vote: Any) -> None:
    await small.store.feedback.put("shop", FeedbackBody(**vote))


async def _live(small: SmallService) -> None:
    """One person's traces in every table: asked, voted on by others, voting on others', in quarantine and in a round."""
    await small.like(*OTHERS)
    theirs = [await _talk(small, USER, f"{MARKER} asks {number}") for number in range(3)]
    for id in theirs:
        await _say(small, completion_id=id, user=USER, preferred_over=Rival(choice_index=1), comment=f"{MARKER}!")
    await _say(small, completion_id=theirs[0], user="support", rating=Rating.DOWN, comment=f"said {MARKER}")
    other = await _talk(small, "ada", "what is a finch?")
    await _say(small, completion_id=other, user=USER, correction=f"a {MARKER}", tags=(MARKER,))
    await _say(small, completion_id=other, user="ada", rating=Rating.UP, choice_index=1)


def _suspect(engine: Engine) -> None:
    with engine.begin() as connection:
        for user in (USER, "ada"):
            held = text(
                'INSERT INTO quarantine (kind, app, "user", why, evidence) '
                "VALUES ('burst', 'shop', :user, :why, jsonb_build_object('phrase', CAST(:why AS text))) RETURNING id"
            )
            id = connection.execute(held, {"user": user, "why": f"many say {MARKER}"}).scalar_one()
            hold = "INSERT INTO quarantined_votes SELECT seq, :id FROM feedback WHERE \"user\" = :user AND correction <> ''"
            connection.execute(text(hold), {"id": id, "user": USER})


async def test_nothing_of_a_person_is_left_and_everybody_else_stays(
    store: Store, database_engine: Engine, tmp_path: Path
) -> None:
    small = await SmallService.start(store, tmp_path)
    await _live(small)
    learned = await small.round(min_pairs=2)
    assert learned.state is RoundState.PROMOTED, learned.reason
    await small.like("one more", "and another")
    continued = await small.round(min_pairs=2)
    _suspect(database_engine)
    for item in await store.quarantine.list():
        await store.quarantine.decide(item.id, "released", who="tess", reason=None)
    assert MARKER in _everything(database_engine)
    snapshot = Path(small.depot.round(1)) / "pairs.parquet"
    before = {row.pair_id for row in iterate(snapshot)}

    operator = await small.operator()
    erased = (await operator.delete(f"/ops/users/{USER}", params={"app": "shop"})).json()

    assert MARKER not in _everything(database_engine)
    assert MARKER.encode() not in _files(small.settings.state)
    assert (erased["completions"], erased["votes"], erased["quarantine"]) == (3, 5, 1)
    assert erased["rounds"] == [learned.n]
    assert erased["adapters"] == [learned.adapter, continued.adapter]
    left = {row.pair_id for row in iterate(snapshot)}
    assert erased["snapshot_rows"] == len(before) - len(left) > 0
    assert erased["snapshots"] == [learned.n]
    with database_engine.connect() as connection:
        asked = connection.execute(
            text('SELECT count(*) FROM completions WHERE "user" IS DISTINCT FROM :user'), {"user": USER}
        )
        assert asked.scalar_one() == len(OTHERS) + 3
        held = connection.execute(text('SELECT "user", evidence FROM quarantine')).all()
        assert [tuple(item) for item in held] == [("ada", {"erased": True})]
    entry = (await store.audit.list())[0]
    assert (entry.who, entry.action, entry.detail["votes"]) == ("tess", "erase_user", 5)
    assert (await store.audit.verify()).fault is None, "nothing that was written had to be changed"
    again = (await operator.delete(f"/ops/users/{USER}")).json()
    assert {name for name, value in again.items() if value} == set()


async def test_what_others_said_is_matched_anew(store: Store, database_engine: Engine, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    await _live(small)
    await small.rounds.preview()
    await (await small.operator()).delete(f"/ops/users/{USER}")
    funnel = await small.rounds.preview()
    assert funnel.votes == 2 * len(OTHERS) + 1
    assert funnel.pairs_from_votes == len(OTHERS)


async def test_one_app_can_erase_a_user_whom_another_keeps(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    body = {"model": "policy", "user": "ada", "messages": [{"role": "user", "content": "hi"}]}
    for app in ("shop", "bank"):
        await small.replica.chat(body, Caller(app=app))
    operator = await small.operator()
    assert (await operator.delete("/ops/users/ada?app=bank")).json()["completions"] == 1
    assert (await operator.delete("/ops/users/ada")).json()["completions"] == 1


async def test_a_round_that_learns_from_them_is_cancelled_first(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, [RUNNING])
    await _live(small)
    running = await small.ask_for_round(min_pairs=2)
    while (await small.store.rounds.get(running.n)).state is not RoundState.TRAINING or not small.trainer.running:
        await small.rounds.step()
    operator = await small.operator()
    assert (await operator.delete("/ops/users/nobody")).json()["cancelled_round"] is None
    erased = (await operator.delete(f"/ops/users/{USER}")).json()
    assert (erased["cancelled_round"], erased["rounds"], erased["adapters"]) == (running.n, [], [])
    assert (await small.store.rounds.get(running.n)).state is RoundState.CANCELLED
    assert small.trainer.running == set()


async def test_only_operators_may_erase(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    operations, shop = await small.operator(), await small.app()
    answer = await operations.delete("/ops/users/ada", headers={"authorization": shop.headers["authorization"]})
    assert refusal(answer) == Refusal(403, "insufficient_role")


def test_whoever_continues_an_adapter_has_learned_what_it_learned() -> None:
    def adapter(ordinal: int, parent: str, round: int | None, added_by: str | None = None) -> Adapter:
        digests = {"weights_sha256": "w", "manifest_sha256": "m", "pair_digest": None}
        return Adapter(name=f"a{ordinal}", ordinal=ordinal, parent=parent, round=round, added_by=added_by,
                       directory="/", verdict=None, created_at=datetime(2026, 1, 2, tzinfo=UTC), **digests)  # fmt: skip

    adapters = [
        adapter(4, "a2", 4),
        adapter(1, "base", 1),
        adapter(2, "a1", 2),
        adapter(3, "a1", 3),
        adapter(5, "base", 2, added_by="tess"),  # round 2 only judged it
        adapter(6, "a5", None),
    ]
    assert descendants([2], adapters) == ("a2", "a4")
    assert descendants([1], adapters) == ("a1", "a2", "a3", "a4")
    assert descendants([], adapters) == ()


# --- the files of rounds ------------------------------------------------------------------------------


NOBODY = Traces(frozenset(), frozenset(), frozenset(), frozenset())


def _row(id: str, split: str = TRAIN, **fields: Any) -> SnapshotRow:
    prompt = [ord(letter) for letter in id]
    return SnapshotRow(id, split, prompt_token_ids=prompt, chosen_token_ids=[1], rejected_token_ids=[2], **fields)


def test_a_snapshot_loses_their_rows_by_pair_voter_or_prompt_and_the_samples_go(tmp_path: Path) -> None:
    rows = [_row("a"), _row("b", voter="v"), _row("c", HELD_OUT), _row("d", voter="w")]
    write_snapshot(tmp_path / snapshots.SNAPSHOT, rows)
    (tmp_path / "attempt-1").mkdir()
    (tmp_path / "attempt-1" / snapshots.SAMPLES).touch()
    digest = snapshots.prompt_digest([ord("c")])
    traces = Traces(frozenset({"a"}), frozenset({digest}), frozenset({"v"}), frozenset())
    assert snapshots.clean(3, str(tmp_path), NOBODY) is None
    assert snapshots.clean(3, str(tmp_path), traces) == snapshots.Cleaned(3, 3, trained_on=True)
    assert list(iterate(tmp_path / snapshots.SNAPSHOT)) == rows[3:]
    assert not list(tmp_path.rglob(snapshots.SAMPLES))
    assert snapshots.clean(3, str(tmp_path), traces) is None


def test_what_was_only_judged_by_them_was_not_trained_on_them(tmp_path: Path) -> None:
    write_snapshot(tmp_path / snapshots.SNAPSHOT, [_row("a", HELD_OUT)])
    traces = Traces(frozenset({"a"}), frozenset(), frozenset(), frozenset())
    assert snapshots.clean(3, str(tmp_path), traces) == snapshots.Cleaned(3, 1, trained_on=False)
    assert list(iterate(tmp_path / snapshots.SNAPSHOT)) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 torn"])
def test_a_snapshot_that_cannot_be_read_is_removed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / snapshots.SNAPSHOT).write_bytes(content)
    assert snapshots.clean(3, str(tmp_path), NOBODY) == snapshots.Cleaned(3, 1, trained_on=True)
    assert not (tmp_path / snapshots.SNAPSHOT).exists()
