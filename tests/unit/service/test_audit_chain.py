"""The audit log as a chain: what can be told from it, and what only from a digest that was kept elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.contracts import AuditEntry
from service.store.audit_chain import GENESIS, Chain, entry_digest
from service.store.store import Store
from tests.fake_evidence import NOW, a_log


def verified(log: Sequence[AuditEntry], kept: str | None = None) -> Chain:
    return Chain(kept).follow(log).ended()


def test_a_log_as_it_was_written_is_followed_to_its_end() -> None:
    log = a_log(5)
    chain = verified(log)
    assert (chain.entries, chain.digest, chain.fault) == (5, log[-1].digest, None)


def test_a_log_may_be_followed_in_pieces() -> None:
    log = a_log(5)
    assert Chain().follow(log[:2]).follow(log[2:]).ended() == verified(log)


@pytest.mark.parametrize(
    "changed",
    [
        {"who": "mallory"},
        {"action": "rollback"},
        {"subject": "base"},
        {"detail": {"reason": None}},
        {"at": NOW},
        {"digest": "0" * 64},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_changed_entry_is_named(changed: dict[str, Any]) -> None:
    log = a_log(5)
    log[2] = log[2].model_copy(update=changed)
    chain = verified(log)
    assert chain.fault is not None and "entry 6 does not follow" in chain.fault
    assert (chain.entries, chain.digest) == (2, log[1].digest)


def test_an_entry_left_out_or_put_elsewhere_is_noticed() -> None:
    log = a_log(4)
    for other in (log[1:], [log[0], *log[2:]], [log[0], log[2], log[1], log[3]], [log[0], log[0], *log[1:]]):
        assert verified(other).fault is not None


def test_only_a_digest_kept_elsewhere_tells_of_a_missing_end() -> None:
    log = a_log(4)
    noted = log[-1].digest
    assert verified(log[:3]).fault is None
    assert "is gone" in str(verified(log[:3], noted).fault)
    assert verified(log, noted).fault is None
    assert verified(log, log[1].digest).fault is None, "the log has grown since it was noted"
    assert verified(log, GENESIS).fault is None, "it was noted before anything was written"


async def test_the_store_chains_what_it_keeps_whatever_is_in_it(store: Store) -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"share": 1e16, "small": 1e-7, "zero": -0.0, "whole": 5.0, "large": 2**70},
        {"reason": 'quotes " and \\ and \u2028 and é', "none": None, "deep": [{"a": [True, 1.5]}]},
    ]
    for number, detail in enumerate(odd):
        await store.audit.write(who="tess", action="note", subject=str(number), detail=detail)
    chain = await store.audit.verify()
    assert (chain.entries, chain.fault) == (3, None)
    assert chain.digest == (await store.audit.list())[0].digest


async def test_what_was_changed_behind_our_back_is_found(store: Store, database_engine: Engine) -> None:
    for number in range(4):
        await store.audit.write(who="tess", action="note", subject=str(number), detail={})
    noted = (await store.audit.list())[0].digest
    with database_engine.begin() as connection:
        connection.execute(text("DELETE FROM audit WHERE subject = '3'"))
    assert (await store.audit.verify()).fault is None
    assert (await store.audit.verify(noted)).fault is not None
    with database_engine.begin() as connection:
        connection.execute(text("UPDATE audit SET who = 'mallory' WHERE subject = '1'"))
    chain = await store.audit.verify()
    assert (chain.entries, chain.fault is None) == (1, False)


async def test_a_log_longer_than_a_page_is_read_to_its_end(store: Store, database_engine: Engine) -> None:
    written, digest = [], GENESIS
    for n in range(2100):
        said: dict[str, Any] = {"at": NOW, "who": "tess", "action": "note", "subject": str(n), "detail": {}}
        digest = entry_digest(digest, **said)
        written.append({"at": NOW, "subject": str(n), "digest": digest})
    with database_engine.begin() as connection:
        connection.execute(
            text("INSERT INTO audit (at, who, action, subject, detail, digest) "
                 "VALUES (:at, 'tess', 'note', :subject, '{}', :digest)"), written)  # fmt: skip
    chain = await store.audit.verify()
    assert (chain.entries, chain.digest, chain.fault) == (2100, digest, None)
