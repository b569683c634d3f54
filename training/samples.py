"""Answers with the candidate's log-prob of each token, in a JSON file: what serving's are compared with.

Training writes it beside the adapter and names it in `RoundReport.samples`; `service/parity.py` reads it. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training.errors import SnapshotInvalid
from training.files import write_file


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer to a prompt, and log p(token | all before it) of each of its tokens under the candidate."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # nats; as many as `token_ids`

    def __post_init__(self) -> None:
        assert len(self.logprobs) == len(self.token_ids), "each token of an answer has one log-prob"


def write_samples(path: Path, answers: Sequence[ScoredAnswer]) -> None:
    """`{"answers": [...]}`, there completely or not at all. Raises `ValueError` for a log-prob that is not finite."""
    content = json.dumps({"answers": [asdict(answer) for answer in answers]}, allow_nan=False)
    write_file(path, content.encode())


def read_samples(path: Path) -> list[ScoredAnswer]:
    """All answers of the file. Raises `SnapshotInvalid` naming it when it is not such a file."""
    try:
        answers = json.loads(path.read_bytes())["answers"]
        return [
            ScoredAnswer(
                tuple(int(token) for token in answer["prompt_token_ids"]),
                tuple(int(token) for token in answer["token_ids"]),
                tuple(float(logprob) for logprob in answer["logprobs"]),
            )
            for answer in answers
        ]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise SnapshotInvalid(f"{path}: not a file of scored answers ({error})") from error
