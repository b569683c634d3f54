"""What is looked for in a round's rows before any step: most of what spoils preference training raises no exception.

Rows go by one at a time; 26 bytes of each stay, whatever its length. Knows rows and their token ids. What a row needs
to be one at all (a unique id, answers that are there and differ, a prompt in one split) `snapshot.py` has refused before.

    refused   the round fails: the model cannot read the rows
    left_out  the row is neither trained on nor held out
    noted     the row is used, and people should know
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.contracts import HELD_OUT, Finding
from training.pairs import Example, Pair, Tokenizer, conversation_ids
from training.repeats import Repeats
from training.snapshot import SnapshotRow

ROWS_NAMED = 5  # of each finding
ENOUGH = 50  # rows from which on a mean or a share says something
LENGTH_RATIO = (0.8, 1.25)  # mean tokens of chosen answers to those of rejected ones, still unsuspicious
LONGER_SHARE = (0.3, 0.7)  # share of pairs whose chosen answer is the longer one, still unsuspicious
VOTER_SHARE = 0.2  # share of the rows that may be one person's

REFUSED = {
    "unknown_token": "a token id is not among the model's {vocabulary}: these rows were recorded with another model "
    "or tokenizer; train each model on its own rows",
}
LEFT_OUT = {
    "equal_answers": "both answers are the same tokens, so neither is better; import answers that differ",
    "empty_completion": "an answer holds no text; leave pairs with such answers out of what you import",
    "empty_prompt": "the chat template leaves nothing of the messages, and something must come before an answer; "
    "give messages with content",
    "control_tokens": "a message or an answer contains a special token of the tokenizer, which passes for the chat "
    "template's own; remove it from the text",
    "prompt_not_prefix": "under the chat template the conversation with its answer does not begin with the prompt's "
    "tokens, so that training would see another prompt than the server; use a template that only appends",
    "too_long": "prompt and answer are longer than the model's {context} tokens, even without the oldest turns of an "
    "imported conversation, and answers are never cut; shorten them, or take a model with a longer context",
    "leaked_prompt": "the prompt, once rendered, is also that of a held-out row, which would then not be held out; "
    "import each prompt in one form",
    "contradictory": "another row says the very opposite about the same answers to the same prompt; the two cancel "
    "out, and only what one side has more of is trained on; settle who is right to keep all",
}
NOTED = {
    "shortened": "the conversation fits into the model's {context} tokens only without its oldest turns; its system "
    "message, last turn and answers are whole; take a model with a longer context to keep all",
    "missing_eos": "a served answer does not end with a stop token, because it ran into its limit or a stop string; "
    "its tokens are trained on as they are and no end is added; raise max_tokens if there are many",
    "answer_rewritten": "the chat template writes the answer in other tokens than are trained on (it strips blanks, or "
    "puts thinking tags before it); import answers as the model should give them",
}
_KEPT = "kept"
_REASONS = (_KEPT, *REFUSED, *LEFT_OUT)  # a row's code is the place of its reason in here
_KEPT_CODE = _REASONS.index(_KEPT)


@dataclass
class _Seen:
    """How often a check fired, and in which rows first."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < ROWS_NAMED:
            self.rows.append(row)


@dataclass
class _Lengths:
    """Tokens of the answers of all pairs seen."""

    pairs: int = 0
    chosen: int = 0
    rejected: int = 0
    chosen_longer: int = 0
    rejected_longer: int = 0

    def add(self, pair: Pair) -> None:
        self.pairs += 1
        self.chosen += len(pair.chosen)
        self.rejected += len(pair.rejected)
        self.chosen_longer += len(pair.chosen) > len(pair.rejected)
        self.rejected_longer += len(pair.chosen) < len(pair.rejected)


