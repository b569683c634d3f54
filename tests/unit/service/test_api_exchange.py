"""Import and export over HTTP, on a real store: what comes in whole or not at all, and what goes out and comes back."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, insert, select, text

from service.api.auth import Doorman
from service.api.edge import application
from service.api.exchange import exchange_routes
from service.contracts import Role, RoundState
from service.digest import content_digest
from service.exchange.imports import spooled
from service.keeping.redaction import Hook
from service.store.store import Store
from service.store.tables import imported_pairs
from service.votes import Rating
from tests.small_service import Refusal, SmallService, client, refusal

IMPORT, EXPORT = "/ops/preferences/import", "/ops/preferences/export"
MAX_BYTES = 2_000_000
USER, GOOD, BAD = (
    {"role": role, "content": said} for role, said in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "What?"))
)
PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
OPENAI = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}


async def up_to_date() -> None:
    """There are no votes here that could be matched."""


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
async def operator(store: Store, spool: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = application("operations", max_body_bytes=1000, larger={IMPORT: MAX_BYTES})
    app.include_router(exchange_routes(store, spool, up_to_date, Doorman(store.keys, insecure=False)))
    async with client(app, (await store.keys.issue(Role.OPERATOR, "tess"))[1]) as made:
        yield made


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def take_the_name(folder: Path) -> None:
    folder.write_text("a file, no folder")


def lines(*rows: dict[str, Any] | str) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def some(count: int) -> list[dict[str, Any]]:
    return [PAIR | {"prompt": f"question {n}"} for n in range(count)]


def kept(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(imported_pairs).order_by(imported_pairs.c.seq)))


async def imported(operator: httpx.AsyncClient, content: bytes, **query: str) -> dict[str, Any]:
    answer = await operator.post(IMPORT, content=content, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def exported(operator: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    answer = await operator.get(EXPORT, params=query)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


# --- import -------------------------------------------------------------------------------------------


async def test_a_file_is_kept_once_however_it_is_written(operator: httpx.AsyncClient, database_engine: Engine) -> None:
    assert await imported(operator, lines(*some(3))) == {
        "format": "trl", "detected": "trl (3 of 3 first rows)", "rows": 3, "added": 3, "known": 0, "faults": [],
        "faults_total": 0, "ignored": [], "dry_run": False,
    }  # fmt: skip
    again = await imported(operator, gzip.compress(lines(*some(4), *some(4))))
    assert (again["added"], again["known"]) == (1, 7)
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(some(5)), parquet)
    assert (await imported(operator, parquet.getvalue()))["added"] == 1
    assert [row.messages[0]["content"] for row in kept(database_engine)] == [f"question {n}" for n in range(5)]


async def test_the_id_is_that_of_the_content_in_every_format(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    assert (await imported(operator, lines(PAIR)))["added"] == 1
    assert (await imported(operator, lines(OPENAI))) | {"added": 0, "known": 1, "format": "openai"}
    (row,) = kept(database_engine)
    assert row.id == content_digest({"messages": [USER], "chosen": "Hello!", "rejected": "What?"})
    assert (row.messages, row.chosen, row.rejected, row.format) == ([USER], "Hello!", "What?", "trl")


async def test_single_thumbs_are_kept_with_the_one_answer_they_have(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    thumb = {"prompt": "Hi", "completion": "Hello!", "label": True}
    assert (await imported(operator, lines(thumb, thumb | {"label": False})))["added"] == 2
    assert [(row.chosen, row.rejected, row.format) for row in kept(database_engine)] == [
        ("Hello!", None, "kto"),
        (None, "Hello!", "kto"),
    ]


async def test_bad_rows_are_named_and_nothing_is_kept_unless_they_may_be_skipped(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    content = lines(PAIR, "{", PAIR | {"rejected": "Hello!"}, "", PAIR | {"chosen": "", "score": 1}, *some(600))
    refused = await operator.post(IMPORT, content=content)
    assert refusal(refused) == Refusal(400, "invalid_rows")
    said = refused.json()
    assert said["error"]["message"].startswith("3 of 604 rows are not valid preferences; nothing was imported.")
    assert [(fault["row"], fault["field"]) for fault in said["faults"]] == [(2, None), (3, "rejected"), (5, "chosen")]
    assert (said["added"], said["faults_total"], said["detected"]) == (0, 3, "trl (31 of 31 first rows)")
    assert kept(database_engine) == []
    skipped = await imported(operator, content, skip_bad="true")
    assert (skipped["added"], skipped["faults_total"], len(kept(database_engine))) == (601, 3, 601)


async def test_a_fault_in_the_last_row_takes_everything_back(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    assert (await operator.post(IMPORT, content=lines(*some(1200), "{"))).status_code == 400
    assert kept(database_engine) == []


async def test_of_very_many_faults_only_the_first_are_listed(operator: httpx.AsyncClient) -> None:
    said = (await operator.post(IMPORT, content=lines(*["{"] * 150))).json()
    assert (len(said["faults"]), said["faults_total"], said["format"]) == (100, 150, None)


async def test_a_dry_run_says_what_would_be_and_keeps_nothing(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    await imported(operator, lines(*some(2)))
    said = await imported(operator, lines(*some(5)), dry_run="true")
    assert (said["added"], said["known"], said["dry_run"]) == (3, 2, True)
    assert len(kept(database_engine)) == 2


async def test_a_format_can_be_asked_for_and_an_unknown_one_is_refused(operator: httpx.AsyncClient) -> None:
    said = (await operator.post(f"{IMPORT}?format=openai", content=lines(OPENAI, PAIR))).json()
    assert said["detected"] == "openai (as asked for, 1 of 2 first rows)"
    assert said["faults"][0]["reason"].startswith("its format is trl, not openai")
    unknown = await operator.post(f"{IMPORT}?format=csv", content=lines(PAIR))
    assert refusal(unknown) == Refusal(400, "invalid_value", "format")


@pytest.mark.parametrize(
    ("content", "code", "why"),
    [
        (b"", "no_rows", "holds no preferences"),
        (b"\n \n", "no_rows", "holds no preferences"),
        (b"prompt,chosen\na,b\n", "unreadable_file", "The file is neither Parquet nor JSON lines"),
        (b'[{"prompt": "Hi"}]', "unreadable_file", "is one JSON array"),
        (b"PAR1 and nothing more", "unreadable_file", "The file cannot be read"),
        (b"\x1f\x8b broken", "unreadable_file", "The file cannot be read"),
    ],
)
async def test_what_is_no_file_of_preferences_is_refused_as_a_whole(
    operator: httpx.AsyncClient, content: bytes, code: str, why: str
) -> None:
    answer = await operator.post(IMPORT, content=content)
    assert refusal(answer) == Refusal(400, code)
    assert why in answer.json()["error"]["message"]


async def test_a_file_may_be_larger_than_other_bodies_but_not_endless(operator: httpx.AsyncClient) -> None:
    assert (await imported(operator, lines(*some(50))))["added"] == 50
    assert refusal(await operator.post(IMPORT, content=b"{" * (MAX_BYTES + 1))) == Refusal(413, "body_too_large")


async def test_nothing_is_left_of_an_upload(operator: httpx.AsyncClient, spool: Path) -> None:
    await imported(operator, lines(PAIR))
    await operator.post(IMPORT, content=b"{" * (MAX_BYTES + 1))
    await operator.post(IMPORT, content=b"no preferences")

    async def breaking_off() -> AsyncIterator[bytes]:
        yield lines(PAIR)
        raise ZeroDivisionError  # whatever ends an upload early

    with pytest.raises(ZeroDivisionError):
        async with spooled(breaking_off(), spool):
            pass
    assert left_in(spool) == []


async def test_where_nothing_can_be_spooled_the_answer_is_503(operator: httpx.AsyncClient, spool: Path) -> None:
    take_the_name(spool)
    assert refusal(await operator.post(IMPORT, content=lines(PAIR))) == Refusal(503, "storage_unavailable")


async def test_a_store_that_is_down_is_a_503(store: Store, spool: Path) -> None:
    nowhere = Store("postgresql+psycopg://nobody@127.0.0.1:9/none")
    app = application("operations", max_body_bytes=1000)
    app.include_router(exchange_routes(nowhere, spool, up_to_date, Doorman(store.keys, insecure=True)))
    async with client(app, None) as anybody:
        assert refusal(await anybody.post(IMPORT, content=lines(PAIR))) == Refusal(503, "storage_unavailable")
        assert refusal(await anybody.get(EXPORT)) == Refusal(503, "storage_unavailable")
    await nowhere.close()


async def test_a_locked_row_ends_the_import_with_a_503_and_nothing_half_done(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    (first,) = some(1)
    other = content_digest({"messages": [USER | {"content": "question 0"}], "chosen": "Hello!", "rejected": "What?"})
    row = {"id": other, "messages": [], "chosen": "a", "rejected": "b", "format": "trl"}
    with database_engine.connect() as connection:
        connection.execute(insert(imported_pairs).values(row))
        answer = await operator.post(IMPORT, content=lines(PAIR, first))
        connection.rollback()
    assert refusal(answer) == Refusal(503, "storage_unavailable")
    assert kept(database_engine) == []


async def test_imports_are_audited_and_attempts_are_not(store: Store, operator: httpx.AsyncClient) -> None:
    await operator.post(IMPORT, content=lines("{"))
    await imported(operator, lines(PAIR), dry_run="true")
    await imported(operator, lines(PAIR, "{"), skip_bad="true")
    (entry,) = await store.audit.list()
    assert (entry.who, entry.action, entry.detail) == ("tess", "import", {"added": 1, "skipped": 1, "format": "trl"})


async def test_strangers_neither_import_nor_export(store: Store, operator: httpx.AsyncClient) -> None:
    secret = (await store.keys.issue(Role.APP, "shop"))[1]
    headers = {"authorization": f"Bearer {secret}"}
    assert refusal(await operator.post(IMPORT, content=lines(PAIR), headers=headers)).status == 403
    assert refusal(await operator.get(EXPORT, headers=headers)).status == 403


async def test_texts_are_redacted_before_they_are_kept(
    database_url: str, store: Store, spool: Path, database_engine: Engine
) -> None:
    careful = Store(database_url, Hook("hook", lambda text: text.replace("What?", "Hello!").replace("Ada", "***")))
    app = application("operations", max_body_bytes=1000)
    app.include_router(exchange_routes(careful, spool, up_to_date, Doorman(store.keys, insecure=True)))
    async with client(app, None) as anybody:
        answer = await anybody.post(
            IMPORT, content=lines({"prompt": "I am Ada", "chosen": "Hi Ada", "rejected": "?"}, PAIR)
        )
        assert [fault["reason"] for fault in answer.json()["faults"]] == ["the same as chosen, once both are redacted"]
        said = await imported(anybody, lines({"prompt": "I am Ada", "chosen": "Hi Ada", "rejected": "?"}))
    await careful.close()
    (row,) = kept(database_engine)
    assert (said["added"], row.messages[0]["content"], row.chosen) == (1, "I am ***", "Hi ***")
    assert row.id == content_digest({"messages": row.messages, "chosen": "Hi ***", "rejected": "?"})


# --- export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["trl", "openai"])
async def test_what_was_exported_and_comes_back_is_known_already(operator: httpx.AsyncClient, format: str) -> None:
    rows = [
        *some(450),
        {"chosen": [{"role": "system", "content": "Sei nett 🙂"}, USER, GOOD, USER, GOOD],
         "rejected": [{"role": "system", "content": "Sei nett 🙂"}, USER, GOOD, USER, BAD]},
    ]  # fmt: skip
    await imported(operator, lines(*rows))
    content = (await operator.get(EXPORT, params={"format": format})).content
    back = await imported(operator, content)
    assert (back["added"], back["known"], back["format"]) == (0, 451, format)


async def test_thumbs_come_back_as_they_were_and_pairs_as_two(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    thumbs = [{"prompt": "Hi", "completion": "Hello!", "label": label} for label in (True, False)]
    await imported(operator, lines(*thumbs))
    out = await exported(operator, format="kto")
    assert sorted(out, key=lambda row: row["label"]) == [
        {"prompt": [USER], "completion": [GOOD], "label": False},
        {"prompt": [USER], "completion": [GOOD], "label": True},
    ]
    assert (await imported(operator, lines(*out)))["known"] == 2
    assert await exported(operator, format="trl") == []
    await imported(operator, lines(PAIR))
    assert {"prompt": [USER], "completion": [BAD], "label": False} in await exported(operator, format="kto")


async def test_the_summary_is_the_last_line_and_says_what_is_not_in_it(operator: httpx.AsyncClient) -> None:
    await imported(operator, lines(PAIR, {"prompt": "Hi", "completion": "Hello!", "label": True}))
    *rows, summary = await exported(operator, format="kto", summary="true")
    assert len(rows) == 3
    assert summary == {
        "summary": {"pairs": 1, "thumbs": 1, "lines": 3, "not_stored": 0, "votes_left_out": {}},
    }


async def test_what_rounds_have_learned_is_told_from_what_is_open(
    operator: httpx.AsyncClient, database_engine: Engine
) -> None:
    await imported(operator, lines(*some(3)))
    learned = kept(database_engine)[0].id
    with database_engine.begin() as connection:
        for state in ("failed", "promoted"):
            connection.execute(text(f"INSERT INTO rounds (state, requested_by, body_sha256, settings) "
                                    f"VALUES ('{state}', 'tess', '0', '{{}}')"))  # fmt: skip
        taken = "INSERT INTO round_pairs (round, pair_id, split, source, votes) SELECT n, :id, 'train', 'import', '{}'"
        connection.execute(text(f"{taken} FROM rounds WHERE state = 'promoted'"), {"id": learned})
        settled = taken.replace("'train'", "'settled'")
        connection.execute(text(f"{settled} FROM rounds WHERE state = 'promoted'"), {"id": kept(database_engine)[2].id})
        failed = {"id": kept(database_engine)[1].id}
        connection.execute(text(f"{taken} FROM rounds WHERE state = 'failed'"), failed)

    async def questions(status: str) -> set[str]:
        return {row["prompt"][0]["content"] for row in await exported(operator, status=status)}

    assert await questions("learned") == {"question 0"}
    assert await questions("open") == {"question 1"}
    assert await questions("all") == {"question 0", "question 1", "question 2"}
    assert await questions("all") == {f"question {n}" for n in range(3)}


async def test_votes_of_the_last_moment_are_exported_as_what_was_served(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    await small.like("first question", "second question")
    await small.thumb("third question", Rating.DOWN)
    async with await small.operator() as operator:
        pairs = await exported(operator)
        assert {row["prompt"][-1]["content"] for row in pairs} == {"first question", "second question"}
        assert all(row["chosen"][0]["content"] != row["rejected"][0]["content"] for row in pairs)
        thumbs = await exported(operator, format="kto")
        assert sorted(row["label"] for row in thumbs) == [False, False, False, True, True]
        assert (await small.round()).state is RoundState.PROMOTED
        assert await exported(operator) == []
        assert await exported(operator, status="learned") == pairs
