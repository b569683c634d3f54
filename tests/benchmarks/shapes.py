"""The shapes that both sides are measured on, and the operations that no trainer can do without. Imports no torch."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from training.contracts import TRAIN
from training.cost import forward_operations, round_operations
from training.snapshot import SnapshotRow

EOS, FIRST_WORD = 2, 6  # of `tests/tiny_models.py`'s tokenizer, which loads torch
_FILE = "shape.json"


@dataclass(frozen=True)
class Llama:
    """A random Llama with tied embeddings."""

    hidden: int = 512
    layers: int = 8
    intermediate: int = 1344
    vocabulary: int = 32000
    head_dim: int = 64

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: each token meets all of them."""
        return self.layers * (4 * self.hidden * self.hidden + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.body + self.hidden * self.vocabulary


@dataclass(frozen=True)
class Shape:
    """Pairs of random tokens; lengths are drawn evenly from half to one and a half times the one that is named."""

    name: str
    prompt: int = 123  # tokens, on average
    answer: int = 56  # tokens, on average, of the chosen and of the rejected one alike
    pairs: int = 48
    answers: int = 2  # of one prompt: the first is chosen over each of the others, in a pair of its own
    epochs: int = 1
    batch: int = 8  # pairs an optimizer step
    llama: Llama = Llama()

    def write(self, folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Shape:
        fields = json.loads((folder / _FILE).read_text())
        return cls(**{**fields, "llama": Llama(**fields["llama"])})

    def rows(self) -> list[SnapshotRow]:
        """The pairs, the same each time. Every answer ends with the end-of-sequence token."""
        draw = random.Random(0)

        def tokens(mean: int) -> list[int]:
            length = draw.randint(max(1, mean // 2), mean + mean // 2)
            return [draw.randrange(FIRST_WORD, self.llama.vocabulary) for _ in range(length)]

        rows: list[SnapshotRow] = []
        while len(rows) < self.pairs:
            prompt = tokens(self.prompt)
            chosen, *others = ([*tokens(self.answer - 1), EOS] for _ in range(self.answers))
            rows += [SnapshotRow(f"{len(rows) + i:07d}", TRAIN, prompt, chosen, o) for i, o in enumerate(others)]
        return rows[: self.pairs]

    def floor(self) -> float:
        """Floating point operations of the whole round that cannot be avoided: a prompt once for all its answers, an
        answer once for all its pairs, and what `training/cost.py` counts of them."""
        rows = self.rows()
        prompts = {tuple(row.prompt_token_ids or ()) for row in rows}
        answers = {
            (tuple(row.prompt_token_ids or ()), tuple(answer or ()))
            for row in rows
            for answer in (row.chosen_token_ids, row.rejected_token_ids)
        }
        answer_tokens = sum(len(answer) for _, answer in answers)
        tokens = sum(len(prompt) for prompt in prompts) + answer_tokens
        head = self.llama.hidden * self.llama.vocabulary
        return round_operations(forward_operations(self.llama.body, head, tokens, answer_tokens), self.epochs)


_TINY = Llama(hidden=32, layers=1, intermediate=64, vocabulary=512, head_dim=16)

SHAPES = (
    Shape("default"),
    Shape("long", prompt=800, answer=250, pairs=16, batch=4),  # 8 a step would take TRL's best some 20 GB
    Shape("short", prompt=30, answer=60),
    Shape("two_epochs", epochs=2, pairs=24),
    Shape("four_answers", answers=4),
)
TINY = Shape("tiny", prompt=24, answer=8, llama=_TINY)  # to see in seconds that the benchmark itself works


def many(pairs: int) -> Shape:
    """Short pairs on a tiny model: what grows with their number is memory, if anything."""
    return Shape(f"{pairs} pairs", prompt=12, answer=6, pairs=pairs, batch=256, llama=_TINY)
