"""What people may write as an objective, and what they are told when it is not one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.contracts import RoundSpec
from training.objective import ALIASES, PAIRED, UNPAIRED, Objective, Term, parse


@pytest.mark.parametrize(
    ("text", "paired", "unpaired"),
    [
        ("dpo", [Term("dpo")], []),
        ("kto", [], [Term("kto")]),
        ("dpo+kto", [Term("dpo")], [Term("kto")]),
        ("dpo+0.2*nll", [Term("dpo"), Term("nll", 0.2)], []),
        ("0.5*kto + 2 * ipo + hinge", [Term("ipo", 2.0), Term("hinge")], [Term("kto", 0.5)]),
        ("1e-3*apo_zero_unpaired", [], [Term("apo_zero_unpaired", 0.001)]),
        (" rpo ", [Term("dpo"), Term("nll")], []),
    ],
)
def test_a_sum_of_losses(text: str, paired: list[Term], unpaired: list[Term]) -> None:
    assert parse(text) == Objective(tuple(paired), tuple(unpaired))


@pytest.mark.parametrize("name", [*PAIRED, *UNPAIRED])
def test_each_loss_alone_is_an_objective(name: str) -> None:
    objective = parse(name)
    assert objective.paired + objective.unpaired == (Term(name),)
    assert bool(objective.paired) == (name in PAIRED)


@given(
    st.dictionaries(
        st.sampled_from([*PAIRED, *UNPAIRED]), st.floats(0, 1000, exclude_min=True, allow_subnormal=False), min_size=1
    )
)
def test_any_weighted_sum_is_understood_as_written(weights: dict[str, float]) -> None:
    objective = parse(" + ".join(f"{weight!r}*{name}" for name, weight in weights.items()))
    assert {term.loss: term.weight for term in objective.paired + objective.unpaired} == weights


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "unknown loss ''"),
        ("sft", "unknown loss 'sft'.*dpo.*kto.*rpo"),
        ("dpo+", "unknown loss ''"),
        ("dpo nll", "unknown loss 'dpo nll'"),
        ("dpo+rpo", "unknown loss 'rpo'"),
        ("nll*0.2", r"unknown loss '0\.2'"),
        ("dpo+dpo", "'dpo' twice"),
        ("dpo+0.1*kto+2*kto", "'kto' twice"),
        ("much*dpo", "'much' of 'dpo' is not a number"),
        ("2*3*dpo", r"'2\*3' of 'dpo' is not a number"),
        ("*dpo", "'' of 'dpo' is not a number"),
        ("0*dpo", "0 of 'dpo' is not above 0"),
        ("-1*dpo", "-1 of 'dpo' is not above 0"),
        ("1001*dpo", "at most 1000"),
        ("nan*dpo", "nan of 'dpo' is not above 0"),
        ("inf*dpo", "at most 1000"),
    ],
)
def test_what_is_not_understood_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_an_alias_hides_no_loss_and_is_an_objective_itself() -> None:
    assert not ALIASES.keys() & (PAIRED.keys() | UNPAIRED.keys())
    for alias, meaning in ALIASES.items():
        assert parse(alias) == parse(meaning)


def test_pairs_and_thumbs_share_no_loss() -> None:
    assert not PAIRED.keys() & UNPAIRED.keys()


def test_a_rounds_contract_refuses_an_unknown_objective_by_name() -> None:
    with pytest.raises(ValidationError, match="unknown loss 'dop'"):
        RoundSpec.model_validate({"objective": "dop"})


def test_it_is_read_without_torch() -> None:
    code = "import sys, training.objective; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "False"
