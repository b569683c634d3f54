"""Attention over packed documents: a prompt and the answers that branch from it, many such trees in one sequence.

All documents of a micro-batch lie one after the other in a single row, `[prompt | answer | answer ...]`, and every
other layer of the model sees plain tokens without padding. Only here do they know of each other: an answer attends
to its prompt and to itself, never to its siblings and never to another document. Positions restart after the prompt
with each answer. Registered with transformers under `PACKED`; knows no model and no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "heliotrope_packed"  # the name under which a model is told to use this attention


class Unshareable(Exception):
    """Why a model's attention cannot be computed here; its prompts are then computed once for each answer."""


@dataclass(frozen=True)
class Document:
    """Lengths in tokens."""

    prompt: int
    answers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.answers)

    @property
    def segments(self) -> tuple[int, ...]:
        """The prompt with its first answer, then each other answer."""
        return self.prompt + self.answers[0], *self.answers[1:]


@dataclass(frozen=True)
class Packing:
    """The documents of one row, in order."""

    documents: tuple[Document, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def owner(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token its document, its answer (0: the prompt) and its position: [tokens] each."""
        document, answer, position = [], [], []
        for number, (prompt, answers) in enumerate((d.prompt, d.answers) for d in self.documents):
            document += [number] * (prompt + sum(answers))
            answer += [0] * prompt
            position += range(prompt)
            for branch, length in enumerate(answers, start=1):
                answer += [branch] * length
                position += range(prompt, prompt + length)
        return tuple(torch.tensor(of, device=self.device) for of in (document, answer, position))  # pyright: ignore

    def may_attend(self, window: int | None) -> Any:
        """FlexAttention's `mask_mod`: whether a query may see a key, by their places in the row."""
        document, answer, position = self.owner

        def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (document[query] == document[key]) & ((answer[key] == 0) | (answer[key] == answer[query]))
            distance = position[query] - position[key]
            near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            return same & near

        return mask_mod

    @lru_cache(maxsize=4)  # noqa: B019, lives as long as the micro-batch: one mask for each kind of layer
    def block_mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        tokens = sum(document.tokens for document in self.documents)
        return create_block_mask(self.may_attend(window), None, None, tokens, tokens, device=str(self.device))


def attend(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, tokens, head size]
    key: Tensor,  # [1, key heads, tokens, head size]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """The output of one attention layer: [1, tokens, heads, head size]. The interface is transformers' own.

    Without a packing, for rows that share nothing, it is transformers' `sdpa`.
    """
    if packing is None:
        if attention_mask is not None and attention_mask.numel() == 1:
            raise Unshareable("the model does not hand its attention what it was called with")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **ignored
        )
    if softcap is not None or ignored.get("s_aux") is not None or ignored.get("position_bias") is not None:
        raise Unshareable("its attention does more to the scores than scale and mask them")
    if query.is_cuda:
        return _flex(query, key, value, packing, scaling, sliding_window).transpose(1, 2), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # One split of all documents at once: the gradient of each split is as long as what is split.
    segments = [length for document in packing.documents for length in document.segments]
    parts = zip(*(of.split(segments, 2) for of in (query, key, value)), strict=True)
    attended = [
        attended.transpose(1, 2)  # as it lies in memory, so that joining them is one copy
        for document in packing.documents
        for attended in _document(document, list(islice(parts, len(document.segments))), scaling, sliding_window)
    ]
    return torch.cat(attended, dim=1), None


def _document(
    document: Document, parts: list[tuple[Tensor, Tensor, Tensor]], scaling: float | None, window: int | None
) -> Iterator[Tensor]:
    """Query, key and value of each segment -> its output: no key is looked at for nothing."""
    (query, key, value), *answers = parts
    trunk, device = query.shape[2], query.device
    mask = None if window is None or window >= trunk else _mask(trunk, 0, window, device)
    yield scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling)
    if answers:
        key_of_prompt, value_of_prompt = key[:, :, : document.prompt], value[:, :, : document.prompt]
        for q, k, v in answers:
            k, v = torch.cat([key_of_prompt, k], dim=2), torch.cat([value_of_prompt, v], dim=2)
            mask = _mask(q.shape[2], document.prompt, window, device)
            yield scaled_dot_product_attention(q, k, v, mask, scale=scaling)


def _mask(queries: int, before: int, window: int | None, device: torch.device) -> Tensor:
    """Bool [queries, before + queries]: a query sees what is not after it, and less than a window away."""
    mask = torch.ones(queries, before + queries, dtype=torch.bool, device=device).tril(before)
    return mask if window is None else mask.triu(before - window + 1)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, window: int | None
) -> Tensor:
    """The same in one kernel, whose block mask skips what nobody may see."""
    mask = packing.block_mask(window)
    grouped = query.shape[1] != key.shape[1]
    return _compiled_flex()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
