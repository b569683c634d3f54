from __future__ import annotations

import math
from pathlib import Path

import pytest

from training.errors import SnapshotInvalid
from training.outcomes import Outcome, read_outcomes, write_outcomes

OUTCOMES = [Outcome("a", -0.5, 1e-9), Outcome("b", 3.25, 0.0)]


def test_what_is_written_is_read_to_the_last_digit(tmp_path: Path) -> None:
    write_outcomes(tmp_path / "held_out.json", OUTCOMES)
    assert read_outcomes(tmp_path / "held_out.json") == OUTCOMES


@pytest.mark.parametrize(
    ("current", "candidate", "gained"), [(-1, 1, 1), (1, -1, -1), (1, 2, 0), (-1, 0, 0), (0, 1, 1)]
)
def test_a_pair_is_gained_by_whoever_alone_is_right(current: float, candidate: float, gained: int) -> None:
    assert Outcome("a", current, candidate).gained == gained


def test_a_margin_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_outcomes(tmp_path / "held_out.json", [Outcome("a", math.nan, 0.0)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"outcomes": [{}]}', '{"outcomes": [{"pair_id": "a", "current": NaN, "candidate": 1}]}'],
)
def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "held_out.json").write_text(content)
    with pytest.raises(SnapshotInvalid, match=r"held_out\.json: not a file of held-out outcomes"):
        read_outcomes(tmp_path / "held_out.json")
    with pytest.raises(SnapshotInvalid, match="nowhere"):
        read_outcomes(tmp_path / "nowhere")
