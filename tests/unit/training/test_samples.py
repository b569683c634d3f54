from __future__ import annotations

import math
from pathlib import Path

import pytest

from training.errors import SnapshotInvalid
from training.samples import ScoredAnswer, read_samples, write_samples

ANSWERS = [ScoredAnswer((1, 2), (3, 4, 5), (-0.1, -2.5, -1e-9)), ScoredAnswer((1,), (9,), (-3.25,))]


def test_what_is_written_is_read_to_the_last_digit(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.json", ANSWERS)
    assert read_samples(tmp_path / "samples.json") == ANSWERS


def test_a_log_prob_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_samples(tmp_path / "samples.json", [ScoredAnswer((1,), (2,), (math.nan,))])
    assert list(tmp_path.iterdir()) == []


def test_each_token_has_its_log_prob() -> None:
    with pytest.raises(AssertionError):
        ScoredAnswer((1,), (2, 3), (-1.0,))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"answers": [{}]}', '{"answers": [{"prompt_token_ids": [1], "token_ids": [2], "logprobs": []}]}'],
)
def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(SnapshotInvalid, match=r"samples\.json: not a file of scored answers"):
        read_samples(tmp_path / "samples.json")
    with pytest.raises(SnapshotInvalid, match="nowhere"):
        read_samples(tmp_path / "nowhere")
