"""Is the candidate better than the deployed adapter on pairs that nobody trained on? Paired, and from several sides. Pure.

Pairs of one prompt, or of one person, are not independent, so each prompt and each person is also counted once; and what
people said last is looked at alone, for a taste that changes is seen there first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from service.contracts import Check, Outcome, Slice
from service.gate.evidence import Standing
from service.gate.settings import GateSettings
from service.gate.statistics import sign_test
from training.contracts import RoundReport

NEWEST = 3  # the newest third of the pairs


def held_out(report: RoundReport, standings: Sequence[Standing], settings: GateSettings) -> Check:
    """Fails where the candidate is worse, over all or from one side beyond chance; abstains where chance may explain it.

    A candidate that gains pairs and loses none is better wherever one looks, however few they are.
    """
    current, candidate = report.current, report.candidate
    if current is None or candidate is None or candidate.pairs < settings.min_held_out_pairs:
        pairs = candidate.pairs if candidate is not None else 0
        return Check(
            name="held_out",
            outcome="abstain",
            value=pairs,
            bound=settings.min_held_out_pairs,
            why=f"{pairs} held-out pairs cannot decide; {settings.min_held_out_pairs} are needed",
        )
    gained, lost = report.candidate_correct_current_wrong, report.current_correct_candidate_wrong
    p = sign_test(gained, lost)
    slices = tuple(_slice(name, gains, settings) for name, gains in _sides(standings))
    worse = [slice.name for slice in slices if slice.outcome == "fail"]
    better = (gained > 0 and lost == 0) or p <= settings.held_out_p
    nothing_to_gain = current.accuracy == candidate.accuracy == 1
    outcome: Outcome = "pass" if better or nothing_to_gain else "abstain"
    if worse or candidate.accuracy < current.accuracy:
        outcome = "fail"
    why = (
        f"preference accuracy on {candidate.pairs} held-out pairs, against the deployed adapter's: {gained} only the "
        f"candidate has right, {lost} only the other, p = {p:.2g}"
    )
    if worse:
        why += f"; worse by {', '.join(worse)}"
    elif outcome == "abstain":
        why += f", which chance explains as well (held_out_p = {settings.held_out_p:g}): more pairs are needed"
    return Check(
        name="held_out", outcome=outcome, value=candidate.accuracy, bound=current.accuracy, why=why, slices=slices
    )


def _sides(standings: Sequence[Standing]) -> Iterable[tuple[str, list[int]]]:
    """Name -> what the candidate gained (1), lost (-1) or neither, of each independent part."""
    if not standings:
        return
    yield "prompt", _counted_once(standings, lambda standing: standing.prompt)
    if of_people := [standing for standing in standings if standing.voter is not None]:
        yield "person", _counted_once(of_people, lambda standing: str(standing.voter))
    timed = sorted((s.voted_at, s.gained) for s in standings if s.voted_at is not None)
    if len(timed) >= NEWEST:
        yield "newest", [gained for _, gained in timed[-(len(timed) // NEWEST) :]]


def _counted_once(standings: Iterable[Standing], key: Callable[[Standing], str]) -> list[int]:
    """For each key, which way its pairs go together."""
    net: defaultdict[str, int] = defaultdict(int)
    for standing in standings:
        net[key(standing)] += standing.gained
    return [(total > 0) - (total < 0) for total in net.values()]


def _slice(name: str, gains: Sequence[int], settings: GateSettings) -> Slice:
    won, lost = gains.count(1), gains.count(-1)
    return Slice(
        name=name,
        outcome="fail" if lost > won and sign_test(lost, won) <= settings.worse_p else "pass",
        count=len(gains),
        value=(won - lost) / len(gains),
        bound=0.0,
    )
