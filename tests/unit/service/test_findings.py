"""What the data report finds unusual, and what it says is to be done."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from service.pairs import LeftOut, Pair
from service.report.evidence import SliceVotes, VoteFacts
from service.report.measuring import measure
from service.report.records import Finding, Severity
from tests.data_pairs import NOW, a_funnel, a_pair, a_signature, an_import, evidence

OK, LOOK, ACT = Severity.OK, Severity.LOOK, Severity.ACT
MANY = 40


def found(*pairs: Pair, **fields: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in measure(evidence(pairs, **fields)).findings}


def many(**fields: Any) -> list[Pair]:
    """Pairs with nothing wrong, but for what `fields` say of each number."""
    given = {name: value if callable(value) else lambda n, value=value: value for name, value in fields.items()}
    usual: dict[str, Any] = {
        "chosen_length": lambda n: 100 + n % 2,
        "rejected_length": lambda n: 101 - n % 2,
        "chosen": lambda n: (f"c{n}", n % 2),
        "rejected": lambda n: (f"c{n}", 1 - n % 2),
    }
    return [a_pair(n, **{name: value(n) for name, value in (usual | given).items()}) for n in range(MANY)]


def with_share(share: float, then: Any, otherwise: Any) -> Any:
    """Of the numbers up to MANY this share gets one value, the others the other."""
    return lambda n: then if n < round(share * MANY) else otherwise


def test_sound_data_has_nothing_to_look_at_but_the_size_of_the_held_out_set() -> None:
    pairs = many()
    votes = VoteFacts(
        people_of={2: MANY}, rated={(2, 0): 15, (0, 2): 15, (1, 1): 2}, repeats=30, changes=1,
        slices=[SliceVotes("app", "shop", 80, 50, 30)],
    )  # fmt: skip
    findings = found(*pairs, votes=votes, held_out={pair.id for pair in pairs[:30]})
    assert {name for name, finding in findings.items() if finding.severity is not OK} == {"gate"}
    assert findings["gate"].severity is LOOK
    assert {"amount", "one_voter", "unnamed", "agreement", "length", "position", "leaked_prompts", "age"} < set(
        findings
    )


def test_the_most_urgent_stands_first() -> None:
    findings = measure(evidence(many(voter="ann"))).findings
    order = [finding.severity for finding in findings]
    assert order == sorted(order, key=[ACT, LOOK, OK].index)
    assert order[0] is ACT


def test_of_few_pairs_no_share_is_judged() -> None:
    findings = found(a_pair(0, chosen_length=900), a_pair(1, chosen_length=900))
    assert set(findings) == {"amount", "gate", "age"}


def test_too_few_pairs_name_the_reason_that_costs_most_votes_and_its_remedy() -> None:
    funnel = a_funnel(left_out={"no_partner": 9, "truncated": 2, "already_learned": 80})
    amount = found(funnel=funnel, min_pairs=8)["amount"]
    assert (amount.severity, amount.value, amount.bound) == (ACT, 0, 8)
    assert "no_partner (9)" in amount.says
    assert "n=2" in amount.says
    assert "Wait for more votes" in found(min_pairs=8)["amount"].says


def test_thumbs_are_enough_for_an_objective_that_learns_from_them_alone() -> None:
    funnel = a_funnel(thumbs=9)
    assert found(funnel=funnel, objective="kto", min_pairs=8)["amount"].severity is OK
    assert found(funnel=funnel, objective="dpo+kto", min_pairs=8)["amount"].severity is ACT


def test_a_gate_without_enough_held_out_pairs_cannot_decide() -> None:
    pairs = many()
    gate = found(*pairs, held_out={pair.id for pair in pairs[:3]}, min_held_out_pairs=4)["gate"]
    assert (gate.severity, gate.value, gate.bound) == (ACT, 3, 4)


@pytest.mark.parametrize(("share", "severity"), [(0.15, OK), (0.2, LOOK), (0.35, LOOK), (0.4, ACT), (1.0, ACT)])
def test_one_voter_of_many_pairs_is_found(share: float, severity: Severity) -> None:
    pairs = [
        pair.model_copy(update={"voter": "0123456789abcdef"}) if n < share * MANY else pair
        for n, pair in enumerate(many())
    ]
    finding = found(*pairs, an_import(99))["one_voter"]
    assert (finding.severity, finding.value) == (severity, pytest.approx(share))
    if severity is not OK:
        assert f"(01234567) gives {share:.0%} of the pairs" in finding.says
        assert "preferences.max_pairs_per_user" in finding.says


@pytest.mark.parametrize(("unnamed", "severity"), [(10, OK), (50, LOOK), (90, LOOK)])
def test_votes_that_name_nobody_are_found(unnamed: int, severity: Severity) -> None:
    finding = found(votes=VoteFacts(people_of={1: 100 - unnamed}, unnamed=unnamed))["unnamed"]
    assert (finding.severity, finding.value) == (severity, unnamed / 100)


@pytest.mark.parametrize(
    ("rated", "severity"),
    [
        ({(2, 0): 14, (0, 2): 14, (1, 1): 2}, OK),
        ({(2, 0): 10, (0, 2): 10, (1, 1): 12}, LOOK),
        ({(2, 0): 5, (0, 2): 5, (1, 1): 20}, ACT),
    ],
)
def test_people_who_do_not_agree_are_found(rated: dict[tuple[int, ...], int], severity: Severity) -> None:
    finding = found(votes=VoteFacts(rated=rated, compared={(2, 0, 0): 15, (0, 2, 0): 15}))["agreement"]
    assert finding.severity is severity
    assert "answers" in finding.says, "on comparisons they agree fully"


@pytest.mark.parametrize(("longer", "severity"), [(0.5, OK), (0.65, OK), (0.7, LOOK), (0.8, ACT)])
def test_a_taste_for_long_answers_is_found_where_it_is_no_chance(longer: float, severity: Severity) -> None:
    pairs = many(chosen_length=with_share(longer, 300, 50), rejected_length=100)
    finding = found(*pairs)["length"]
    assert (finding.severity, finding.value) == (severity, pytest.approx(longer))
    assert ("preferences.max_longer_share" in finding.says) == (severity is not OK)


def test_a_taste_for_short_answers_is_found_too() -> None:
    finding = found(*many(chosen_length=10, rejected_length=100))["length"]
    assert finding.severity is ACT
    assert "The shorter answer is the chosen one in 100% of the pairs" in finding.says


@pytest.mark.parametrize(
    ("first", "severity", "word"), [(0.5, OK, "first"), (0.7, ACT, "first"), (0.2, ACT, "later"), (0.33, LOOK, "later")]
)
def test_a_taste_for_one_place_is_found(first: float, severity: Severity, word: str) -> None:
    pairs = many(chosen=with_share(first, ("c", 0), ("c", 1)), rejected=with_share(first, ("c", 1), ("c", 0)))
    finding = found(*pairs)["position"]
    assert finding.severity is severity
    assert f"the {word} one is chosen" in finding.says


def test_copies_left_out_and_copies_kept_are_found() -> None:
    out = [(a_pair(100 + n), LeftOut.NEAR_DUPLICATE) for n in range(MANY)]
    findings = found(*many(signature=with_share(0.3, a_signature(0), ())), left_out=out)
    assert (findings["duplicates"].severity, findings["duplicates"].value) == (ACT, 0.5)
    assert (findings["look_alikes"].severity, findings["look_alikes"].value) == (LOOK, pytest.approx(11 / 40))


def test_a_held_out_prompt_that_is_trained_on_is_found_even_if_it_is_one() -> None:
    pairs = many(prompt_digest=lambda n: f"p{n % (MANY - 1)}")
    finding = found(*pairs, held_out={pairs[0].id})["leaked_prompts"]
    assert (finding.severity, finding.value) == (ACT, 1.0)


def test_held_out_pairs_that_are_known_are_found() -> None:
    pairs = many(signature=with_share(0.1, a_signature(0), ()), prompt_digest=lambda n: f"p{n}")
    findings = found(*pairs, held_out={pair.id for pair in pairs[3:]}, learned_prompts={"p3", "p4"})
    assert (findings["leaked_copies"].severity, findings["leaked_copies"].value) == (LOOK, pytest.approx(1 / 37))
    assert (findings["learned_before"].severity, findings["learned_before"].value) == (LOOK, pytest.approx(2 / 37))


@pytest.mark.parametrize(("days", "severity"), [(1, OK), (60, LOOK), (365, ACT)])
def test_old_pairs_are_found(days: int, severity: Severity) -> None:
    finding = found(*many(voted_at=NOW - timedelta(days=days)))["age"]
    assert (finding.severity, finding.value) == (severity, days)


@pytest.mark.parametrize(
    ("name", "fields", "severity"),
    [
        ("changed_minds", {"votes": VoteFacts(repeats=100, changes=10)}, OK),
        ("changed_minds", {"votes": VoteFacts(repeats=100, changes=25)}, LOOK),
        ("contradicted", {"funnel": a_funnel(many(), left_out={"contradicted": 4})}, OK),
        ("contradicted", {"funnel": a_funnel(many(), left_out={"contradicted": 20})}, LOOK),
        ("contradicted", {"funnel": a_funnel(many(), left_out={"contradicted": 80})}, ACT),
        ("one_sided", {"votes": VoteFacts(slices=[SliceVotes("app", "shop", 100, 60, 40)])}, OK),
        ("one_sided", {"votes": VoteFacts(slices=[SliceVotes("app", "shop", 100, 2, 98)])}, LOOK),
        ("quarantine", {"funnel": a_funnel(left_out={"quarantined": 3})}, LOOK),
    ],
)
def test_votes_that_are_unusual_are_found(name: str, fields: dict[str, Any], severity: Severity) -> None:
    assert found(**fields)[name].severity is severity


def test_a_tag_that_is_liked_less_than_all_is_named_without_what_steers_terminals() -> None:
    slices = [SliceVotes("app", "shop", 200, 150, 50), SliceVotes("tag", "sums\x1b[2J\u202e", 40, 10, 30)]
    finding = found(votes=VoteFacts(slices=slices))["tag"]
    assert finding.severity is LOOK
    assert "'sums[2J' are liked in 25% of 40 thumbs, all answers in 75%" in finding.says


def test_a_tag_with_few_votes_or_as_liked_as_all_is_not() -> None:
    slices = [
        SliceVotes("app", "shop", 200, 150, 50), SliceVotes("tag", "rare", 9, 0, 9), SliceVotes("tag", "usual", 40, 28, 12)
    ]  # fmt: skip
    assert "tag" not in found(votes=VoteFacts(slices=slices))
