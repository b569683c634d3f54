"""From votes to preference pairs, with a reason for each vote that is in none. Pure: no store, no clock, no chance.

One thumbs-up in seven files: before this one `service/api/feedback.py` (the vote is kept), after it
`service/rounds.py` (a round learns from the pairs).

A pair says "of two answers to one prompt, rather this one". One prompt means one rendered prompt, token for token, of
one app: people compare what they saw, and no app's users speak for another's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from service.digest import content_digest
from service.pairs import Funnel, ImportedPair, LeftOut, Pair
from service.votes import Rating, Vote
from serving.contracts import TRUNCATED

ChoiceKey = tuple[str, int]  # (completion_id, choice_index)
Reasons = dict[int, LeftOut]  # seq of a vote -> why it is in no pair
VOTER_DIGITS = 32


@dataclass(frozen=True)
class _Rated:
    """A choice on whose label its votes agree."""

    key: ChoiceKey
    rating: Rating
    votes: tuple[Vote, ...]  # in the order of seq; all with this rating

    @property
    def first_seq(self) -> int:
        return self.votes[0].seq


def build(
    votes: Sequence[Vote], learned: AbstractSet[ChoiceKey], imported: Sequence[ImportedPair], *, thumbs: bool = False
) -> tuple[list[Pair], Funnel, Reasons]:
    """The new pairs sorted by id, the funnel, and why each vote outside of them was left out.

    `votes` are the effective ones, `learned` the choices in pairs of earlier rounds, `imported` the pairs that no
    round has learned yet. With `thumbs`, answers that found no partner are among the pairs, as single thumbs. The
    answer does not depend on the order of any of them.
    """
    reasons: Reasons = {}
    usable = []
    for vote in sorted(votes, key=lambda vote: vote.seq):
        reason = _unusable(vote, learned)
        if reason is None:
            usable.append(vote)
        else:
            reasons[vote.seq] = reason
    rated = _agreed_choices(usable, reasons)
    from_votes = _matched(rated, reasons, thumbs=thumbs)
    from_import = [_imported_pair(pair) for pair in {pair.id: pair for pair in imported}.values()]
    funnel = _funnel(votes, from_votes, from_import, reasons)
    return sorted(from_votes + from_import, key=lambda pair: pair.id), funnel, reasons


def hold_out(pairs: Sequence[Pair], share: float = 0.15) -> set[str]:
    """The ids of the pairs kept for the evaluation: about `share` of the prompts, each with all of its pairs.

    Prompts are ranked by their digest, which is as good as chance and the same on every machine, and in every round:
    a prompt that is held out once tends to stay so. With two prompts or more, neither side is empty. Prompts that
    have single thumbs only are shared out on their own, so that they take no place from the pairs.
    """
    paired = {pair.prompt_digest for pair in pairs if not pair.is_thumb}
    thumbed = {pair.prompt_digest for pair in pairs} - paired
    held_out = _held_out(paired, share) | _held_out(thumbed, share)
    return {pair.id for pair in pairs if pair.prompt_digest in held_out}


def _held_out(prompts: AbstractSet[str], share: float) -> set[str]:
    if len(prompts) < 2:
        return set()
    count = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
    return set(sorted(prompts)[:count])


def _unusable(vote: Vote, learned: AbstractSet[ChoiceKey]) -> LeftOut | None:
    """What is wrong with the vote on its own, whatever the others say."""
    if vote.text is None or vote.token_ids is None:
        return LeftOut.NOT_STORED
    if not vote.text.strip() or not vote.token_ids:
        return LeftOut.EMPTY
    if vote.finish_reason == TRUNCATED:
        return LeftOut.TRUNCATED
    if (vote.completion_id, vote.choice_index) in learned:
        return LeftOut.ALREADY_LEARNED
    return None


def _agreed_choices(votes: Sequence[Vote], reasons: Reasons) -> list[_Rated]:
    """Each choice with the label of its answer's majority, taken over all samples of the very same answer.

    Votes against the majority, and all votes of a tie, are noted as contradicted.
    """
    of_answer: dict[tuple[str, str, tuple[int, ...] | None], list[Vote]] = defaultdict(list)
    for vote in votes:
        of_answer[vote.app, vote.prompt_digest, vote.token_ids].append(vote)
    rated = []
    for group in of_answer.values():
        majority = _majority(group)
        of_choice: dict[ChoiceKey, list[Vote]] = defaultdict(list)
        for vote in group:
            if vote.rating is majority:
                of_choice[vote.completion_id, vote.choice_index].append(vote)
            else:
                reasons[vote.seq] = LeftOut.CONTRADICTED
        rated += [_Rated(key, agreed[0].rating, tuple(agreed)) for key, agreed in of_choice.items()]
    return rated


def _majority(votes: Iterable[Vote]) -> Rating | None:
    """None: as many say up as say down."""
    counts = Counter(vote.rating for vote in votes)
    if counts[Rating.UP] == counts[Rating.DOWN]:
        return None
    return max(counts, key=counts.__getitem__)


def _matched(rated: Iterable[_Rated], reasons: Reasons, *, thumbs: bool) -> list[Pair]:
    """Up with down, one to one within each prompt, in the order in which people voted; the rest has no partner."""
    of_prompt: dict[tuple[str, str], dict[Rating, list[_Rated]]] = defaultdict(
        lambda: {rating: [] for rating in Rating}
    )
    for choice in sorted(rated, key=lambda choice: choice.first_seq):
        vote = choice.votes[0]
        of_prompt[vote.app, vote.prompt_digest][choice.rating].append(choice)
    pairs = []
    for sides in of_prompt.values():
        liked, disliked = sides[Rating.UP], sides[Rating.DOWN]
        matches = min(len(liked), len(disliked))
        pairs += [_pair(chosen, rejected) for chosen, rejected in zip(liked, disliked, strict=False)]
        alone = liked[matches:] + disliked[matches:]
        if thumbs:
            pairs += [_thumb(choice) for choice in alone]
        else:
            reasons.update((vote.seq, LeftOut.NO_PARTNER) for choice in alone for vote in choice.votes)
    return pairs


def _pair(chosen: _Rated, rejected: _Rated) -> Pair:
    best, worst = chosen.votes[0], rejected.votes[0]
    assert (best.app, best.prompt_digest) == (worst.app, worst.prompt_digest), "a pair has one app and one prompt"
    assert best.token_ids != worst.token_ids, "no answer is better than itself"
    return Pair(
        id=content_digest({"origin": "votes", "chosen": chosen.key, "rejected": rejected.key}),
        origin="votes",
        prompt_digest=best.prompt_digest,
        app=best.app,
        chosen=chosen.key,
        rejected=rejected.key,
        votes=tuple(sorted(vote.seq for vote in chosen.votes + rejected.votes)),
        voter=_first_voter(chosen.votes + rejected.votes),
    )


def _thumb(choice: _Rated) -> Pair:
    first, liked = choice.votes[0], choice.rating is Rating.UP
    sides = {"chosen": choice.key if liked else None, "rejected": None if liked else choice.key}
    return Pair(
        id=content_digest({"origin": "votes", **sides}),
        origin="votes",
        prompt_digest=first.prompt_digest,
        app=first.app,
        **sides,
        votes=tuple(vote.seq for vote in choice.votes),
        voter=_first_voter(choice.votes),
    )


def _first_voter(votes: Iterable[Vote]) -> str | None:
    first = min(votes, key=lambda vote: vote.seq)
    return voter(first.app, first.user)


def voter(app: str, user: str | None) -> str | None:
    """Stands for a person without naming them; None where the app named nobody."""
    return None if user is None else content_digest({"app": app, "user": user})[:VOTER_DIGITS]


def _imported_pair(pair: ImportedPair) -> Pair:
    """Keeps the id, which is a digest of the content already, so that the store finds the text again."""
    assert pair.chosen != pair.rejected, "no answer is better than itself"
    return Pair(
        id=pair.id,
        origin="import",
        prompt_digest=content_digest(pair.messages),
        app=None,
        chosen=None,
        rejected=None,
    )


def _funnel(votes: Sequence[Vote], from_votes: Sequence[Pair], imported: Sequence[Pair], reasons: Reasons) -> Funnel:
    counts = Counter(reasons.values())
    thumbs = [pair for pair in from_votes if pair.is_thumb]
    pairs = [pair for pair in from_votes if not pair.is_thumb]
    funnel = Funnel(
        votes=len(votes),
        votes_in_pairs=sum(len(pair.votes) for pair in pairs),
        votes_in_thumbs=sum(len(thumb.votes) for thumb in thumbs),
        left_out={reason.value: counts[reason] for reason in LeftOut if counts[reason]},
        pairs_from_votes=len(pairs),
        pairs_imported=len(imported),
        thumbs=len(thumbs),
    )
    used = funnel.votes_in_pairs + funnel.votes_in_thumbs
    assert funnel.votes == used + sum(funnel.left_out.values()), "every vote is accounted for"
    choices = [key for pair in from_votes for key in (pair.chosen, pair.rejected) if key is not None]
    assert len(choices) == len(set(choices)), "each choice is in at most one pair"
    return funnel
