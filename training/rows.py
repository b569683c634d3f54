"""Rows: pairs laid out as the tensors that go through the model together.

The shared layout has one row a pair, `[prompt | chosen | rejected]`: the prompt is computed once, positions of the
rejected answer restart after the prompt, and the mask hides the chosen answer from it. The dense layout has two rows
a pair, `[prompt | chosen]` and `[prompt | rejected]`, for models whose attention the mask cannot describe.
Knows token ids and positions; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from training.pairs import Pair

Layout = Literal["shared", "dense"]

_PADDING = 0  # any token id will do: no real token can see a padded one


@dataclass(frozen=True)
class Rows:
    """The tensors of one micro-batch, and where in them the answers' tokens are predicted.

    `owners` numbers the answers of a micro-batch: 2 * pair for the chosen one, 2 * pair + 1 for the rejected one.
    """

    input_ids: Tensor  # [rows, tokens]
    position_ids: Tensor  # [rows, tokens]
    attention_mask: Tensor  # bool: [rows, 1, tokens (query), tokens (key)] when shared, [rows, tokens] when dense
    sources: Tensor  # [answer tokens], indices into the flattened [rows * tokens] hidden states
    targets: Tensor  # [answer tokens], the token id that the source position predicts
    owners: Tensor  # [answer tokens]
    pairs: int

    def to(self, device: torch.device) -> Rows:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def row_tokens(pair: Pair, layout: Layout) -> int:
    """Tokens that the pair takes in its rows, padding aside."""
    prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
    return prompt + chosen + rejected if layout == "shared" else 2 * (prompt + max(chosen, rejected))


def lay_out(pairs: Sequence[Pair], layout: Layout) -> Rows:
    """The tensors of one micro-batch of pairs."""
    return _shared(pairs) if layout == "shared" else _dense(pairs)


def _shared(pairs: Sequence[Pair]) -> Rows:
    width = max(row_tokens(pair, "shared") for pair in pairs)
    input_ids = torch.full((len(pairs), width), _PADDING)
    prompt = torch.tensor([len(pair.prompt) for pair in pairs])[:, None]  # [rows, 1]
    branch = torch.tensor([len(pair.prompt) + len(pair.chosen) for pair in pairs])[:, None]  # rejected starts here
    end = torch.tensor([row_tokens(pair, "shared") for pair in pairs])[:, None]
    answers = _Answers(width)
    for row, pair in enumerate(pairs):
        input_ids[row, : end[row]] = torch.tensor(pair.prompt + pair.chosen + pair.rejected)
        first = len(pair.prompt)
        answers.add(2 * row, row, pair.chosen, last_of_prompt=first - 1, start=first)
        answers.add(2 * row + 1, row, pair.rejected, last_of_prompt=first - 1, start=first + len(pair.chosen))
    at = torch.arange(width)[None]  # [1, tokens]
    in_chosen, after_chosen = (at >= prompt) & (at < branch), at >= branch  # [rows, tokens]
    position_ids = torch.where(after_chosen, at - branch + prompt, at).masked_fill(at >= end, 0)
    hidden = after_chosen[:, :, None] & in_chosen[:, None, :]  # the rejected answer does not see the chosen one
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = (causal[None] & ~hidden)[:, None]
    return Rows(input_ids, position_ids, mask, *answers.tensors(), pairs=len(pairs))


def _dense(pairs: Sequence[Pair]) -> Rows:
    conversations = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    width = max(len(prompt) + len(answer) for prompt, answer in conversations)
    input_ids = torch.full((len(conversations), width), _PADDING)
    mask = torch.zeros(len(conversations), width, dtype=torch.bool)
    answers = _Answers(width)
    for row, (prompt, answer) in enumerate(conversations):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = True
        answers.add(row, row, answer, last_of_prompt=len(prompt) - 1, start=len(prompt))
    position_ids = torch.arange(width)[None] * mask
    return Rows(input_ids, position_ids, mask, *answers.tensors(), pairs=len(pairs))


class _Answers:
    """Collects which position predicts which token of which answer."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._sources: list[int] = []
        self._targets: list[int] = []
        self._owners: list[int] = []

    def add(self, owner: int, row: int, answer: tuple[int, ...], *, last_of_prompt: int, start: int) -> None:
        """An answer at columns `start`.. of its row; the prompt's last token predicts its first."""
        predicting = [last_of_prompt, *range(start, start + len(answer) - 1)]
        self._sources += [row * self._width + column for column in predicting]
        self._targets += answer
        self._owners += [owner] * len(answer)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(self._sources), torch.tensor(self._targets), torch.tensor(self._owners)
