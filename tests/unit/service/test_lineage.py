"""Which adapters came before which."""

from __future__ import annotations

from datetime import UTC, datetime

from service.contracts import Adapter
from service.lineage import ancestry, behind
from serving.contracts import BASE


def _adapter(name: str, parent: str, round: int | None, added_by: str | None = None) -> Adapter:
    return Adapter(
        name=name, ordinal=round or 0, parent=parent, round=round, added_by=added_by, weights_sha256="", directory="",
        manifest_sha256="", pair_digest=None, verdict=None, created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


PARENTS = {"one": BASE, "two": "one", "three": "two"}


def test_an_adapter_is_made_of_its_own_rounds_alone() -> None:
    adapters = [
        _adapter("one", BASE, 1), _adapter("two", "one", 2), _adapter("aside", "one", 3),
        _adapter("brought", "two", 4, added_by="tess"), _adapter("five", "brought", 5),
    ]  # fmt: skip
    assert ancestry("two", adapters) == [2, 1]
    assert ancestry("five", adapters) == [5, 2, 1], "what was brought was not trained here, what it continues was"
    assert ancestry(BASE, adapters) == []
    assert ancestry("circle", [_adapter("circle", "circle", 1)]) == [1]


def test_an_answer_is_as_old_as_the_steps_from_its_adapter_to_the_one_that_answers() -> None:
    assert behind("three", PARENTS) == {"three": 0, "two": 1, "one": 2, BASE: 3}
    assert behind(BASE, {}) == {BASE: 0}


def test_after_a_rollback_what_answers_again_is_the_newest() -> None:
    assert behind("one", PARENTS) == {"one": 0, BASE: 1, "two": 0, "three": 0}, "those taken back stand where they left"


def test_what_is_no_ancestor_stands_where_its_line_leaves() -> None:
    known = behind("three", {"on": "aside", **PARENTS, "aside": "one", "outside": "unknown", "circle": "circle"})
    assert (known["aside"], known["on"], known["outside"], known["circle"]) == (2, 2, 3, 3)
