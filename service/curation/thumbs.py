"""Thumbs up and thumbs down on answers to one prompt, matched one to one. Pure.

It does not know of comparisons and corrections, which say by themselves what they prefer to what.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.curation.ballots import Answered, Ballot, Person, wordings
from service.votes import ChoiceKey, Rating


@dataclass(frozen=True)
class Rated:
    """A choice on whose label its ballots agree."""

    answer: Answered
    rating: Rating
    ballots: tuple[Ballot, ...]  # in the order of seq; all with this rating

    @property
    def first_seq(self) -> int:
        return self.ballots[0].vote.seq


Matches = list[tuple[Rated, Rated]]  # liked, disliked


def agree(ratings: Sequence[Ballot]) -> tuple[list[Rated], list[Ballot]]:
    """Each choice with the label that the majority gives its answer, over all samples of the very same answer.

    `ratings` in the order of seq. The second list holds the ballots against the majority, and all of a tie. The choices
    come in the order of their first ballot.
    """
    said = wordings(ballot.answer for ballot in ratings)
    of_answer: defaultdict[str, list[Ballot]] = defaultdict(list)
    for ballot in ratings:
        of_answer[said[ballot.answer.key]].append(ballot)
    rated: list[Rated] = []
    contradicted: list[Ballot] = []
    for group in of_answer.values():
        majority = _majority(group)
        of_choice: defaultdict[ChoiceKey, list[Ballot]] = defaultdict(list)
        for ballot in group:
            if ballot.vote.rating is majority:
                of_choice[ballot.answer.key].append(ballot)
            else:
                contradicted.append(ballot)
        if majority is not None:
            rated += [Rated(agreed[0].answer, majority, tuple(agreed)) for agreed in of_choice.values()]
    return sorted(rated, key=lambda choice: choice.first_seq), contradicted


def _majority(group: Iterable[Ballot]) -> Rating | None:
    """Of people, not of ballots: who sees one answer ten times says it once, and last. None: as many up as down."""
    said = {ballot.person: ballot.vote.rating for ballot in group}
    ups = Counter(said.values())[Rating.UP]
    if 2 * ups == len(said):
        return None
    return Rating.UP if 2 * ups > len(said) else Rating.DOWN


def siblings(rated: Sequence[Rated]) -> Matches:
    """What one person liked with what the same person did not, person by person in the order in which they voted."""
    of_person: defaultdict[Person, list[Rated]] = defaultdict(list)
    for choice in rated:
        for person in dict.fromkeys(ballot.person for ballot in choice.ballots):
            of_person[person].append(choice)
    matches: Matches = []
    taken: set[ChoiceKey] = set()
    for choices in of_person.values():
        found = one_to_one([choice for choice in choices if choice.answer.key not in taken])
        taken.update(choice.answer.key for match in found for choice in match)
        matches += found
    return matches


def one_to_one(rated: Iterable[Rated]) -> Matches:
    """The first liked with the first disliked, and so on, until one side has no more."""
    sides: dict[Rating, list[Rated]] = {rating: [] for rating in Rating}
    for choice in rated:
        sides[choice.rating].append(choice)
    return list(zip(sides[Rating.UP], sides[Rating.DOWN], strict=False))


def without(rated: Iterable[Rated], matches: Matches) -> list[Rated]:
    """Those in no match."""
    taken = {choice.answer.key for match in matches for choice in match}
    return [choice for choice in rated if choice.answer.key not in taken]
