"""Compares what users wrote down with what is stored. Pure: deeds and rows in, findings out.

lost        acknowledged, but not stored
invented    stored, but never tried, or refused for certain
duplicated  stored more than once
altered     stored otherwise than it was sent: half a row or file, or another's
unmatched   counts, but never came to a fate; or has one and does not count
misordered  what counts of a user's votes on one thing is not the last one that was acknowledged
broken      an answer that must never come
All must be empty. Of what is unknown either is right; what of it is stored is counted as recovered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from service.votes import FeedbackBody, target
from tests.chaos.calls import feedback_id
from tests.chaos.history import Deed, Op, Outcome

Row = Mapping[Any, Any]  # of the table `feedback`
_Thing = tuple[str, str, str]  # target, user, kind


@dataclass(frozen=True)
class Findings:
    lost: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()
    duplicated: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    misordered: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    acknowledged: int = 0  # votes
    unknown: int = 0  # votes without a known outcome
    recovered: int = 0  # of those, the ones that are stored

    @property
    def faults(self) -> list[str]:
        """Every one, in words; none is right."""
        return [
            f"{each.name}: {what}"
            for each in fields(self)
            if isinstance(found := getattr(self, each.name), tuple)
            for what in found
        ]


def check(
    deeds: Sequence[Deed],
    rows: Sequence[Row],
    completions: Iterable[str],
    fates: Iterable[int],
    imported: Mapping[str, int],
) -> Findings:
    """`deeds` of each user in order; `rows` all votes of the run, `completions` the ids of all its completions, `fates`
    the `seq` of every vote that has one, `imported` how many rows of each import."""
    votes = {deed.token: deed for deed in deeds if deed.op is Op.VOTE}
    stored = {str(row["comment"]): row for row in rows}
    unknown = {token for token, vote in votes.items() if vote.outcome is Outcome.UNKNOWN}
    acknowledged = {token for token, vote in votes.items() if vote.acknowledged}
    kept = set(completions)
    answered = {answer["id"] for deed in deeds if deed.op is Op.ASK for answer in deed.answers if "id" in answer}
    imports = {deed.token: len(deed.body["rows"]) for deed in deeds if deed.op is Op.IMPORT}
    taken_in = {deed.token for deed in deeds if deed.op is Op.IMPORT and deed.acknowledged}
    return Findings(
        lost=tuple(
            sorted(acknowledged - stored.keys())
            + sorted(answered - kept)
            + sorted(taken_in - imported.keys())
            + _not_retracted(deeds, rows)
        ),
        invented=tuple(sorted(stored.keys() - acknowledged - unknown) + _retracted_by_nobody(deeds, rows)),
        duplicated=tuple(
            sorted(token for token, times in Counter(row["comment"] for row in rows).items() if times > 1)
        ),
        altered=tuple(
            sorted(t for t, row in stored.items() if t in votes and not _says(row, votes[t]))
            + sorted(token for token, rows in imported.items() if rows != imports.get(token))
        ),
        misordered=tuple(_misordered(deeds, rows)),
        unmatched=tuple(_unmatched(rows, set(fates))),
        broken=tuple(fault for deed in deeds for fault in deed.faults),
        acknowledged=len(acknowledged),
        unknown=len(unknown),
        recovered=len(unknown & stored.keys()),
    )


def _retractions(deeds: Iterable[Deed], *, acknowledged: bool) -> set[str]:
    return {
        deed.body["feedback_id"] for deed in deeds if deed.op is Op.RETRACT and (deed.acknowledged or not acknowledged)
    }


def _not_retracted(deeds: Iterable[Deed], rows: Iterable[Row]) -> list[str]:
    asked = _retractions(deeds, acknowledged=True)
    return [f"the retraction of {r['comment']}" for r in rows if r["feedback_id"] in asked and not r["retracted"]]


def _retracted_by_nobody(deeds: Iterable[Deed], rows: Iterable[Row]) -> list[str]:
    tried = _retractions(deeds, acknowledged=False)
    return [f"the retraction of {r['comment']}" for r in rows if r["retracted"] and r["feedback_id"] not in tried]


def _says(row: Row, vote: Deed) -> bool:
    """Whether every column that comes from the body is as it was sent."""
    body = FeedbackBody.model_validate(vote.body)
    rival = body.rival or (None, None)
    sent = {
        "completion_id": body.completion_id,
        "choice_index": body.choice_index,
        "user": body.user,
        "rating": body.rating,
        "correction": body.correction,
        "tags": list(body.tags),
        "tie": body.tie,
        "rival_completion_id": rival[0],
        "rival_choice_index": rival[1],
        "kind": body.kind,
        "target": target(body),
    }
    given = {answer["feedback_id"] for answer in vote.answers} | ({body.feedback_id} if body.feedback_id else set())
    return all(row[column] == value for column, value in sent.items()) and given <= {row["feedback_id"]}


def _misordered(deeds: Iterable[Deed], rows: Iterable[Row]) -> list[str]:
    """The things whose last word is not the last one that was acknowledged, where that is certain."""
    said = defaultdict[_Thing, list[Deed]](list)
    by_id: dict[str, _Thing] = {}
    for deed in deeds:
        if deed.op is Op.VOTE and deed.outcome is not Outcome.REFUSED:
            said[_thing(deed)].append(deed)
            by_id |= {answer["feedback_id"]: _thing(deed) for answer in deed.answers}
        elif deed.op is Op.RETRACT:
            said[by_id[deed.body["feedback_id"]]].append(deed)
    last = _last(rows)
    return [
        f"{thing}: {effective(words)} was said last, {_counts(last.get(thing))} counts"
        for thing, words in said.items()
        if all(deed.acknowledged for deed in words) and _counts(last.get(thing)) != effective(words)
    ]


def _unmatched(rows: Iterable[Row], fates: set[int]) -> list[str]:
    counting = {row["seq"]: row["comment"] for row in _last(rows).values() if not row["retracted"]}
    no_fate = [f"{comment} has no fate" for seq, comment in counting.items() if seq not in fates]
    return no_fate + [f"the vote with seq {seq} has a fate" for seq in sorted(fates - counting.keys())]


def _last(rows: Iterable[Row]) -> dict[_Thing, Row]:
    return {(row["target"], row["user"], row["kind"]): row for row in sorted(rows, key=lambda row: row["seq"])}


def effective(words: Sequence[Deed]) -> str | None:
    """The token of the vote that counts, of one user's acknowledged votes and retractions on one thing in their order."""
    taken_back = {deed.body["feedback_id"] for deed in words if deed.op is Op.RETRACT}
    votes = [deed for deed in words if deed.op is Op.VOTE]
    return None if not votes or feedback_id(votes[-1]) in taken_back else votes[-1].token


def _thing(vote: Deed) -> _Thing:
    body = FeedbackBody.model_validate(vote.body)
    return target(body), body.user or "", body.kind


def _counts(row: Row | None) -> str | None:
    return None if row is None or row["retracted"] else str(row["comment"])
