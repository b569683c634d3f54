"""Pairs and thumbs as the model sees them: token ids of a prompt and of its answers.

Served traffic is trained on exactly as the engine saw it. Only messages that were imported meet a chat template, the
one of the tokenizer that is passed in; whether it is the server's is for `fingerprints.py` to say.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from training.contracts import REPLAY
from training.errors import SnapshotInvalid
from training.snapshot import SnapshotRow

Message = dict[str, str]  # role, content

_NEVER_DROPPED = ("system", "developer")  # roles of messages that say how all turns are to be answered


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def eos_token_id(self) -> int: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def apply_chat_template(
        self, conversation: list[Message], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, the answer that was preferred and the one that was not, as token ids."""

    pair_id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    replay: bool = False  # an earlier round has learned it already
    weight: float = 1.0  # in the mean loss of its step

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two conversations: what must fit into the model's context."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class Thumb:
    """One prompt and one answer that somebody liked or did not like, as token ids."""

    thumb_id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    up: bool
    replay: bool = False  # an earlier round has learned it already
    weight: float = 1.0  # in the mean loss of its step

    @property
    def longest(self) -> int:
        """Tokens of the conversation: what must fit into the model's context."""
        return len(self.prompt) + len(self.answer)


Example = Pair | Thumb


def render(row: SnapshotRow, tokenizer: Tokenizer, end_of_turn: int) -> Example:
    """The row's token ids: as recorded, or, for imported messages, under the chat template.

    An answer that is a text ends with `end_of_turn`, because its author finished it. Raises `SnapshotInvalid` when the
    template refuses the messages.
    """

    def answer(token_ids: Sequence[int] | None, text: str | None) -> Sequence[int] | None:
        return token_ids if text is None else [*tokenizer.encode(text, add_special_tokens=False), end_of_turn]

    prompt = row.prompt_token_ids
    if prompt is None:
        assert row.messages is not None
        prompt = conversation_ids(row, json.loads(row.messages), tokenizer, add_generation_prompt=True)
    chosen, rejected = answer(row.chosen_token_ids, row.chosen_text), answer(row.rejected_token_ids, row.rejected_text)
    return _example(row, prompt, chosen, rejected)


def shorten(row: SnapshotRow, tokenizer: Tokenizer, end_of_turn: int, context: int) -> SnapshotRow | None:
    """The imported row without as many of its oldest turns as it takes to fit into `context` tokens.

    The system message, the last user's turn and the answers stay whole; None when even they do not fit.
    """
    assert row.messages is not None
    for messages in _without_oldest_turns(json.loads(row.messages)):
        shorter = replace(row, messages=json.dumps(messages, ensure_ascii=False))
        if render(shorter, tokenizer, end_of_turn).longest <= context:
            return shorter
    return None


def end_of_turn(tokenizer: Tokenizer, stop_ids: Collection[int]) -> int:
    """The token that ends an answer: the first stop token which the chat template writes after one.

    Not simply EOS: Gemma's turns end with `<end_of_turn>`, and the engine stops there.
    """
    answer = "heliotrope"
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
    after_answer = tokenizer.encode(text[text.rindex(answer) + len(answer) :], add_special_tokens=False)
    return next((token for token in after_answer if token in stop_ids), tokenizer.eos_token_id)


def conversation_ids(
    row: SnapshotRow, messages: list[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool
) -> tuple[int, ...]:
    """Token ids of messages of `row` under the chat template. Raises `SnapshotInvalid` when it refuses them."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # templates raise whatever Jinja lets them, for example on roles that do not alternate
        raise SnapshotInvalid(f"pair {row.pair_id!r}: the chat template refuses its messages: {error}") from error
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _example(
    row: SnapshotRow, prompt: Sequence[int], chosen: Sequence[int] | None, rejected: Sequence[int] | None
) -> Example:
    replay = row.origin == REPLAY
    if chosen is not None and rejected is not None:
        return Pair(row.pair_id, tuple(prompt), tuple(chosen), tuple(rejected), replay, row.weight)
    answer = rejected if chosen is None else chosen
    assert answer is not None, "a row without any answer is no row of a snapshot"
    return Thumb(row.pair_id, tuple(prompt), tuple(answer), chosen is not None, replay, row.weight)


def _without_oldest_turns(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation from its first user's message on, from its second, ... to its last: a turn begins there."""
    for start in (i for i, message in enumerate(messages) if message["role"] == "user"):
        yield [message for message in messages[:start] if message["role"] in _NEVER_DROPPED] + messages[start:]
