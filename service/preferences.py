"""From votes to preference pairs, and what becomes of every vote. Pure: no store, no clock, no chance.

One thumbs-up in seven files: before this one `service/api/feedback.py` (the vote is kept), after it
`service/rounds.py` (a round learns from the pairs).

A pair says "of two answers to one prompt, rather this one". One prompt means one rendered prompt, token for token, of
one app: people compare what they saw, and no app's users speak for another's. Which of the pairs a round takes is
`service/curation/guards.py`'s to say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from service.curation.ballots import Answered, Ballot, PromptVotes, Reasons, admitted
from service.curation.drafts import VOTER_DIGITS, Draft, voter, voters
from service.curation.guards import Selection
from service.curation.likeness import pair_signature
from service.curation.settings import PreferenceSettings
from service.curation.thumbs import Rated, agree, one_to_one, siblings, without
from service.digest import content_digest
from service.pairs import Fate, Funnel, ImportedPair, LeftOut, Pair, Source
from service.votes import ChoiceKey, Kind, Rating

__all__ = [
    "VOTER_DIGITS",
    "Answered",
    "Matched",
    "PromptVotes",
    "from_import",
    "funnel",
    "hold_out",
    "match",
    "unmatched",
    "voter",
]


@dataclass(frozen=True)
class Matched:
    pairs: tuple[Pair, ...]  # sorted by id; rated answers that found no partner are among them, as single thumbs
    fates: dict[int, Fate]  # seq of every vote -> the pair that it is in, or why it is in none


def match(prompt: PromptVotes, settings: PreferenceSettings) -> Matched:
    """The pairs that follow from the votes on one prompt, and the fate of each vote.

    An answer is in at most one pair made of ratings; comparisons and corrections may speak of it again. The answer does
    not depend on the order of the votes.
    """
    ballots, reasons = admitted(prompt)
    drafts: dict[str, Draft] = {}
    for draft in _corrections(prompt, ballots) + _comparisons(prompt, ballots, reasons):
        drafts[draft.id] = draft
    for draft in _ratings(prompt, ballots, settings, reasons):
        if (same := drafts.setdefault(draft.id, draft)) is not draft:
            same.join(draft)  # compared side by side by one, rated by others, with one result
    fates = {seq: Fate(reason=reason) for seq, reason in reasons.items()}
    pairs = []
    for pair_id, draft in sorted(drafts.items()):
        learned = pair_id in prompt.learned_pairs
        fate = Fate(reason=LeftOut.ALREADY_LEARNED) if learned else Fate(pair_id=pair_id)
        fates.update((ballot.vote.seq, fate) for ballot in draft.ballots)
        if not learned:
            pairs.append(draft.pair(prompt))
    assert sorted(fates) == sorted(vote.seq for vote in prompt.votes), "every vote has one fate"
    return Matched(tuple(pairs), fates)


def _corrections(prompt: PromptVotes, ballots: Iterable[Ballot]) -> list[Draft]:
    """The user's text rather than the answer."""
    return [
        Draft(
            Source.CORRECTION, None, ballot.answer, [ballot], correction=ballot, ways=[[voters(prompt.app, [ballot])]]
        )
        for ballot in ballots
        if ballot.vote.kind is Kind.CORRECTION
    ]


