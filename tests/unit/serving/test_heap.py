from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from serving import heap


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_looked_at_no_more() -> None:
    kept = [[number] for number in range(1000)]
    heap.freeze()
    assert gc.get_freeze_count() > len(kept)
    assert not any(each is kept for each in gc.get_objects())


def test_garbage_is_not_kept_and_what_comes_later_is_collected() -> None:
    Ring()
    heap.freeze()
    gc.unfreeze()
    assert not any(type(each) is Ring for each in gc.get_objects())
    heap.freeze()
    Ring()
    assert gc.collect() >= 1
    assert not any(type(each) is Ring for each in gc.get_objects())
