"""Rows: the examples of a micro-batch as the tensors that go through the model together.

The shared layout packs everything into one row without padding: examples with the same prompt form one document,
`[prompt | answer | answer ...]`, and an answer that occurs in several of them is computed once. `attention.py` keeps
the answers apart. The dense layout has a row for each answer, `[prompt | answer]`, padded, for models whose attention
cannot be told of documents. Knows token ids and positions; knows no model.

Every example asks for two log-probs: a pair for its chosen and its rejected answer; a thumb for its answer and for a
mismatched one, that of another thumb, which KTO's baseline needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from training.attention import Document, Packing
from training.pairs import Example, Pair, Thumb

Layout = Literal["shared", "dense"]
Tokens = tuple[int, ...]

FULL, DISCOUNTED = 0, 1  # of a log-prob: all its tokens alike, or with LD-DPO's weight on the longer answer's tail

_PADDING = 0  # any token id will do: no real token can see a padded one


@dataclass(frozen=True)
class Item:
    """An example on its way into a row."""

    example: Example
    mismatched: Tokens | None = None  # for a thumb: the answer of another one

    @property
    def answers(self) -> tuple[Tokens, Tokens | None]:
        if isinstance(self.example, Pair):
            return self.example.chosen, self.example.rejected
        return self.example.answer, self.mismatched


def items(examples: Sequence[Example], members: Sequence[int], mismatched: Mapping[int, int]) -> list[Item]:
    """The members of a micro-batch; `mismatched` names for a thumb the one whose answer it is to be compared with."""
    found = []
    for member in members:
        example, other = examples[member], mismatched.get(member)
        answer = None
        if other is not None:
            lender = examples[other]
            assert isinstance(lender, Thumb), "a mismatched answer is that of a thumb"
            answer = lender.answer
        found.append(Item(example, answer))
    return found


@dataclass(frozen=True)
class Rows:
    """The tensors of one micro-batch, and where in them the answers' tokens are predicted."""

    input_ids: Tensor  # [rows, tokens]
    position_ids: Tensor  # [rows, tokens]
    mask: Tensor | None  # bool [rows, tokens], dense layout only: False is padding
    packing: Packing | None  # shared layout only
    sources: Tensor  # [answer tokens], indices into the flattened [rows * tokens] hidden states
    targets: Tensor  # [answer tokens], the token id that the source position predicts
    uses: Tensor  # [uses], indices of answer tokens: an answer of several examples is used by each
    slots: Tensor  # [uses], 2 * example for its first answer, 2 * example + 1 for its second
    weights: Tensor  # float64 [uses, 2]: FULL and DISCOUNTED
    examples: int
    tokens: int  # that are no padding
    unshared_tokens: int  # that a trainer which repeats each prompt for each answer would have had

    def to(self, device: torch.device) -> Rows:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        packing = self.packing and Packing(self.packing.documents, device)
        return replace(self, packing=packing, **moved)


def lay_out(items: Sequence[Item], layout: Layout, ld_alpha: float = 1.0) -> Rows:
    """The tensors of one micro-batch."""
    trees: dict[Tokens, dict[Tokens, None]] = {}  # prompt -> its different answers, both in order
    for item in items:
        answers = trees.setdefault(item.example.prompt, {})
        answers.update((answer, None) for answer in item.answers if answer is not None)
    rows = _packed(trees) if layout == "shared" else _padded(trees)
    uses, slots, weights = _uses(items, rows.starts, ld_alpha)
    return Rows(
        input_ids=torch.tensor(rows.input_ids),
        position_ids=torch.tensor(rows.position_ids),
        mask=None if layout == "shared" else torch.tensor(rows.mask),
        packing=Packing(tuple(rows.documents)) if layout == "shared" else None,
        sources=torch.tensor(rows.sources),
        targets=torch.tensor(rows.targets),
        uses=uses,
        slots=slots,
        weights=weights,
        examples=len(items),
        tokens=rows.tokens,
        unshared_tokens=sum(
            len(item.example.prompt) + len(answer) for item in items for answer in item.answers if answer is not None
        ),
    )


class _Building:
    """Rows in the making, as lists."""

    def __init__(self) -> None:
        self.input_ids: list[list[int]] = []
        self.position_ids: list[list[int]] = []
        self.mask: list[list[bool]] = []
        self.documents: list[Document] = []
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.starts: dict[tuple[Tokens, Tokens], int] = {}  # (prompt, answer) -> its first answer token
        self.tokens = 0

    def predict(self, prompt: Tokens, answer: Tokens, *, last_of_prompt: int, start: int) -> None:
        """An answer at flat index `start`..; the prompt's last token predicts its first."""
        self.starts[prompt, answer] = len(self.targets)
        self.sources += [last_of_prompt, *range(start, start + len(answer) - 1)]
        self.targets += answer


def _packed(trees: dict[Tokens, dict[Tokens, None]]) -> _Building:
    built, ids, positions = _Building(), [], []
    for prompt, answers in trees.items():
        last_of_prompt = len(ids) + len(prompt) - 1
        ids += prompt
        positions += range(len(prompt))
        for answer in answers:
            built.predict(prompt, answer, last_of_prompt=last_of_prompt, start=len(ids))
            ids += answer
            positions += range(len(prompt), len(prompt) + len(answer))
        built.documents.append(Document(len(prompt), tuple(map(len, answers))))
    built.input_ids, built.position_ids, built.tokens = [ids], [positions], len(ids)
    return built


def _padded(trees: dict[Tokens, dict[Tokens, None]]) -> _Building:
    built = _Building()
    conversations = [(prompt, answer) for prompt, answers in trees.items() for answer in answers]
    width = max(len(prompt) + len(answer) for prompt, answer in conversations)
    for row, (prompt, answer) in enumerate(conversations):
        length, first = len(prompt) + len(answer), row * width
        padding = width - length
        built.input_ids.append([*prompt, *answer, *[_PADDING] * padding])
        built.position_ids.append([*range(length), *[0] * padding])
        built.mask.append([True] * length + [False] * padding)
        built.predict(prompt, answer, last_of_prompt=first + len(prompt) - 1, start=first + len(prompt))
        built.tokens += length
    return built


def _uses(
    items: Sequence[Item], starts: dict[tuple[Tokens, Tokens], int], ld_alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which answer tokens each of the 2 * examples log-probs sums up, and with which weights."""
    uses: list[int] = []
    slots: list[int] = []
    discounted: list[float] = []
    for number, item in enumerate(items):
        shorter = min(len(answer) for answer in item.answers if answer is not None)
        # LD-DPO (arXiv:2409.06411): what the longer answer of a pair says beyond the shorter one's length counts less.
        tail_weight = ld_alpha if isinstance(item.example, Pair) else 1.0
        for side, answer in enumerate(item.answers):
            if answer is None:
                continue
            start = starts[item.example.prompt, answer]
            uses += range(start, start + len(answer))
            slots += [2 * number + side] * len(answer)
            discounted += [1.0] * min(shorter, len(answer)) + [tail_weight] * (len(answer) - shorter)
    weights = torch.ones(len(uses), 2, dtype=torch.float64)
    weights[:, DISCOUNTED] = torch.tensor(discounted, dtype=torch.float64)
    return torch.tensor(uses), torch.tensor(slots), weights
