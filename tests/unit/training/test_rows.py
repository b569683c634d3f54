"""Rows that share a prompt give the log-probs and gradients of rows that share nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tests.tiny_models import ARCHITECTURES
from tests.unit.training.conftest import random_pairs, random_thumbs
from training.pairs import Pair, Thumb
from training.policy import Policy
from training.rows import DISCOUNTED, FULL, Item, Layout, items, lay_out

PAIRS = random_pairs(6)
ITEMS = [Item(pair) for pair in PAIRS]
PROMPT = (11, 12)
TREE = [Item(Pair("a", PROMPT, (21, 22, 23), (31, 32))), Item(Pair("b", PROMPT, (21, 22, 23), (41,)))]


def gradients(policy: Policy, batches: Sequence[Sequence[Item]], layout: Layout) -> list[torch.Tensor]:
    """Of the mean DPO loss over all pairs, with a reference of zero."""
    total = sum(len(batch) for batch in batches)
    policy.base.zero_grad()
    for batch in batches:
        logprobs = policy.logprobs(lay_out(batch, layout))[:, :, FULL]
        (-torch.nn.functional.logsigmoid(0.1 * (logprobs[:, 0] - logprobs[:, 1])).sum() / total).backward()
    return [parameter.grad.clone() for parameter in policy.trainable if parameter.grad is not None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_and_dense_rows_agree(architecture: str, moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy(architecture)
    with torch.no_grad():
        shared, dense = (policy.logprobs(lay_out(ITEMS, layout)) for layout in ("shared", "dense"))
    torch.testing.assert_close(shared, dense, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        gradients(policy, [ITEMS], "shared"), gradients(policy, [ITEMS], "dense"), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_rows_give_the_models_own_logprobs(architecture: str, moved_policies: dict[str, Policy]) -> None:
    policy = moved_policies[architecture]
    with torch.no_grad():
        ours = policy.logprobs(lay_out(ITEMS, "dense"))[:, :, FULL]
    own = [[policy.own_logprob(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)] for pair in PAIRS]
    torch.testing.assert_close(ours, torch.tensor(own, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", ["shared", "dense"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_do_not_depend_on_the_size_of_micro_batches(
    architecture: str, layout: Layout, moved_policy: Callable[[str], Policy]
) -> None:
    policy = moved_policy(architecture)
    one_by_one = gradients(policy, [[item] for item in ITEMS], layout)
    four_and_two = gradients(policy, [ITEMS[:4], ITEMS[4:]], layout)
    torch.testing.assert_close(one_by_one, four_and_two, rtol=1e-3, atol=1e-6)


def test_a_rejected_answer_does_not_count_the_positions_of_the_chosen_one() -> None:
    rows = lay_out([Item(Pair("a", (11, 12), (21, 22, 23), (31, 32))), Item(Pair("b", (11,), (21,), (31,)))], "shared")
    assert rows.input_ids.tolist() == [[11, 12, 21, 22, 23, 31, 32, 11, 21, 31]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 1]]
    assert rows.packing is not None
    document, answer, position = (owner.tolist() for owner in rows.packing.owner)
    assert document == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert answer == [0, 0, 1, 1, 1, 2, 2, 0, 1, 2]
    assert [position] == rows.position_ids.tolist()


def test_dense_rows_are_padded_with_what_nobody_sees() -> None:
    rows = lay_out([Item(Pair("a", (11, 12), (21, 22), (31,)))], "dense")
    assert rows.input_ids.tolist() == [[11, 12, 21, 22], [11, 12, 31, 0]]
    assert rows.mask is not None
    assert rows.mask.tolist() == [[True] * 4, [True, True, True, False]]
    assert (rows.tokens, rows.input_ids.numel(), rows.unshared_tokens) == (7, 8, 7)


def test_each_answer_token_is_predicted_from_the_position_before_it() -> None:
    rows = lay_out([Item(Pair("a", (11, 12), (21, 22), (31, 32, 33)))], "shared")
    assert rows.sources.tolist() == [1, 2, 1, 4, 5]  # both first tokens from the end of the prompt
    assert rows.targets.tolist() == [21, 22, 31, 32, 33]
    assert rows.uses.tolist() == [0, 1, 2, 3, 4]
    assert rows.slots.tolist() == [0, 0, 1, 1, 1]
    assert (rows.tokens, rows.unshared_tokens) == (7, 9)
    dense = lay_out([Item(Pair("a", (11, 12), (21, 22), (31, 32, 33)))], "dense")
    assert dense.sources.tolist() == [1, 2, 6, 7, 8]  # rows of 5 tokens
    assert dense.targets.tolist() == rows.targets.tolist()


@pytest.mark.parametrize("layout", ["shared", "dense"])
def test_an_answer_of_two_pairs_is_computed_once_and_used_twice(layout: Layout) -> None:
    rows = lay_out(TREE, layout)
    assert rows.targets.tolist() == [21, 22, 23, 31, 32, 41]
    assert rows.uses.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5]
    assert rows.slots.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert rows.tokens == (2 + 3 + 2 + 1 if layout == "shared" else 5 + 4 + 3)
    assert rows.unshared_tokens == 5 + 4 + 5 + 3


def test_an_answer_of_two_pairs_gets_the_gradient_of_both(moved_policy: Callable[[str], Policy]) -> None:
    policy = moved_policy("llama")
    together, apart = (gradients(policy, batches, "shared") for batches in ([TREE], [TREE[:1], TREE[1:]]))
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        both, first, second = (policy.logprobs(lay_out(batch, "shared")) for batch in (TREE, TREE[:1], TREE[1:]))
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=0, atol=1e-4)
    assert torch.equal(both[0, 0], both[1, 0])


def test_the_same_answer_on_both_sides_is_a_tie_to_the_last_bit(moved_policies: dict[str, Policy]) -> None:
    swapped = [Item(Pair("a", PROMPT, (21, 22), (31,))), Item(Pair("b", PROMPT, (31,), (21, 22)))]
    with torch.no_grad():
        logprobs = moved_policies["llama"].logprobs(lay_out(swapped, "shared"))[:, :, FULL]
    assert torch.equal(logprobs[0], logprobs[1].flip(0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mismatched_answers_change_nothing_of_a_thumbs_own(
    architecture: str, moved_policies: dict[str, Policy]
) -> None:
    policy, thumbs = moved_policies[architecture], random_thumbs(4)
    lent = items(thumbs, range(4), {0: 3, 1: 0, 2: 1, 3: 2})
    assert [item.mismatched for item in lent] == [thumbs[i].answer for i in (3, 0, 1, 2)]
    with torch.no_grad():
        alone = policy.logprobs(lay_out(items(thumbs, range(4), {}), "shared"))
        beside = policy.logprobs(lay_out(lent, "shared"))
        dense = policy.logprobs(lay_out(lent, "dense"))
    torch.testing.assert_close(beside[:, 0], alone[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(beside, dense, rtol=0, atol=1e-3)
    assert not alone[:, 1].any()  # no answer, no log-prob
    assert beside[:, 1].all()


def test_a_mismatched_answer_that_is_the_thumbs_own_is_computed_once() -> None:
    rows = lay_out([Item(Thumb("a", PROMPT, (21, 22), up=True), mismatched=(21, 22))], "shared")
    assert rows.input_ids.tolist() == [[11, 12, 21, 22]]
    assert rows.uses.tolist() == [0, 1, 0, 1]


def test_only_a_thumb_lends_its_answer() -> None:
    with pytest.raises(AssertionError, match="that of a thumb"):
        items([*random_thumbs(1), *random_pairs(1)], [0], {0: 1})


def test_what_the_longer_answer_says_beyond_the_shorter_one_is_discounted() -> None:
    batch = [
        Item(Pair("chosen is longer", (11,), (21, 22, 23), (31,))),
        Item(Pair("rejected is longer", (12,), (21,), (31, 32))),
        Item(Thumb("thumb", (13,), (21,), up=True), mismatched=(41, 42)),
    ]
    weights = lay_out(batch, "shared", ld_alpha=0.25).weights
    assert weights.dtype == torch.float64
    assert weights[:, FULL].tolist() == [1.0] * 10
    assert weights[:, DISCOUNTED].tolist() == [1.0, 0.25, 0.25, 1.0, 1.0, 1.0, 0.25, 1.0, 1.0, 1.0]
    undiscounted = lay_out(batch, "shared").weights
    assert undiscounted.all()
    assert (undiscounted == 1).all()


def test_discounted_logprobs_are_those_of_the_weighted_tokens(moved_policies: dict[str, Policy]) -> None:
    policy, pair = moved_policies["llama"], Pair("a", PROMPT, (21, 22, 23, 24), (31, 32))
    with torch.no_grad():
        (found,) = policy.logprobs(lay_out([Item(pair)], "shared", ld_alpha=0.5))
    head, whole = (policy.own_logprob(PROMPT, pair.chosen[:count]) for count in (2, 4))
    assert found[0, FULL].item() == pytest.approx(whole, abs=1e-4)
    assert found[0, DISCOUNTED].item() == pytest.approx(head + 0.5 * (whole - head), abs=1e-4)
    assert found[1, FULL] == found[1, DISCOUNTED]
