"""Threads with a micro-batch each: the sums of one, in an order that no lane's speed decides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Barrier, current_thread

import pytest
import torch

from tests.unit.training.conftest import MakeSpec
from training.contracts import RoundReport
from training.lanes import ONE_LANE, open_lanes, share_out
from training.learn import learn
from training.plan import Step
from training.world import ALONE, World


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def learned(make_spec: MakeSpec, folder: Path) -> RoundReport:
    where = {name: str(folder / name) for name in ("out", "storage", "checkpoints")}
    return learn(make_spec(**where, objective="dpo+kto"), lambda progress: None)


def test_a_round_on_two_lanes_repeats_itself_and_makes_the_steps_of_one(
    two_threads: None, make_spec: MakeSpec, tmp_path: Path
) -> None:
    first, again = (learned(make_spec, tmp_path / name) for name in ("first", "again"))
    assert first.adapter_digest == again.adapter_digest
    assert first.step0_max_abs_logratio == 0.0
    torch.set_num_threads(1)
    for two, one in zip(first.steps, learned(make_spec, tmp_path / "alone").steps, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-4)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


def test_lanes_compute_at_once_with_one_thread_each_and_answer_in_order(two_threads: None) -> None:
    both = Barrier(2)

    def compute(item: int) -> tuple[int, int, str]:
        both.wait()  # passes only when two lanes are here together
        return item, torch.get_num_threads(), current_thread().name

    with open_lanes(torch.device("cpu"), sharded=False) as lanes:
        found = list(lanes.map(compute, range(4)))
    assert [item for item, _, _ in found] == [0, 1, 2, 3]
    assert {threads for _, threads, _ in found} == {1}
    assert len({lane for _, _, lane in found}) == 2


def test_lanes_take_items_as_they_need_them(two_threads: None) -> None:
    with open_lanes(torch.device("cpu"), sharded=False) as lanes:
        found = lanes.map(lambda item: -item, count(1))  # without an end
        assert [next(found) for _ in range(20)] == [-item for item in range(1, 21)]


STEPS = [Step(((0,), (1,), (2,)), {}), Step(((3, 4),), {})]


def test_each_worker_gets_its_share_of_every_step_and_keeps_no_company_result() -> None:
    made: list[tuple[int, ...]] = []

    def compute(step: Step, batch: tuple[int, ...]) -> int:
        assert batch in step.micro_batches
        made.append(batch)
        return sum(batch)

    shares = [list(share_out(STEPS, compute, World(rank, 2, ALONE.device), ONE_LANE)) for rank in (0, 1)]
    assert shares == [[((0,), 0), ((2,), 2), ((3, 4), 7)], [((1,), 1)]]
    assert made == [(0,), (2,), (3, 4), (1,), (0,), (3, 4)]  # equally often on each


def test_a_lane_goes_on_with_the_next_step_while_another_is_at_the_last(two_threads: None) -> None:
    both = Barrier(2)

    def compute(step: Step, batch: tuple[int, ...]) -> int:
        if batch in ((2,), (3, 4)):
            both.wait()  # passes only when the ends of two steps are computed together
        return batch[0]

    with open_lanes(torch.device("cpu"), sharded=False) as lanes:
        found = list(share_out(STEPS, compute, ALONE, lanes))
    assert [first for _, first in found] == [0, 1, 2, 3]


def test_what_goes_wrong_in_a_lane_is_raised(two_threads: None) -> None:
    with open_lanes(torch.device("cpu"), sharded=False) as lanes, pytest.raises(ZeroDivisionError):
        list(lanes.map(lambda item: 1 // item, [1, 0]))


def test_a_sharded_model_and_a_gpu_have_one_lane(two_threads: None) -> None:
    for device, sharded in ((torch.device("cpu"), True), (torch.device("cuda"), False)):
        with open_lanes(device, sharded=sharded) as lanes:
            assert lanes is ONE_LANE
