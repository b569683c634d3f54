"""Pairs as the model sees them: token ids of a prompt and of its two answers.

Served traffic is trained on exactly as the engine saw it. Only imported text meets a chat template, the one of the
tokenizer that is passed in; whether it is the server's is for `fingerprints.py` to say.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.contracts import HELD_OUT, TRAIN
from training.errors import SnapshotInvalid
from training.snapshot import SnapshotRow


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def eos_token_id(self) -> int: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, the answer that was preferred and the one that was not, as token ids."""

    pair_id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two conversations: what must fit into the model's context."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def render(row: SnapshotRow, tokenizer: Tokenizer, end_of_turn: int) -> Pair:
    """The row's token ids: as recorded, or, for imported text, under the chat template.

    An imported answer ends with `end_of_turn`, because its author finished it.
    """
    if row.prompt_token_ids is not None and row.chosen_token_ids is not None and row.rejected_token_ids is not None:
        return Pair(
            row.pair_id, tuple(row.prompt_token_ids), tuple(row.chosen_token_ids), tuple(row.rejected_token_ids)
        )
    assert row.messages is not None
    assert row.chosen_text is not None
    assert row.rejected_text is not None
    try:
        prompt = tokenizer.apply_chat_template(json.loads(row.messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise whatever Jinja lets them, for example on roles that do not alternate
        raise SnapshotInvalid(f"pair {row.pair_id!r}: the chat template refuses its messages: {error}") from error

    def token_ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    return Pair(
        row.pair_id,
        token_ids(prompt),
        (*token_ids(row.chosen_text), end_of_turn),
        (*token_ids(row.rejected_text), end_of_turn),
    )


def end_of_turn(tokenizer: Tokenizer, stop_ids: Collection[int]) -> int:
    """The token that ends an answer: the first stop token which the chat template writes after one.

    Not simply EOS: Gemma's turns end with `<end_of_turn>`, and the engine stops there.
    """
    answer = "heliotrope"
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
    after_answer = tokenizer.encode(text[text.rindex(answer) + len(answer) :], add_special_tokens=False)
    return next((token for token in after_answer if token in stop_ids), tokenizer.eos_token_id)


@dataclass(frozen=True)
class RoundPairs:
    """The pairs of a round by split, and how many were left out for which reason."""

    train: list[Pair]
    held_out: list[Pair]
    skipped: dict[str, int]


def sort_out(
    rows: Sequence[SnapshotRow], tokenizer: Tokenizer, stop_ids: Collection[int], *, vocabulary: int, context: int
) -> RoundPairs:
    """Render all rows, leave out the pairs that are longer than `context` tokens, and part the splits.

    Raises `SnapshotInvalid` for a token id the model does not have, or when no pair is left to train on.
    """
    ends_turn = end_of_turn(tokenizer, stop_ids) if any(row.messages is not None for row in rows) else -1
    kept: dict[str, list[Pair]] = {TRAIN: [], HELD_OUT: []}
    too_long = 0
    for row in rows:
        pair = render(row, tokenizer, ends_turn)
        highest = max(*pair.prompt, *pair.chosen, *pair.rejected)
        if highest >= vocabulary:
            raise SnapshotInvalid(f"pair {row.pair_id!r}: token id {highest}, but the model has {vocabulary} tokens")
        if pair.longest > context:
            too_long += 1
        else:
            kept[row.split].append(pair)
    if not kept[TRAIN]:
        raise SnapshotInvalid(f"no pair is left to train on: {len(rows)} in the snapshot, {too_long} of them too long")
    return RoundPairs(kept[TRAIN], kept[HELD_OUT], {"too_long": too_long} if too_long else {})
