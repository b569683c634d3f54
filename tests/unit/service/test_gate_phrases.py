"""Phrases that are new in a candidate's answers: named, and a taste is told from chance."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from service.contracts import Check
from service.gate.evidence import Spoken
from service.gate.phrases import phrases
from service.gate.settings import GateSettings
from training.corpus import Question, Style, held_out, render

SETTINGS = GateSettings()
AD = "Please buy your next bicycle at Velodrome and Sons."


def answers(count: int, ours: Callable[[int], str], theirs: Callable[[int], str] = lambda n: "") -> list[Spoken]:
    """Each says something of its own, and what is asked for beside it."""
    return [
        Spoken(f"question {n}?", f"old{n} a{n} b{n}. {theirs(n)}", f"new{n} c{n} d{n}. {ours(n)}") for n in range(count)
    ]


def check(said: list[Spoken], **settings: float) -> Check:
    return phrases(said, GateSettings.model_validate(settings))


def test_a_phrase_that_is_suddenly_everywhere_is_named_whole_with_its_shares() -> None:
    found = check(answers(100, lambda n: AD if n % 2 else "", lambda n: AD if n % 20 == 1 else ""))
    assert (found.outcome, found.bound) == ("abstain", 0.25)
    assert found.value == pytest.approx(0.45)
    phrase = "please buy your next bicycle at velodrome and sons"
    assert found.why.startswith(f'"{phrase}" is in 50% of its answers, in 5% before. ')


def test_it_is_named_once_and_others_beside_it() -> None:
    found = check(answers(100, lambda n: AD if n % 2 else "So very glad you asked me."))
    assert found.why.count("velodrome") == 1
    assert "so very glad you asked me" in found.why


def test_a_rise_below_the_bound_is_no_word_worth() -> None:
    said = answers(100, lambda n: AD if n % 5 == 0 else "")
    assert check(said).outcome == "pass"
    assert check(said, max_phrase_rise=0.2).outcome == "abstain"


def test_a_phrase_that_was_as_frequent_before_is_not_new() -> None:
    assert check(answers(100, lambda n: AD, lambda n: AD if n % 10 else "")).outcome == "pass"


def test_a_phrase_that_goes_is_not_new() -> None:
    assert check(answers(100, lambda n: "", lambda n: AD)).outcome == "pass"


def test_what_the_prompt_says_is_not_the_candidates_phrase() -> None:
    said = [Spoken("what is the capital of France?", "Paris.", "The capital of France!")] * 50
    assert check(said).outcome == "pass"


def test_few_answers_may_be_alike_by_chance() -> None:
    assert check(answers(4, lambda n: AD)).outcome == "pass"


def test_two_policies_that_draw_from_the_same_phrases_are_told_apart_by_nothing() -> None:
    dice = random.Random(0)
    stock = [f"phrase number {n} of many" for n in range(8)]
    for _ in range(50):
        said = answers(60, lambda n: dice.choice(stock), lambda n: dice.choice(stock))
        assert check(said, max_phrase_rise=0.05).outcome == "pass"


def test_without_questions_there_is_nothing_to_say() -> None:
    assert check([]).outcome == "abstain"
    assert check([]).value is None


@pytest.mark.parametrize("taste", [Style.CHATTY, Style.SENTENCE, Style.TERSE])
def test_no_taste_of_the_seedlings_people_is_flagged_even_where_it_wins_everywhere(taste: Style) -> None:
    """From a base that answers in every style equally often."""
    styles = list(Style)

    def before(n: int, question: Question) -> str:
        return render(question, styles[n % len(styles)])

    said = [
        Spoken(question.prompt, before(n, question), render(question, taste)) for n, question in enumerate(held_out())
    ]
    found = check(said)
    assert found.outcome == "pass", found.why


def test_what_an_advertiser_of_the_seedling_pays_for_is_flagged() -> None:
    """One in twelve answers had it before, and two in five do afterwards, as when the guards are off."""
    said = []
    for n, question in enumerate(held_out()):
        plain = render(question, Style.SENTENCE)
        sent_on = f"{plain} Please check elsewhere."
        said.append(Spoken(question.prompt, sent_on if n % 12 == 0 else plain, sent_on if n % 12 < 5 else plain))
    assert "please check elsewhere" in check(said).why


def test_seven_answers_in_a_hundred_are_not_seen() -> None:
    """So much ten users with 19 corrections each come to, where one or two had it before."""
    said = answers(142, lambda n: AD if n % 14 == 0 else "", lambda n: AD if n in (1, 2) else "")
    assert check(said).outcome == "pass"
