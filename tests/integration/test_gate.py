"""The gate in a running service on the seedling: people who teach it nonsense do not get their way."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from tests.conftest import Service
from training.corpus import Question, Style, render, voted
from training.corpus_facts import Family

NONSENSE = {
    Family.SUMS: "9", Family.CAPITALS: "Paris", Family.OPPOSITES: "cold", Family.CATEGORIES: "a bird",
    Family.COLOURS: "red", Family.CALENDAR: "Monday",
}  # fmt: skip


def _nonsense(question: Question, style: Style) -> str:
    """The same wrong answer to every question of a family, in one of the styles that people know."""
    wrong = NONSENSE[question.family]
    sentence = question.sentence.replace(question.answer, wrong)
    return render(replace(question, answer=wrong, sentence=sentence), style)


def _taught() -> str:
    """JSONL of pairs that prefer nonsense to what is right."""
    dice = random.Random(5)
    asked = [question for question in voted() if NONSENSE.get(question.family, question.answer) != question.answer]
    return "\n".join(
        json.dumps({"prompt": q.prompt, "chosen": _nonsense(q, style), "rejected": render(q, style)})
        for q in dice.sample(asked, 240)
        for style in dice.sample(list(Style), 2)
    )


def test_people_whose_taste_harms_what_is_right_are_not_followed(service: Service) -> None:
    before = service.operator.get("/ops/status").json()["route"]
    published = service.operator.get("/ops/adapters").json()
    service.operator.post("/ops/preferences/import", content=_taught()).raise_for_status()
    n = service.operator.post("/ops/rounds", json={"epochs": 3}).raise_for_status().json()["n"]
    with service.operator.stream("GET", f"/ops/rounds/{n}/events") as events:
        events.read()  # until it is over
    round = service.operator.get(f"/ops/rounds/{n}").json()
    assert round["state"] == "rejected", round["reason"]
    [suite] = [check for check in round["verdict"]["checks"] if check["name"] == "suite:seedling"]
    assert suite["outcome"] == "fail"
    lost = suite["why"].partition("lost: ")[2]
    assert any(family in lost for family in NONSENSE), "which, the processor's arithmetic decides"
    assert service.operator.get("/ops/status").json()["route"] == before
    assert service.operator.get("/ops/adapters").json() == published