def _comparisons(prompt: PromptVotes, ballots: Iterable[Ballot], reasons: Reasons) -> list[Draft]:
    """What most people prefer, of each two choices. Votes against the majority, and all of a draw, are contradicted."""
    of_choices: defaultdict[frozenset[ChoiceKey], defaultdict[ChoiceKey, list[Ballot]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for ballot in ballots:
        if ballot.rival is not None:
            of_choices[frozenset((ballot.answer.key, ballot.rival.key))][ballot.answer.key].append(ballot)
    drafts = []
    for sides in of_choices.values():
        most = max(len(side) for side in sides.values())
        winners = [side for side in sides.values() if len(side) == most]
        for side in sides.values():
            if len(winners) == 1 and side is winners[0]:
                way = [voters(prompt.app, side)]
                drafts.append(Draft(Source.SIDE_BY_SIDE, side[0].answer, side[0].rival, side, ways=[way]))
            else:
                reasons.update((ballot.vote.seq, LeftOut.CONTRADICTED) for ballot in side)
    return drafts


def _ratings(
    prompt: PromptVotes, ballots: Iterable[Ballot], settings: PreferenceSettings, reasons: Reasons
) -> list[Draft]:
    """Up with down, one to one: first what one person saw, then across people; the rest as single thumbs."""
    rated, contradicted = agree([ballot for ballot in ballots if ballot.vote.kind is Kind.RATING])
    reasons.update((ballot.vote.seq, LeftOut.CONTRADICTED) for ballot in contradicted)
    matches = [(Source.SIBLINGS, liked, disliked) for liked, disliked in siblings(rated)]
    rest = without(rated, [(liked, disliked) for _, liked, disliked in matches])
    if settings.across_users == "always" or (settings.across_users == "single_turn" and prompt.single_turn):
        found = one_to_one(rest)
        matches += [(Source.SAME_PROMPT, liked, disliked) for liked, disliked in found]
        rest = without(rest, found)
    return [_rated_pair(prompt, *match) for match in matches] + [_thumb(prompt, choice) for choice in rest]


def _rated_pair(prompt: PromptVotes, source: Source, liked: Rated, disliked: Rated) -> Draft:
    way = [voters(prompt.app, liked.ballots), voters(prompt.app, disliked.ballots)]
    return Draft(source, liked.answer, disliked.answer, [*liked.ballots, *disliked.ballots], ways=[way])


def _thumb(prompt: PromptVotes, choice: Rated) -> Draft:
    """One answer alone compares nobody with anybody, so that it may come from a conversation too."""
    chosen, rejected = (choice.answer, None) if choice.rating is Rating.UP else (None, choice.answer)
    return Draft(Source.THUMB, chosen, rejected, [*choice.ballots], ways=[[voters(prompt.app, choice.ballots)]])


def from_import(imported: ImportedPair) -> Pair:
    """Keeps the id, which is a digest of the content already, so that the store finds the text again."""
    assert imported.chosen != imported.rejected, "no answer is better than itself"
    chosen, rejected = imported.chosen or "", imported.rejected or ""
    asked = [_content(message) for message in imported.messages if message.get("role") == "user"]
    return Pair(
        id=imported.id,
        source=Source.THUMB if imported.is_thumb else Source.IMPORT,
        prompt_digest=content_digest(imported.messages),
        app=None,
        chosen=None,
        rejected=None,
        chosen_length=len(chosen),
        rejected_length=len(rejected),
        signature=pair_signature(asked[-1] if asked else "", chosen, rejected),
    )


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else str(content or "")


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


def unmatched(pairs: Iterable[Pair]) -> dict[str, LeftOut]:
    """Why each single thumb among them is in no pair, where nothing learns from thumbs alone."""
    thumbs = [pair for pair in pairs if pair.is_thumb]
    sides = {(thumb.app, thumb.prompt_digest, thumb.chosen is None) for thumb in thumbs}
    return {
        thumb.id: LeftOut.PERSONAL
        if thumb.app is not None and (thumb.app, thumb.prompt_digest, thumb.chosen is not None) in sides
        else LeftOut.NO_PARTNER
        for thumb in thumbs
    }


def funnel(
    left_out: Mapping[LeftOut, int],
    pairs: Sequence[Pair],
    selection: Selection,
    *,
    thumbs: bool,
    replayed: int = 0,
) -> Funnel:
    """What became of all votes: `left_out` counts those in no pair by reason, `selection` was made from `pairs`.

    `thumbs`: does the objective learn from single thumbs?
    """
    reasons = selection.left_out if thumbs else selection.left_out | unmatched(pairs)
    counts = Counter(left_out)
    used = Counter[bool]()  # is it a thumb -> votes
    for pair in pairs:
        if pair.id in reasons:
            counts[reasons[pair.id]] += len(pair.votes)
        else:
            used[pair.is_thumb] += len(pair.votes)
    kept = [pair for pair in selection.kept if pair.id not in reasons]
    sources = Counter(pair.source for pair in kept if not pair.is_thumb)
    return Funnel(
        votes=used.total() + counts.total(),
        votes_in_pairs=used[False],
        votes_in_thumbs=used[True],
        left_out={reason.value: counts[reason] for reason in LeftOut if counts[reason]},
        pairs_from_votes=sources.total() - sources[Source.IMPORT],
        pairs_imported=sources[Source.IMPORT],
        thumbs=sum(pair.is_thumb for pair in kept),
        pairs_replayed=replayed,
        sources={source.value: sources[source] for source in Source if sources[source]},
        users=len({voter for pair in kept for voter in pair.voters}),
        apps=len({pair.app for pair in kept if pair.app is not None}),
    )
