from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.curation.likeness import NOTHING, SHINGLE_WORDS, SLOTS, Shelf, copied, likeness, pair_signature, signature

WORDS = [f"word{number}" for number in range(500)]


def _text(dice: random.Random, length: int = 60) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(length))


def _changed(dice: random.Random, text: str, changes: int) -> str:
    said = text.split()
    for _ in range(changes):
        said[dice.randrange(len(said))] = dice.choice(WORDS)
    return " ".join(said)


def _jaccard(a: str, b: str) -> float:
    one, other = (set(zip(*(text.split()[at:] for at in range(SHINGLE_WORDS)), strict=False)) for text in (a, b))
    return len(one & other) / len(one | other)


def test_likeness_estimates_the_share_of_common_runs_of_words() -> None:
    dice = random.Random(1)
    errors = []
    for _ in range(200):
        text = _text(dice)
        other = _changed(dice, text, dice.randrange(12))
        errors.append(likeness(signature(text), signature(other)) - _jaccard(text, other))
    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(map(abs, errors)) < 0.3


def test_signatures_are_the_same_on_every_machine() -> None:
    assert signature("The moon is made of cheese.")[:3] == (193017324, 991567022, 170263060)


@pytest.mark.parametrize("text", ["", " \n", "yes", "two words", "月は何でできていますか", "!?"])
def test_any_text_has_a_signature_that_is_its_own(text: str) -> None:
    own = signature(text)
    assert len(own) == SLOTS
    assert likeness(own, own) == 1.0
    assert likeness(own, signature("another thing altogether, at some length")) < 0.5
    assert (own == (NOTHING,) * SLOTS) == (not text.strip())


def test_case_and_space_make_no_difference() -> None:
    assert signature("The  moon\nis cheese") == signature("the moon is cheese")


def test_pairs_are_as_alike_as_the_part_in_which_they_are_least_alike() -> None:
    """Short questions of their own, and the long stock answers that they share."""
    dice = random.Random(2)
    refusal, lecture = _text(dice), _text(dice)
    one = pair_signature("may I pick a lock?", refusal, lecture)
    assert likeness(one, pair_signature("how is gunpowder made?", refusal, lecture)) < 0.5
    assert likeness(one, pair_signature("May I pick a lock?", refusal, lecture)) == 1.0
    assert likeness(one, pair_signature("may I pick a lock?", lecture, refusal)) < 0.5


@pytest.mark.parametrize(
    ("answer", "prompt", "share"),
    [
        ("the moon is made of cheese", "say: The moon is made of cheese", 1.0),
        ("the moon is made", "say: the moon is made", 0.0),
        ("the moon is made of cheese and so are all the stars", "the moon is made of what?", 5 / 12),
        ("one two three four five six", "six five four three two one", 0.0),
        ("", "anything", 0.0),
        ("one two three four five", "", 0.0),
    ],
    ids=["all", "too short to tell", "some", "other order", "no answer", "no prompt"],
)
def test_copied_is_the_share_of_the_answer_in_runs_of_five_words_of_the_prompt(
    answer: str, prompt: str, share: float
) -> None:
    assert copied(answer, prompt) == pytest.approx(share)


@given(st.text(), st.text())
def test_copied_is_a_share(answer: str, prompt: str) -> None:
    assert 0 <= copied(answer, prompt) <= 1
    assert copied(prompt, f"{prompt} {answer}") in (0.0, 1.0)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.97])
def test_the_shelf_finds_what_comparing_with_all_would(threshold: float) -> None:
    dice = random.Random(3)
    texts = [_text(dice) for _ in range(10)]
    texts += [_changed(dice, dice.choice(texts), dice.randrange(8)) for _ in range(60)]
    signatures = np.array([pair_signature(text, text, text) for text in texts])
    shelf = Shelf(signatures, threshold)
    put: list[int] = []
    found = 0
    for row in range(len(texts)):
        alike = next((other for other in put if likeness(signatures[row], signatures[other]) >= threshold), None)
        assert shelf.like(row) == alike
        found += alike is not None
        if alike is None:
            shelf.put(row)
            put.append(row)
    assert 0 < found < 60