class DataChecks:
    """Is fed every row of a snapshot in order; then says which are kept, and what it has found.

    `vocabulary` and `context` are the model's, in tokens; `stop_ids` are the tokens that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int], *, vocabulary: int, context: int) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._vocabulary = vocabulary
        self._context = context
        self._control_tokens = _any_of(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
        self._own_codes = bytearray()  # [rows], places in _REASONS: what is wrong with the row by itself
        self._repeats = Repeats()
        self._noted = {check: _Seen() for check in NOTED}
        self._lengths = _Lengths()

    def see(self, row: SnapshotRow, example: Example, *, shortened: bool = False) -> None:
        """The next row and its tokens; `shortened` says that its oldest turns have been dropped."""
        whole = self._conversations(row)
        reason = self._reason(row, example, whole)
        self._own_codes.append(_REASONS.index(reason or _KEPT))
        self._repeats.add(example, row.voter, held_out=row.split == HELD_OUT)
        if reason is None:
            for check in self._notes(example, whole, shortened):
                self._noted[check].add(len(self._own_codes))
            if isinstance(example, Pair):
                self._lengths.add(example)

    def kept(self) -> NDArray[np.bool_]:
        """Which of the rows are used, [rows]. Of each other row a finding says why not. Ends the feeding."""
        return self._codes == _KEPT_CODE

    def findings(self) -> tuple[Finding, ...]:
        """The checks that fired: those that refuse, those that leave rows out, those that only note. Ends the feeding."""
        found = [self._left_out(check, "refused", why) for check, why in REFUSED.items()]
        found += [self._left_out(check, "left_out", why) for check, why in LEFT_OUT.items()]
        found += [self._finding(check, "noted", self._noted[check], why) for check, why in NOTED.items()]
        found += [self._duplicates(), self._length_bias(), self._voter_share()]
        return tuple(finding for finding in found if finding is not None)

    # --- a row by itself ----------------------------------------------------------------------------

    def _reason(self, row: SnapshotRow, example: Example, conversations: list[tuple[int, ...]]) -> str | None:
        """Why the row cannot be used; of several reasons the first."""
        answers = _answers(example)
        if max(max(tokens, default=0) for tokens in (example.prompt, *answers)) >= self._vocabulary:
            return "unknown_token"
        if isinstance(example, Pair) and example.chosen == example.rejected:
            return "equal_answers"
        if any(self._is_empty(answer) for answer in answers) or not all(text.strip() for text in _texts(row)):
            return "empty_completion"
        if not example.prompt:
            return "empty_prompt"
        if any(self._control_tokens.search(text) for text in (*_contents(row), *_texts(row))):
            return "control_tokens"
        if any(whole[: len(example.prompt)] != example.prompt for whole in conversations):
            return "prompt_not_prefix"
        return "too_long" if example.longest > self._context else None

    def _is_empty(self, answer: tuple[int, ...]) -> bool:
        return len(answer) == 1 and answer[0] in self._stop_ids

    def _notes(self, example: Example, conversations: list[tuple[int, ...]], shortened: bool) -> Iterator[str]:
        answers = _answers(example)
        if shortened:
            yield "shortened"
        if any(answer[-1] not in self._stop_ids for answer in answers):
            yield "missing_eos"
        start = len(example.prompt)
        for whole, answer in zip(conversations, answers, strict=False):  # a served row has no conversations
            if whole[start : start + len(answer)] != answer:
                yield "answer_rewritten"
                break

    def _conversations(self, row: SnapshotRow) -> list[tuple[int, ...]]:
        """Imported messages with each of the answers, as the chat template writes the whole. Served rows have none."""
        if row.messages is None:
            return []
        messages = json.loads(row.messages)
        return [
            conversation_ids(
                row, [*messages, {"role": "assistant", "content": text}], self._tokenizer, add_generation_prompt=False
            )
            for text in _texts(row)
        ]

    # --- rows beside each other ---------------------------------------------------------------------

    @cached_property
    def _codes(self) -> NDArray[np.uint8]:
        """Of each row, the place in _REASONS of what decides about it: [rows]."""
        codes = np.array(self._own_codes, np.uint8)
        codes[self._repeats.leaked(codes == _KEPT_CODE)] = _REASONS.index("leaked_prompt")
        codes[self._repeats.contradicted(codes == _KEPT_CODE)] = _REASONS.index("contradictory")
        return codes

    def _duplicates(self) -> Finding | None:
        why = (
            "the row says the same as an earlier one and adds to its weight: right for votes of several people, wrong "
            "for a file that was imported twice; remove the copies then"
        )
        return self._finding("duplicate", "noted", _seen(self._repeats.repeated(self.kept())), why)

    def _voter_share(self) -> Finding | None:
        rows, total = self._repeats.of_busiest_voter(self.kept()), int(self.kept().sum())
        if total < ENOUGH or len(rows) <= VOTER_SHARE * total:
            return None
        why = (
            f"one person's votes are {len(rows) / total:.0%} of the rows, so the policy learns that person's taste; "
            "collect votes of more people, or give fewer of these"
        )
        return self._finding("voter_share", "noted", _seen(rows), why)

    def _length_bias(self) -> Finding | None:
        seen = self._lengths
        differ = seen.chosen_longer + seen.rejected_longer
        if seen.pairs < ENOUGH or not differ:
            return None
        ratio, longer = seen.chosen / seen.rejected, seen.chosen_longer / differ
        if LENGTH_RATIO[0] <= ratio <= LENGTH_RATIO[1] and LONGER_SHARE[0] <= longer <= LONGER_SHARE[1]:
            return None
        why = (
            f"chosen answers have {ratio:.2f} times the tokens of rejected ones and are the longer ones in {longer:.0%} "
            "of the pairs that differ in length, so the policy may learn length alone; set ld_alpha below 1, use the "
            "objective sigmoid_norm, or balance the pairs"
        )
        return self._finding("length_bias", "noted", _Seen(seen.pairs), why)

    # --- findings -----------------------------------------------------------------------------------

    def _left_out(self, check: str, action: Literal["refused", "left_out"], why: str) -> Finding | None:
        return self._finding(check, action, _seen(np.flatnonzero(self._codes == _REASONS.index(check))), why)

    def _finding(
        self, check: str, action: Literal["refused", "left_out", "noted"], seen: _Seen, why: str
    ) -> Finding | None:
        if not seen.count:
            return None
        why = why.replace("{vocabulary}", str(self._vocabulary)).replace("{context}", str(self._context))
        return Finding(check=check, action=action, count=seen.count, rows=tuple(seen.rows), why=why)


def _seen(rows: NDArray[np.int64]) -> _Seen:
    """Of row indices from 0."""
    return _Seen(len(rows), [row + 1 for row in rows[:ROWS_NAMED].tolist()])


def _answers(example: Example) -> tuple[tuple[int, ...], ...]:
    return (example.chosen, example.rejected) if isinstance(example, Pair) else (example.answer,)


def _contents(row: SnapshotRow) -> list[str]:
    """What is said in the messages of an imported row; nothing for a served one."""
    return [] if row.messages is None else [message["content"] for message in json.loads(row.messages)]


def _texts(row: SnapshotRow) -> list[str]:
    """The answers of an imported row; none of a served one."""
    return [text for text in (row.chosen_text, row.rejected_text) if text is not None]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches where one of the texts is; nowhere when there is none."""
    return re.compile("|".join(re.escape(text) for text in texts if text) or r"(?!)")
