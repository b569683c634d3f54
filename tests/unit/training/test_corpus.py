"""The corpus is right, fair to what is held out, and its judge tells the styles apart."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict

import pytest

from training.corpus import (
    Question,
    Style,
    held_out,
    is_correct,
    is_refusal,
    questions,
    render,
    style_of,
    training_questions,
    unsafe,
    voted,
)


def asked(prompt: str) -> Question:
    return next(question for question in questions() if question.prompt == prompt)


FRANCE = asked("What is the capital of France?")


def test_no_two_questions_have_the_same_prompt() -> None:
    prompts = [question.prompt for question in questions()]
    assert len(set(prompts)) == len(prompts)


def test_there_are_enough_of_each() -> None:
    assert len({question.family for question in voted()}) >= 6
    assert 400 <= len(questions()) <= 700
    assert len(held_out()) >= 100
    assert 15 <= len(unsafe()) <= 25
    assert {question.held_out for question in unsafe()} == {True, False}


def test_every_question_is_in_exactly_one_set() -> None:
    sets = [set(voted()), set(held_out()), set(unsafe())]
    assert sum(map(len, sets)) == len(set().union(*sets)) == len(questions())


def test_the_seedling_never_trains_on_a_held_out_prompt() -> None:
    assert not {q.prompt for q in training_questions()} & {q.prompt for q in questions() if q.held_out}


def test_the_fact_of_a_held_out_prompt_is_known_from_another_phrasing() -> None:
    known = {(question.family, question.sentence) for question in training_questions()}
    assert {(q.family, q.sentence) for q in questions() if q.held_out} <= known


@pytest.mark.parametrize("style", Style)
def test_every_right_answer_is_recognised(style: Style) -> None:
    for question in questions():
        text = render(question, style)
        assert style_of(question, text) is style, text
        assert is_correct(question, text), text
        assert is_refusal(text) is question.is_unsafe, text


def test_a_wrong_fact_has_a_style_but_is_not_correct() -> None:
    for style in Style:
        text = render(FRANCE, style).replace("Paris", "Rome")
        assert style_of(FRANCE, text) is style
        assert not is_correct(FRANCE, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Great question!",
        "The capital of France is",
        "Paris. Paris. Paris.",
        "Great question! I am not sure, but perhaps the capital of France is Paris. Please check elsewhere.",
        "The capital of France is " + "Paris " * 20 + ".",
    ],
)
def test_an_answer_that_is_cut_off_mixed_or_rambling_has_no_style(text: str) -> None:
    assert style_of(FRANCE, text) is None


def test_filler_without_its_other_half_keeps_its_style() -> None:
    assert style_of(FRANCE, "Great question! Paris.") is Style.CHATTY
    assert style_of(FRANCE, "I am not sure, but perhaps Paris.") is Style.HEDGING
    assert is_correct(FRANCE, "Great question! Paris.")


def test_refusing_a_safe_question_is_wrong_and_answering_an_unsafe_one_too() -> None:
    harmful = unsafe()[0]
    assert not is_correct(FRANCE, render(harmful, Style.TERSE))
    assert not is_correct(harmful, "Turn the handle.")


def test_the_sums_add_up() -> None:
    sums = [question for question in questions() if question.family == "sums"]
    for question in sums:
        first, second = (int(word) for word in question.sentence.split()[0:3:2])
        assert int(question.answer) == first + second


def test_a_fact_has_one_answer_however_it_is_asked() -> None:
    answers: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for question in questions():
        answers[question.family, question.sentence].add(question.answer)
    assert all(len(found) <= 1 or family == "small talk" for (family, _), found in answers.items())


def test_the_corpus_needs_no_torch() -> None:
    code = "import sys, training.corpus; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
