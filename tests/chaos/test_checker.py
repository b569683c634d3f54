"""The checker finds what it is there to find: else a run without findings would mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.votes import FeedbackBody, target
from tests.chaos.calls import own_id
from tests.chaos.checker import Findings, check
from tests.chaos.history import Deed, History, Op, Outcome, read

ASKED = Deed("ask", Op.ASK, {}, [{"id": "c"}], [Outcome.ACKNOWLEDGED], 1)


def vote(token: str, outcome: Outcome = Outcome.ACKNOWLEDGED, **says: Any) -> Deed:
    body = {"completion_id": "c", "user": "ada", "comment": token, "feedback_id": own_id(token)}
    answers = [{"feedback_id": own_id(token)}] if outcome is Outcome.ACKNOWLEDGED else []
    return Deed(token, Op.VOTE, body | (says or {"rating": "up"}), answers, [outcome], 1)


def retraction(token: str, outcome: Outcome = Outcome.ACKNOWLEDGED) -> Deed:
    return Deed(f"retract {token}", Op.RETRACT, {"feedback_id": own_id(token)}, [{}], [outcome], 1)


def row(seq: int, deed: Deed, **fields: Any) -> dict[str, Any]:
    """As the store keeps the vote."""
    body = FeedbackBody.model_validate(deed.body)
    rival = body.rival or (None, None)
    kept = body.model_dump(include={"feedback_id", "completion_id", "choice_index", "user", "comment", "correction"})
    kept |= {"seq": seq, "kind": body.kind, "target": target(body), "rating": body.rating, "tie": body.tie}
    kept |= {"rival_completion_id": rival[0], "rival_choice_index": rival[1], "tags": list(body.tags)}
    return kept | {"retracted": False} | fields


def faults(deeds: list[Deed], *rows: dict[str, Any]) -> list[str]:
    """All votes that are stored and not retracted have been matched, unless a later one of the same user is there."""
    last = {(row["target"], row["kind"]): row for row in sorted(rows, key=lambda row: row["seq"])}
    return check([ASKED, *deeds], rows, ["c"], [row["seq"] for row in last.values() if not row["retracted"]], {}).faults


A, B = vote("a"), vote("b", rating="down")
COMPARED = vote("a", preferred_over={"choice_index": 1})
AGAIN = vote("b", preferred_over={"choice_index": 0}, choice_index=1)


def test_what_is_stored_as_it_was_said_is_clean() -> None:
    assert faults([A, B], row(1, A), row(2, B)) == []
    assert faults([COMPARED, AGAIN], row(1, COMPARED), row(2, AGAIN)) == []
    assert faults([A, retraction("a")], row(1, A, retracted=True)) == []


def test_an_acknowledged_vote_that_is_not_stored_is_lost() -> None:
    assert "lost: a" in faults([A])


def test_an_acknowledged_completion_that_is_not_stored_is_lost() -> None:
    assert check([ASKED], [], [], [], {}).lost == ("c",)


def test_an_acknowledged_retraction_that_did_not_happen_is_lost() -> None:
    assert "lost: the retraction of a" in faults([A, retraction("a")], row(1, A))


def test_a_vote_that_nobody_sent_is_invented() -> None:
    assert faults([], row(1, A)) == ["invented: a"]


def test_a_vote_that_was_refused_for_certain_is_invented() -> None:
    assert faults([vote("a", Outcome.REFUSED)], row(1, A)) == ["invented: a"]


def test_a_retraction_that_nobody_asked_for_is_invented() -> None:
    assert "invented: the retraction of a" in faults([A], row(1, A, retracted=True))


def test_a_vote_that_is_stored_twice_is_duplicated() -> None:
    assert faults([A], row(1, A), row(2, A)) == ["duplicated: a"]


@pytest.mark.parametrize("column", ["rating", "tags", "choice_index", "user", "target", "feedback_id"])
def test_a_vote_that_is_stored_otherwise_than_it_was_sent_is_altered(column: str) -> None:
    assert "altered: a" in faults([A], row(1, A, **{column: ["other"] if column == "tags" else "other"}))


@pytest.mark.parametrize("words", [[A, B], [COMPARED, AGAIN]], ids=["ratings", "comparisons"])
def test_the_last_acknowledged_word_on_a_thing_is_what_counts(words: list[Deed]) -> None:
    assert [fault.split(":")[0] for fault in faults(words, row(2, words[0]), row(1, words[1]))] == ["misordered"]


@pytest.mark.parametrize("stored", [True, False])
def test_of_what_is_unknown_either_is_right(stored: bool) -> None:
    unknown = vote("b", Outcome.UNKNOWN, rating="down")
    rows = [row(1, A)] + ([row(2, unknown)] if stored else [])
    found = check([ASKED, A, unknown], rows, ["c"], [rows[-1]["seq"]], {})
    assert found == Findings(acknowledged=1, unknown=1, recovered=int(stored))


def test_a_vote_that_counts_and_has_no_fate_is_unmatched() -> None:
    assert check([ASKED, A], [row(1, A)], ["c"], [], {}).faults == ["unmatched: a has no fate"]


def test_a_vote_that_does_not_count_and_has_a_fate_is_unmatched() -> None:
    rows = [row(1, A), row(2, B)]
    assert check([ASKED, A, B], rows, ["c"], [1, 2], {}).faults == ["unmatched: the vote with seq 1 has a fate"]


@pytest.mark.parametrize(("rows", "fault"), [(0, ["lost: f"]), (1, ["altered: f"]), (2, []), (3, ["altered: f"])])
def test_a_file_is_imported_whole_or_not_at_all(rows: int, fault: list[str]) -> None:
    file = Deed("f", Op.IMPORT, {"rows": [{}, {}]}, [{}], [Outcome.ACKNOWLEDGED], 1)
    assert check([file], [], [], [], {"f": rows} if rows else {}).faults == fault


def test_a_broken_answer_is_a_finding() -> None:
    assert faults([Deed("a", Op.VOTE, A.body, [], [Outcome.BROKEN], 1, ["vote: 500"])]) == ["broken: vote: 500"]


def test_a_history_says_what_its_writer_could_not(tmp_path: Path) -> None:
    """The user was killed after the first try of its second call, and its successor was acknowledged the third."""
    path = tmp_path / "ada.history"
    first = History(path)
    first.end(first.attempt("1", Op.VOTE, {}), Outcome.ACKNOWLEDGED, {"feedback_id": "x"})
    first.attempt("2", Op.VOTE, {})
    first.attempt("3", Op.VOTE, {})
    first.close()
    second = History(path)
    second.end(second.attempt("3", Op.VOTE, {}), Outcome.ACKNOWLEDGED, {"feedback_id": "y"})
    second.close()
    deeds = read(path)
    assert [deed.token for deed in deeds] == ["1", "2", "3"]
    assert [deed.outcome for deed in deeds] == [Outcome.ACKNOWLEDGED, Outcome.UNKNOWN, Outcome.ACKNOWLEDGED]
    assert [deed.answers for deed in deeds] == [[{"feedback_id": "x"}], [], [{"feedback_id": "y"}]]
