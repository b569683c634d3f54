"""Which pairs meet which step and micro-batch: every pair once an epoch, within budget, the same for the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.conftest import random_pairs
from training.plan import Plan, make_plan
from training.rows import Layout, row_tokens

PAIRS = random_pairs(30)


def plan(seed: int = 0, layout: Layout = "shared", pairs_per_step: int = 8, token_budget: int = 128) -> Plan:
    return make_plan(PAIRS, PAIRS[:5], layout, pairs_per_step=pairs_per_step, token_budget=token_budget, seed=seed)


@given(st.integers(0, 99), st.sampled_from(["shared", "dense"]), st.integers(1, 40), st.integers(1, 400))
def test_every_pair_is_in_one_micro_batch_that_keeps_to_the_budget(
    seed: int, layout: Layout, pairs_per_step: int, token_budget: int
) -> None:
    made = plan(seed, layout, pairs_per_step, token_budget)
    assert sorted(i for batch in made.micro_batches for i in batch) == list(range(len(PAIRS)))
    assert {sum(map(len, step)) for step in made.epoch[:-1]} <= {pairs_per_step}
    for batch in made.micro_batches:
        tokens = len(batch) * max(row_tokens(PAIRS[i], layout) for i in batch)
        assert len(batch) == 1 or tokens <= token_budget


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert plan(seed=3) == plan(seed=3)
    assert plan(seed=3) != plan(seed=4)


def test_later_epochs_reorder_the_steps_and_leave_each_as_it_is() -> None:
    made = plan()
    steps = len(made.epoch)
    schedule = made.schedule(epochs=3, seed=0)
    assert tuple(schedule[:steps]) == made.epoch
    for epoch in (schedule[steps : 2 * steps], schedule[2 * steps :]):
        assert sorted(epoch) == sorted(made.epoch)
    assert schedule[:steps] != schedule[steps : 2 * steps] or schedule[steps : 2 * steps] != schedule[2 * steps :]


def test_no_held_out_pairs_make_no_micro_batches() -> None:
    assert make_plan(PAIRS, [], "shared", pairs_per_step=8, token_budget=128, seed=0).held_out == ()


def test_pairs_of_like_length_go_together() -> None:
    for step in plan().epoch:
        lengths = [row_tokens(PAIRS[i], "shared") for batch in step for i in batch]
        assert lengths == sorted(lengths)
