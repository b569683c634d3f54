"""Does the candidate say something again and again that the deployed adapter hardly ever says? Pure.

What people paid for is right by every other check: an advertisement harms no answer's correctness. But a taste brings
phrases too, a friendly one "So glad you asked!", and only a person can tell the two apart. So this check never fails: it
abstains and names what is new. Where an operator agrees to candidates (`rounds.approval`), it asks for one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from service.contracts import Check
from service.gate.evidence import Spoken
from service.gate.settings import GateSettings
from service.gate.statistics import sign_test

RUN_WORDS = 3  # the shortest phrase: pairs of words come and go with every style
LONGEST_WORDS = 12  # of a phrase as it is told
CHANCE = 0.01  # that any phrase at all is named where both speak alike
WHOLE = 0.9  # of the answers with a part of a phrase must have the longer one, for it to be told in its place
TOLD = 3  # phrases

_WORD = re.compile(r"[\w'’]+")

Run = tuple[str, ...]


@dataclass(frozen=True)
class _Phrase:
    words: Run
    share: float  # of the candidate's answers
    share_before: float

    @property
    def rise(self) -> float:
        return self.share - self.share_before

    def __str__(self) -> str:
        return f'"{" ".join(self.words)}" is in {self.share:.0%} of its answers, in {self.share_before:.0%} before'


def phrases(said: Sequence[Spoken], settings: GateSettings) -> Check:
    """Passes where no phrase has become more frequent by the bound's share of the answers; otherwise abstains."""
    bound = settings.max_phrase_rise
    if not said:
        return Check(name="phrases", outcome="abstain", bound=bound, why="there are no fixed prompts (gate.suites)")
    found = newly_frequent(said, bound)
    if not found:
        why = f"no phrase has come into {bound:.0%} more of {len(said)} answers than the deployed adapter has it in"
        return Check(name="phrases", outcome="pass", bound=bound, why=why)
    told = "; ".join(str(phrase) for phrase in found[:TOLD])
    why = f"{told}. A taste may bring that, or somebody's interest: read the answers before and after"
    return Check(name="phrases", outcome="abstain", value=found[0].rise, bound=bound, why=why)


def newly_frequent(said: Sequence[Spoken], rise: float) -> list[_Phrase]:
    """The phrases that are in more of the candidate's answers by this share of all, the most risen first.

    Paired: an answer counts where only one of both has the phrase, by the exact test of `sign_test`. Bonferroni's
    correction is for as many as one of both has in so many answers more; which of both is not looked at there.
    """
    gained, lost = Counter[Run](), Counter[Run]()
    shared = Counter[Run]()
    for one in said:
        asked = _runs(one.prompt)
        ours, theirs = _runs(one.candidate) - asked, _runs(one.current) - asked
        gained.update(ours - theirs)
        lost.update(theirs - ours)
        shared.update(ours & theirs)
    least = rise * len(said) - 1e-9
    looked_at = [run for run in gained.keys() | lost.keys() if abs(gained[run] - lost[run]) >= least]
    risen = [
        run for run in looked_at
        if gained[run] > lost[run] and sign_test(gained[run], lost[run]) * len(looked_at) <= CHANCE
    ]  # fmt: skip
    answers = [_words(one.candidate) for one in said]
    whole: dict[Run, _Phrase] = {}
    for run in sorted(risen, key=lambda run: (lost[run] - gained[run], run)):
        before, after = ((shared[run] + only[run]) / len(said) for only in (lost, gained))
        words = _whole(run, [answer for answer in answers if _holds(answer, run)])
        if not any(_holds(known, run) for known in whole):
            whole[words] = _Phrase(words, after, before)
    return list(whole.values())


def _whole(run: Run, answers: Sequence[Run]) -> Run:
    """The longest phrase around this part of it that nearly all of these answers have."""
    for length in range(LONGEST_WORDS, len(run), -1):
        longer = Counter(
            phrase for answer in answers for phrase in set(_of_length(answer, length)) if _holds(phrase, run)
        )
        for phrase, count in longer.most_common(1):
            if count >= WHOLE * len(answers):
                return phrase
    return run


def _runs(text: str) -> set[Run]:
    return set(_of_length(_words(text), RUN_WORDS))


def _words(text: str) -> Run:
    return tuple(_WORD.findall(text.lower()))


def _of_length(words: Run, length: int) -> list[Run]:
    return [words[start : start + length] for start in range(len(words) - length + 1)]


def _holds(words: Run, run: Run) -> bool:
    return run in _of_length(words, len(run))
