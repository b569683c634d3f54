"""Attention over packed documents: the model's own log-probs, for every kind of layer and on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import random_pairs
from training.attention import Document, Packing, Unshareable, attend
from training.logprobs import token_logprobs
from training.pairs import Pair, Thumb
from training.policy import NO_MASK, Policy
from training.rows import FULL, Item, Rows, lay_out

WINDOW = 16  # of the tiny Gemma's first layer


def some_tokens(start: int, count: int) -> tuple[int, ...]:
    return tuple(6 + (start + 37 * i) % 400 for i in range(count))


LONG = some_tokens(1, 3 * WINDOW)
ITEMS = [
    Item(Pair("long prompt", LONG, some_tokens(2, 9), some_tokens(3, 2 * WINDOW))),
    Item(Pair("short prompt", some_tokens(4, 2), some_tokens(5, WINDOW + 5), some_tokens(6, 1))),
    Item(Pair("the same prompt", LONG, some_tokens(7, WINDOW), some_tokens(2, 9))),
    Item(Thumb("up", some_tokens(8, 20), some_tokens(9, 12), up=True), mismatched=some_tokens(10, WINDOW + 3)),
    Item(Thumb("down", some_tokens(11, 5), some_tokens(12, 7), up=False)),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_answers_have_the_models_own_logprobs(architecture: str, moved_policies: dict[str, Policy]) -> None:
    policy = moved_policies[architecture]
    with torch.no_grad():
        packed = policy.logprobs(lay_out(ITEMS, "shared"))[:, :, FULL]
    own = [
        [0.0 if answer is None else policy.own_logprob(item.example.prompt, answer) for answer in item.answers]
        for item in ITEMS
    ]
    torch.testing.assert_close(packed, torch.tensor(own, dtype=torch.float64), rtol=1e-5, atol=2e-4)


def whole_mask(packing: Packing, window: int | None) -> Tensor:
    """`may_attend` of each query and key: bool [1, 1, tokens, tokens]."""
    count = sum(document.tokens for document in packing.documents)
    query, key = torch.arange(count)[:, None], torch.arange(count)[None]
    nothing = torch.tensor(0)
    return packing.may_attend(window)(nothing, nothing, query, key)[None, None]


@torch.no_grad()
def logprobs_under_a_mask(policy: Policy, rows: Rows) -> Tensor:
    """Of each answer token, by transformers' own attention with a mask of all tokens."""
    assert rows.packing is not None
    mask: Any = whole_mask(rows.packing, None)
    if getattr(policy.config, "sliding_window", None):
        mask = {"full_attention": mask, "sliding_attention": whole_mask(rows.packing, policy.config.sliding_window)}
    states = policy.base.get_decoder()(  # pyright: ignore[reportCallIssue]
        input_ids=rows.input_ids, position_ids=rows.position_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return token_logprobs(states[0].index_select(0, rows.sources), policy.head, rows.targets)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mask_of_the_one_kernel_says_what_the_many_calls_do(
    architecture: str, moved_policies: dict[str, Policy]
) -> None:
    policy, rows = moved_policies[architecture], lay_out(ITEMS, "shared")
    with torch.no_grad():
        packed = token_logprobs(policy.hidden(rows), policy.head, rows.targets)
    torch.testing.assert_close(packed, logprobs_under_a_mask(policy, rows), rtol=0, atol=1e-4)


PACKING = Packing((Document(30, (5, 20, 3)), Document(2, (4,)), Document(9, (1, 18))))


@pytest.mark.parametrize("window", [None, 4, WINDOW, 1000])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_one_kernel_and_many_calls_compute_the_same(window: int | None, key_heads: int) -> None:
    count = sum(document.tokens for document in PACKING.documents)
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 4, count, 16, generator=generator)
    key, value = (torch.randn(1, key_heads, count, 16, generator=generator) for _ in range(2))
    many, _ = attend(torch.nn.Identity(), query, key, value, None, scaling=0.3, packing=PACKING, sliding_window=window)
    mask = create_block_mask(PACKING.may_attend(window), None, None, count, count, device="cpu")
    one = flex_attention(query, key, value, block_mask=mask, scale=0.3, enable_gqa=key_heads != 4)
    assert isinstance(one, Tensor)
    torch.testing.assert_close(many.transpose(1, 2), one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4, WINDOW])
def test_gradients_are_those_of_the_whole_mask(window: int | None) -> None:
    count = sum(document.tokens for document in PACKING.documents)
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(1, 2, count, 8, generator=generator).requires_grad_() for _ in range(3))
    by_output = torch.randn(1, 2, count, 8, generator=generator)
    many = attend(torch.nn.Identity(), query, key, value, None, packing=PACKING, sliding_window=window)[0].transpose(
        1, 2
    )
    one = torch.nn.functional.scaled_dot_product_attention(query, key, value, whole_mask(PACKING, window))
    ours, theirs = (torch.autograd.grad(output, (query, key, value), by_output) for output in (many, one))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_answer_sees_its_prompt_and_itself_and_nothing_else() -> None:
    packing = Packing((Document(2, (3, 2)), Document(1, (1,))))
    seen = whole_mask(packing, None)[0, 0]
    assert seen[6].tolist() == [True, True, False, False, False, True, True, False, False]
    assert seen[4].tolist() == [True, True, True, True, True, False, False, False, False]
    assert seen[8].tolist() == [False] * 7 + [True, True]
    near = whole_mask(packing, 2)[0, 0]
    assert near[5].tolist() == [False, True, False, False, False, True, False, False, False]  # positions 1 and 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_answer_changes_no_bit_of_another(architecture: str, moved_policies: dict[str, Policy]) -> None:
    policy, thumb = moved_policies[architecture], ITEMS[3]
    other = [*ITEMS[:3], Item(thumb.example, mismatched=some_tokens(50, WINDOW + 3)), *ITEMS[4:]]
    with torch.no_grad():
        before, after = (policy.logprobs(lay_out(items, "shared")) for items in (ITEMS, other))
    assert not torch.equal(before[3, 1], after[3, 1])
    before[3, 1] = after[3, 1] = 0
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({}, "does not hand its attention"),
        ({"packing": PACKING, "softcap": 50.0}, "does more to the scores"),
        ({"packing": PACKING, "s_aux": torch.zeros(4)}, "does more to the scores"),
    ],
    ids=["no packing", "soft cap", "sinks"],
)
def test_scores_that_cannot_be_computed_here_are_refused(missing: dict[str, Any], reason: str) -> None:
    count = sum(document.tokens for document in PACKING.documents)
    one = torch.zeros(1, 4, count, 8)
    with pytest.raises(Unshareable, match=reason):
        attend(torch.nn.Identity(), one, one, one, NO_MASK["attention_mask"], **missing)


def test_the_tiny_gemma_has_prompts_that_are_longer_than_its_window(moved_policies: dict[str, Policy]) -> None:
    assert moved_policies["gemma"].config.sliding_window == WINDOW < len(LONG)
    assert any(len(pair.prompt) > WINDOW for pair in random_pairs(6))
