"""The redaction hook: which functions it takes, and that what it takes out is written nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from service import node
from service.errors import BadRequest
from service.journal import StoreJournal
from service.keeping.redaction import Hook, RedactionFailed, load
from service.settings import Settings
from service.store.completion_rows import completion_row
from service.store.store import Store
from service.store.tables import choices, completions
from serving.contracts import Completion

MakeCompletion = Callable[..., Completion]
NOT_CALLABLE = 7


def hide_numbers(text: str) -> str:
    """A hook, as an operator would write one."""
    return re.sub(r"\d{4,}", "#", text)


def breaks(text: str) -> str:
    raise RuntimeError(f"cannot read {text}")


def answers_nothing(text: str) -> None:
    return None


def _load(name: str) -> Hook:
    hook = load(f"{__name__}:{name}")
    assert isinstance(hook, Hook)
    return hook


# --- the hook -----------------------------------------------------------------------------------------


def test_a_hook_is_found_by_its_name() -> None:
    assert _load("hide_numbers").text("call 5551234") == "call #"
    assert load(None).text("call 5551234") == "call 5551234"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no.such.module:hide", "ModuleNotFoundError: No module named 'no'.*PYTHONPATH"),
        (f"{__name__}:no_such_function", "AttributeError"),
        (f"{__name__}:NOT_CALLABLE", "it is a int, not a function"),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused(name: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as refused:
        load(name)
    assert (refused.value.param, refused.value.code) == ("store.redact", "redaction_hook_not_usable")
    assert name in refused.value.message


@pytest.mark.parametrize("name", ["breaks", "answers_nothing"])
def test_a_hook_that_breaks_says_so_without_the_text(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RedactionFailed) as failed:
        _load(name).text("call 5551234")
    assert failed.value.code == "redaction_failed"
    assert "5551234" not in failed.value.message + caplog.text
    assert f"{__name__}:{name}" in caplog.text
    assert failed.value.__cause__ is None


def test_up_does_not_start_with_a_hook_that_cannot_be_used(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state": tmp_path, "store": {"redact": "no.such.module:hide"}})
    with pytest.raises(BadRequest, match=r"store\.redact"):
        node.up(settings, detach=False)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"up.lock"}


# --- the log of completions ---------------------------------------------------------------------------


def test_what_somebody_wrote_passes_the_hook_wherever_it_stands(make_completion: MakeCompletion) -> None:
    parts = [{"type": "text", "text": "my card is 4444"}, {"type": "text", "text": "thanks"}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "you are 1234"},
        {"role": "user", "name": "ada 1815", "content": parts},
    ]
    completion = make_completion("c", "yours is 4444", messages=messages, metadata={"page": "1234", "step": "7"})
    row = completion_row(completion, _load("hide_numbers"))
    assert row["messages"] == [
        {"role": "system", "content": "you are #"},
        {"role": "user", "name": "ada #", "content": [{"type": "text", "text": "my card is #"}, parts[1]]},
    ]
    assert row["metadata"] == {"page": "#", "step": "7"}
    assert row["choices"][0]["text"] == "yours is #"


@pytest.mark.parametrize(("question", "answer"), [("card 4444", "fine"), ("hello", "card 4444")])
def test_where_a_text_was_changed_no_token_ids_are_kept(
    make_completion: MakeCompletion, question: str, answer: str
) -> None:
    completion = make_completion("c", answer, "other", messages=[{"role": "user", "content": question}])
    row = completion_row(completion, _load("hide_numbers"))
    assert row["redacted"] is True
    assert row["prompt_token_ids"] is None
    assert [choice["token_ids"] for choice in row["choices"]] == [None, None]
    assert row["prompt_digest"] == completion_row(completion, load(None))["prompt_digest"]


def test_where_nothing_was_changed_the_token_ids_stay(make_completion: MakeCompletion) -> None:
    row = completion_row(make_completion("c", metadata={"card": "4444"}), _load("hide_numbers"))
    assert row["redacted"] is False
    assert row["prompt_token_ids"] == "{1,2,3}"


def test_a_hook_sees_nothing_of_what_is_not_stored(make_completion: MakeCompletion) -> None:
    row = completion_row(make_completion("c", "card 4444", store=False, metadata={}), _load("breaks"))
    assert (row["messages"], row["choices"][0]["text"], row["redacted"]) == (None, None, False)


@pytest.mark.parametrize(
    ("messages", "single"),
    [
        ([{"role": "user", "content": "hi"}], True),
        ([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}], True),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "go"}],
         False),
    ],
)  # fmt: skip
def test_one_message_beside_system_messages_is_no_conversation(
    make_completion: MakeCompletion, messages: list[dict[str, Any]], single: bool
) -> None:
    for store in (True, False):
        row = completion_row(make_completion("c", messages=messages, store=store), load(None))
        assert row["single_turn"] is single


async def test_the_record_holds_what_the_hook_left(
    store: Store, database_url: str, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    redacting = Store(database_url, _load("hide_numbers"))
    await redacting.completions.record(make_completion("c", "card 4444"))
    await redacting.close()
    with database_engine.connect() as connection:
        assert connection.execute(select(choices.c.text, choices.c.token_ids)).one() == ("card #", None)
        assert connection.execute(select(completions.c.redacted, completions.c.single_turn)).one() == (True, True)


async def test_an_answer_whose_record_the_hook_breaks_goes_out_unrateable_and_unwritten(
    store: Store, database_url: str, database_engine: Engine, make_completion: MakeCompletion
) -> None:
    journal = StoreJournal(Store(database_url, _load("breaks")))
    assert not await journal.record(make_completion("c"))
    await journal.close()
    with database_engine.connect() as connection:
        assert connection.execute(select(completions)).all() == []
