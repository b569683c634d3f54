"""Examples come back from their file as they were, and memory holds only how long each is."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.tiny_models import EOS, VOCABULARY
from training.contracts import HELD_OUT, REPLAY, TRAIN
from training.errors import SnapshotInvalid
from training.examples import Examples, ExamplesWriter, RoundExamples, load_examples
from training.objective import parse
from training.pairs import Example, Pair, Thumb, render
from training.snapshot import SnapshotRow, write_snapshot

Load = Callable[..., RoundExamples]


@pytest.fixture(scope="module")
def tokenizer(models: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(models["llama"])


@pytest.fixture
def load(tokenizer: Any, tmp_path: Path) -> Load:
    """Write the rows and load them for a model of 512 tokens and a context of 512."""

    def load(
        rows: Any,
        digest: str | None = None,
        *,
        vocabulary: int = VOCABULARY,
        context: int = 512,
        objective: str = "dpo+kto",
    ) -> RoundExamples:
        written = write_snapshot(tmp_path / "s", rows)
        return load_examples(
            tmp_path / "s", digest or written, tmp_path / "scratch", tokenizer, {EOS},
            vocabulary=vocabulary, context=context, objective=parse(objective),
        )  # fmt: skip

    return load


def written(folder: Path, examples: list[Example]) -> Examples:
    writer = ExamplesWriter(folder)
    for example in examples:
        writer.add(example)
    return writer.close()


token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
answers = token_ids.filter(len)
ids = st.text(st.characters(codec="utf-8"))
weights = st.floats(0, 1, exclude_min=True)
examples = st.lists(
    st.builds(Pair, ids, token_ids, answers, answers, st.booleans(), weights)
    | st.builds(Thumb, ids, token_ids, answers, st.booleans(), st.booleans(), weights),
    max_size=5,
)


@given(examples)
def test_examples_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example]
) -> None:
    kept = written(tmp_path_factory.mktemp("examples"), examples)
    assert list(kept) == examples
    assert kept[1:] == examples[1:]
    assert [kept[i] for i in range(-len(kept), 0)] == examples
    assert kept.is_pair.tolist() == [isinstance(example, Pair) for example in examples]
    assert kept.replay.tolist() == [example.replay for example in examples]
    assert (kept.n_pairs, kept.n_thumbs) == (kept.is_pair.sum(), len(examples) - kept.is_pair.sum())


PAIR, UP, DOWN = Pair("p", (1, 2), (3, 4, 5), (6,)), Thumb("u", (1,), (2, 3), up=True), Thumb("d", (1,), (4,), up=False)


def test_lengths_say_which_answers_there_are(tmp_path: Path) -> None:
    kept = written(tmp_path, [PAIR, UP, DOWN])
    assert kept.lengths.dtype == np.int32
    assert kept.lengths.tolist() == [[2, 3, 1], [1, 2, 0], [1, 0, 1]]


def test_a_part_shares_the_file_and_outlives_the_whole(tmp_path: Path) -> None:
    whole = written(tmp_path, [PAIR, UP, DOWN])
    part = whole.where(np.array([True, False, True]))
    del whole
    gc.collect()
    assert list(part) == [PAIR, DOWN]
    assert part.lengths.tolist() == [[2, 3, 1], [1, 0, 1]]


def test_an_index_beyond_the_end_is_an_index_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        written(tmp_path, [PAIR])[1]


def test_the_scratch_file_has_no_name_and_is_closed_with_its_last_reader(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    kept = written(tmp_path / "deep" / "folder", [PAIR])
    assert list((tmp_path / "deep" / "folder").iterdir()) == []
    assert open_files() == before + 1
    del kept
    gc.collect()
    assert open_files() == before


def rows(count: int) -> Iterator[SnapshotRow]:
    """Clean pairs of 100 tokens, in order; every eighth is held out and every fifth was learned before."""
    for i in range(count):
        tokens = [6 + (i * 31 + k * 7) % 500 for k in range(96)]
        prompt = [*(6 + (i >> shift) % 256 for shift in (0, 8)), *tokens[:48]]
        yield SnapshotRow(
            f"{i:08d}",
            HELD_OUT if i % 8 == 7 else TRAIN,
            prompt,
            [*tokens[48:72], EOS],
            [*tokens[72:], EOS],
            origin=REPLAY if i % 5 == 4 else "new",
            weight=1 / (1 + i % 3),
        )


def test_twenty_thousand_rows_are_written_loaded_and_read_back_equal(load: Load, tokenizer: Any) -> None:
    loaded = load(rows(20_000))
    for split, examples in ((TRAIN, loaded.train), (HELD_OUT, loaded.held_out)):
        of_split = (render(row, tokenizer, EOS) for row in rows(20_000) if row.split == split)
        assert all(read == rendered for read, rendered in zip(examples, of_split, strict=True))
    assert (loaded.skipped, loaded.findings) == ({}, ())
    assert loaded.train.replay.sum() == sum(row.split == TRAIN and row.origin == REPLAY for row in rows(20_000))


def test_memory_of_a_pair_is_a_few_bytes_however_many_there_are(load: Load) -> None:
    def held_and_peak_bytes(count: int) -> np.ndarray:
        gc.collect()
        tracemalloc.start()
        try:
            loaded = load(rows(count))
            assert len(loaded.train) + len(loaded.held_out) == count
            gc.collect()
            return np.array(tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()

    def least(count: int) -> np.ndarray:
        """Whatever else the process does meanwhile, such as filling a cache, only adds."""
        return np.min([held_and_peak_bytes(count) for _ in range(3)], axis=0)

    held_and_peak_bytes(100)  # what is made once and kept
    held, peak = (least(2100) - least(1100)) / 1000
    assert 28 < held < 48
    assert peak < 100


def test_served_and_imported_rows_part_into_their_splits(load: Load, tokenizer: Any) -> None:
    imported = SnapshotRow(
        "i", HELD_OUT, messages=json.dumps([{"role": "user", "content": "Two?"}]), chosen_text="Yes", rejected_text="No"
    )
    pair, thumb = next(rows(1)), SnapshotRow("t", TRAIN, (7,), rejected_token_ids=(8, EOS))
    loaded = load([pair, thumb, imported])
    assert list(loaded.train) == [render(pair, tokenizer, EOS), render(thumb, tokenizer, EOS)]
    assert list(loaded.held_out) == [render(imported, tokenizer, EOS)]
    assert (loaded.train.n_pairs, loaded.train.n_thumbs) == (1, 1)


def test_served_rows_need_no_chat_template(load: Load, tmp_path: Path, models: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models["llama"])
    tokenizer.chat_template = None
    digest = write_snapshot(tmp_path / "s", rows(3))
    loaded = load_examples(
        tmp_path / "s",
        digest,
        tmp_path,
        tokenizer,
        {EOS},
        vocabulary=VOCABULARY,
        context=512,
        objective=parse("dpo+kto"),
    )
    assert len(loaded.train) == 3


def test_a_correction_to_a_served_answer_is_trained_on_and_never_shortened(load: Load, tokenizer: Any) -> None:
    corrected = SnapshotRow("a", TRAIN, (7,) * 20, rejected_token_ids=(8, EOS), chosen_text="Rather this", weight=0.25)
    example = render(corrected, tokenizer, EOS)
    loaded = load([corrected], context=example.longest)
    assert (list(loaded.train), loaded.findings) == ([example], ())
    with pytest.raises(SnapshotInvalid, match=r"1 too_long \(row 1\)"):
        load([corrected], context=example.longest - 1)


def test_a_row_that_is_too_long_is_left_out_and_counted(load: Load) -> None:
    too_long = SnapshotRow("9", TRAIN, (7,) * 100, (9, EOS), (10, 11, EOS))
    loaded = load([*rows(8), too_long], context=102)
    assert (len(loaded.train), len(loaded.held_out)) == (7, 1)
    assert loaded.skipped == {"too_long": 1}
    (finding,) = loaded.findings
    assert (finding.check, finding.action, finding.rows) == ("too_long", "left_out", (9,))
    assert "102 tokens" in finding.why


def test_an_imported_row_that_is_too_long_is_trained_on_without_its_oldest_turns(load: Load, tokenizer: Any) -> None:
    turns = [{"role": role, "content": "word " * 10} for role in ("system", "user", "assistant", "user")]
    long = SnapshotRow("a", TRAIN, messages=json.dumps(turns), chosen_text="Yes", rejected_text="No")
    short = replace(long, messages=json.dumps([turns[0], turns[3]]))
    context = render(short, tokenizer, EOS).longest
    loaded = load([long], context=context)
    assert list(loaded.train) == [render(short, tokenizer, EOS)]
    assert (loaded.skipped, [finding.check for finding in loaded.findings]) == ({}, ["shortened"])
    with pytest.raises(SnapshotInvalid, match=r"1 too_long \(row 1\)"):
        load([long], context=context - 1)


def test_rows_that_the_round_was_not_told_of_are_refused(load: Load) -> None:
    with pytest.raises(SnapshotInvalid, match="holds other pairs than the round was told to learn from: digest "):
        load(rows(3), "0" * 64)


def test_a_token_the_model_does_not_have_is_refused_with_the_rows(load: Load) -> None:
    strange = [replace(row, pair_id=f"z{row.pair_id}", prompt_token_ids=[600 + i]) for i, row in enumerate(rows(7))]
    reason = (
        r"the data is refused: 7 unknown_token \(row 4, 5, 6, 7, 8, \.\.\.\): a token id is not among the model's 512"
    )
    with pytest.raises(SnapshotInvalid, match=reason):
        load([*rows(3), *strange])


def test_nothing_left_to_train_on_is_said_with_the_reasons(load: Load) -> None:
    with pytest.raises(SnapshotInvalid, match=r"nothing is left to train on: 8 rows in the snapshot, 0 held out; left"):
        load(rows(8), context=50)
    held_out = list(islice((row for row in rows(16) if row.split == HELD_OUT), 2))
    with pytest.raises(SnapshotInvalid, match="2 rows in the snapshot, 2 held out; left out: none"):
        load(held_out)
    with pytest.raises(SnapshotInvalid, match="0 rows in the snapshot"):
        load([])


THUMB_ROW = SnapshotRow("z", TRAIN, (7,), rejected_token_ids=(8, EOS))


def test_single_thumbs_are_left_out_of_a_round_of_pairs_and_counted(load: Load) -> None:
    loaded = load([*rows(4), THUMB_ROW], objective="dpo")
    assert (loaded.train.n_pairs, loaded.train.n_thumbs, loaded.skipped["single_thumb"]) == (4, 0, 1)


def test_a_round_of_thumbs_learns_from_the_two_thumbs_of_each_pair(load: Load) -> None:
    loaded = load([*rows(4), THUMB_ROW], objective="kto")
    assert (loaded.train.n_pairs, loaded.train.n_thumbs) == (0, 9)
    first, second = loaded.train[:2]
    assert isinstance(first, Thumb) and isinstance(second, Thumb)
    assert (first.up, second.up) == (True, False)
    assert first.prompt == second.prompt
    assert [example.weight for example in loaded.train] == [1, 1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1, 1, 1]
    assert loaded.train.prompts[0] == loaded.train.prompts[1] != loaded.train.prompts[2]
