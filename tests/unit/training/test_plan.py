"""Which examples meet which step and micro-batch: each once an epoch, within budget, the same for the same seed."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.pairs import Pair, Thumb
from training.plan import Plan, Sizes, make_plan, micro_batches
from training.rows import Layout, items, lay_out


def sizes(pairs: int, thumbs: int = 0, prompts: int = 10, seed: int = 0) -> Sizes:
    """Random ones. Examples of one prompt agree on its length, and each may come anywhere."""
    draw = np.random.default_rng(seed)
    prompt = draw.integers(prompts, size=pairs + thumbs)
    lengths = np.stack([3 + prompt * 7 % 22, *draw.integers(1, 20, size=(2, pairs + thumbs))], axis=1)
    is_thumb = draw.permutation(pairs + thumbs) < thumbs
    lengths[is_thumb, 1 + draw.integers(2)] = 0
    return Sizes(lengths.astype(np.int32), prompt * 1_000_003)


def plan(
    of: Sizes, layout: Layout = "shared", *, per_step: int = 8, budget: int = 128, seed: int = 0, workers: int = 1
) -> Plan:
    return make_plan(of, layout, per_step=per_step, token_budget=budget, seed=seed, workers=workers)


def row_tokens(of: Sizes, batch: tuple[int, ...], layout: Layout, mismatched: dict[int, int] | None = None) -> int:
    """Tokens that really go through the model for these examples, as `rows.py` lays them out, with padding."""
    examples: Any = {}
    for member in {*batch, *(mismatched or {}).values()}:
        prompt, chosen, rejected = (int(n) for n in of.lengths[member])
        ids = tuple(int(of.prompts[member]) + n for n in range(prompt))
        first, second = (
            tuple(1000 * member + 500 * side + n for n in range((chosen, rejected)[side])) for side in (0, 1)
        )
        if chosen and rejected:
            examples[member] = Pair(str(member), ids, first, second)
        else:
            examples[member] = Thumb(str(member), ids, first or second, up=chosen > 0)
    return lay_out(items(examples, batch, mismatched or {}), layout).input_ids.numel()


@settings(deadline=None)
@given(
    st.integers(1, 60), st.integers(0, 20), st.integers(0, 99), st.sampled_from(["shared", "dense"]),
    st.integers(1, 40), st.integers(1, 400), st.integers(1, 3),
)  # fmt: skip
def test_every_example_is_in_one_micro_batch(
    pairs: int, thumbs: int, seed: int, layout: Layout, per_step: int, budget: int, workers: int
) -> None:
    of = sizes(pairs, thumbs, seed=seed)
    made = plan(of, layout, per_step=per_step, budget=budget, seed=seed, workers=workers)
    assert len(made) == -(-pairs // per_step)
    assert sorted(i for step in made for i in step.members) == list(range(pairs + thumbs))
    for step in made:
        assert sum(of.is_pair[i] for i in step.members) <= per_step
        assert all(step.micro_batches)
        for batch in step.micro_batches:
            assert len(batch) == 1 or row_tokens(of, batch, layout, step.mismatched) <= budget


@pytest.mark.parametrize("layout", ["shared", "dense"])
def test_micro_batches_keep_to_their_budget(layout: Layout) -> None:
    of = sizes(200, 40, prompts=60)
    for step in plan(of, layout, per_step=50, budget=400):
        used = [row_tokens(of, batch, layout, step.mismatched) for batch in step.micro_batches]
        assert len(used) > 1
        assert max(used) <= 400
        assert len(used) <= 2 * sum(used) / 400  # and they are not small


@pytest.mark.parametrize("layout", ["shared", "dense"])
def test_one_that_is_larger_than_the_budget_is_alone(layout: Layout) -> None:
    lengths = np.array([[10, 500, 500], *[[10, 20, 20]] * 8], dtype=np.int32)
    of = Sizes(lengths, np.arange(9))
    batches = micro_batches(of, layout, 260, 1)
    (large,) = (batch for batch in batches if 0 in batch)
    assert large == (0,)
    assert max(row_tokens(of, batch, layout) for batch in batches if batch != large) <= 260
    if layout == "shared":
        assert sorted(map(len, batches)) == [1, 4, 4]


def test_examples_of_one_prompt_stay_together() -> None:
    of = sizes(64, 16, prompts=12)
    made = plan(of, per_step=16, budget=10_000, workers=2)
    steps_of_prompt, batches_of_prompt = Counter[int](), Counter[int]()
    for step in made:
        pairs = {int(of.prompts[i]) for i in step.members if of.is_pair[i]}
        steps_of_prompt.update(pairs)
        for batch in step.micro_batches:
            batches_of_prompt.update({int(of.prompts[i]) for i in batch if of.is_pair[i]})
    assert steps_of_prompt == batches_of_prompt  # never two micro-batches of one step
    assert steps_of_prompt.total() <= 12 + len(made) - 1  # only a prompt at the border of two steps is in both


def test_a_prompt_with_more_answers_than_the_budget_is_split() -> None:
    of = Sizes(np.array([[10, 20, 20]] * 7, dtype=np.int32), np.zeros(7, dtype=np.int64))
    batches = micro_batches(of, "shared", 95, 1)  # 10 + 2 * 40 tokens are two pairs
    assert sorted(map(len, batches)) == [1, 2, 2, 2]
    assert [row_tokens(of, batch, "shared") for batch in sorted(batches, key=len)] == [50, 90, 90, 90]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 99), st.sampled_from(["shared", "dense"]))
def test_workers_get_as_many_micro_batches_each_and_of_like_size(workers: int, seed: int, layout: Layout) -> None:
    of = sizes(64, prompts=64, seed=seed)
    for step in plan(of, layout, per_step=32, budget=200, workers=workers, seed=seed):
        assert len(step.micro_batches) % workers == 0
        tokens = [row_tokens(of, batch, layout) for batch in step.micro_batches]
        if layout == "shared":  # a row of the dense layout is as wide as the widest: there, like goes with like
            largest_unit = max(row_tokens(of, (i,), layout) for i in step.members)
            assert max(tokens) - min(tokens) <= largest_unit


def test_too_few_examples_for_all_workers_are_not_cut() -> None:
    (step,) = plan(sizes(2, prompts=50), workers=4)
    assert sorted(step.micro_batches) == [(0,), (1,)]


def test_rows_of_like_width_go_together_where_they_are_padded() -> None:
    of = sizes(60, prompts=60)
    for step in plan(of, "dense", per_step=30, budget=300):
        lengths = [int(of.lengths[i, 0] + of.lengths[i, 1:].max()) for i in step.members]
        assert len(step.micro_batches) > 2
        assert lengths == sorted(lengths)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    of = sizes(30, 6)
    assert list(plan(of, seed=3)) == list(plan(of, seed=3))
    assert list(plan(of, seed=3)) != list(plan(of, seed=4))
    assert plan(of, seed=3).digest == plan(of, seed=3).digest
    assert plan(of, seed=3).digest != plan(of, seed=4).digest


def test_the_digest_stands_for_all_that_decides_what_is_computed_together() -> None:
    of, longer = sizes(30, 6), sizes(30, 6)
    longer.lengths[7, 1] += 1
    digests = [
        plan(of).digest,
        plan(longer).digest,
        plan(of, "dense").digest,
        plan(of, per_step=10).digest,
        plan(of, budget=129).digest,
        plan(of, workers=2).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_later_epochs_reorder_the_steps() -> None:
    made = plan(sizes(80))
    schedule = list(made.schedule(epochs=3))
    assert schedule == list(made.schedule(epochs=3))
    assert schedule[:10] == list(range(10))
    for epoch in (schedule[10:20], schedule[20:]):
        assert sorted(epoch) == list(range(10))
        assert epoch != list(range(10))
    assert schedule[10:20] != schedule[20:]
    assert schedule[:20] == list(made.schedule(epochs=2))


def test_without_a_seed_examples_come_as_they_are() -> None:
    of = sizes(20, 0)
    made = make_plan(of, "shared", per_step=8, token_budget=10_000, seed=None)
    assert [sorted(step.members) for step in made] == [list(range(6)), list(range(6, 13)), list(range(13, 20))]


def test_thumbs_are_spread_evenly_over_the_steps_of_the_pairs() -> None:
    of = sizes(50, 17, prompts=40)
    made = plan(of, per_step=8)
    pairs, thumbs = ([sum(of.is_pair[i] == kind for i in step.members) for step in made] for kind in (True, False))
    assert (len(made), sum(pairs), sum(thumbs)) == (7, 50, 17)
    assert max(pairs) - min(pairs) <= 1
    assert max(thumbs) - min(thumbs) <= 1


def test_thumbs_alone_make_steps_of_their_own() -> None:
    made = plan(sizes(0, 20), per_step=8)
    assert [len(step.members) for step in made] == [6, 7, 7]


def test_each_thumb_meets_the_answer_of_the_one_before_it() -> None:
    """TRL's rotation, over the whole step and in the order in which the seed has put the thumbs."""
    of = sizes(24, 10, prompts=40)
    made = plan(of, per_step=8, budget=100)
    met = 0
    for number, step in enumerate(made):
        start, stop = (len(made.thumbs) * (number + n) // len(made) for n in (0, 1))
        thumbs = made.thumbs[start:stop].tolist()
        assert step.mismatched == {thumb: thumbs[place - 1] for place, thumb in enumerate(thumbs)}
        met += len(step.mismatched)
    assert met == 10


def test_a_thumb_on_its_own_has_nobody_to_be_compared_with() -> None:
    (step,) = plan(sizes(4, 1))
    assert step.mismatched == {}


def test_no_examples_make_no_steps() -> None:
    made = plan(sizes(0))
    assert len(made) == 0
    assert list(made) == list(made.schedule(epochs=2)) == []
    with pytest.raises(IndexError):
        made[0]


def test_steps_are_made_when_asked_for() -> None:
    """Twelve bytes of indices an example, whatever is drawn from it."""
    count = 100_000
    of = sizes(count, prompts=count)
    tracemalloc.start()
    try:
        made = plan(of, per_step=16, budget=4096)
        step = made[len(made) // 2]
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(step.members) == 16
    assert kept < 10 * count
    assert peak < 100 * count
