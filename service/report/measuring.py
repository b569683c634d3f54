"""From pairs and counted votes to the numbers of the data report. Pure: no store, no chance, and `now` is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from math import log
from statistics import median

from service.pairs import Funnel, LeftOut, Pair, Source
from service.report.evidence import DAYS_SHOWN, DayVotes, Evidence
from service.report.findings import findings
from service.report.formulas import (
    Unit,
    detectable_win_rate,
    gini,
    pairs_needed,
    pearson,
    reliability,
)
from service.report.lookalikes import BOUND, known, repeated
from service.report.records import (
    Ages,
    Agreement,
    Bin,
    Constancy,
    DataReport,
    Day,
    Leakage,
    Length,
    Likeness,
    Needed,
    PairCounts,
    Position,
    Power,
    Share,
    Voters,
)
from service.report.slices import mean_length_ratio, slices

VOTERS_SHOWN = 20
RATIO_EDGES = tuple(2 ** (half_octave / 2) for half_octave in range(-5, 6))  # chosen to rejected
AGE_EDGES = (1.0, 7.0, 30.0, 90.0, 365.0)  # days
WIN_RATES = (0.55, 0.6, 0.65, 0.73)  # for which the needed pairs are named
SHOWN_TOGETHER = (Source.SIDE_BY_SIDE, Source.SIBLINGS)
SECONDS_A_DAY = 86_400


def measure(evidence: Evidence) -> DataReport:
    """The whole report, findings and all. Thumbs are counted and otherwise left aside: they compare nothing."""
    pairs = [pair for pair in evidence.kept if not pair.is_thumb]
    held_out = [pair for pair in pairs if pair.id in evidence.held_out]
    training = [pair for pair in pairs if pair.id not in evidence.held_out]
    shown, hidden = slices(pairs, evidence.votes.slices)
    report = DataReport(
        made_at=evidence.now,
        objective=evidence.objective,
        min_pairs=evidence.min_pairs,
        min_held_out_pairs=evidence.min_held_out_pairs,
        findings=(),
        funnel=evidence.funnel,
        counts=_counts(evidence, pairs, held_out),
        voters=_voters(evidence, pairs),
        ratings=_agreement(evidence.votes.rated),
        comparisons=_agreement(evidence.votes.compared),
        constancy=Constancy(
            changed=Share.of(evidence.votes.changes, evidence.votes.repeats),
            retracted=Share.of(evidence.votes.retracted, evidence.votes.written),
        ),
        length=_length(pairs),
        position=_position(pairs),
        likeness=_likeness(pairs, evidence.left_out, evidence.funnel),
        leakage=_leakage(training, held_out, evidence),
        ages=_ages(pairs, evidence),
        days=_days(pairs, evidence),
        slices=shown,
        slices_left_out=hidden,
        power=_power(len(held_out)),
    )
    return report.model_copy(update={"findings": findings(report)})


def _counts(evidence: Evidence, pairs: Sequence[Pair], held_out: Sequence[Pair]) -> PairCounts:
    sources = Counter(pair.source for pair in pairs)
    left_out = Counter(reason for pair, reason in evidence.left_out if not pair.is_thumb)
    return PairCounts(
        pairs=len(pairs),
        from_votes=len(pairs) - sources[Source.IMPORT],
        imported=sources[Source.IMPORT],
        thumbs=len(evidence.kept) - len(pairs),
        training=len(pairs) - len(held_out),
        held_out=len(held_out),
        sources={source.value: sources[source] for source in Source if sources[source]},
        left_out={reason: left_out[reason] for reason in LeftOut if left_out[reason]},
    )


def _voters(evidence: Evidence, pairs: Sequence[Pair]) -> Voters:
    votes = evidence.votes
    named = sum(amount * people for amount, people in votes.people_of.items())
    gave = Counter(pair.voter for pair in pairs if pair.voter is not None)
    top, most = min(gave.items(), key=lambda item: (-item[1], item[0]), default=(None, 0))
    return Voters(
        people=sum(votes.people_of.values()),
        top_of_votes=Share.of(max(votes.people_of, default=0), named + votes.unnamed),
        gini_of_votes=gini(votes.people_of),
        unnamed=Share.of(votes.unnamed, named + votes.unnamed),
        people_in_pairs=len(gave),
        top_of_pairs=Share.of(most, gave.total()),
        top_voter=top,
        pairs_of_top=tuple(sorted(gave.values(), reverse=True)[:VOTERS_SHOWN]),
        gini_of_pairs=gini(Counter(gave.values())),
    )


def _agreement(units: Mapping[Unit, int]) -> Agreement:
    found = reliability(units)
    return Agreement(things=found.units, votes=found.votes, raw=found.raw, alpha=found.alpha)


def _length(pairs: Sequence[Pair]) -> Length:
    measured = [pair for pair in pairs if pair.chosen_length > 0 and pair.rejected_length > 0]
    longer = sum(pair.chosen_length > pair.rejected_length for pair in measured)
    shorter = sum(pair.chosen_length < pair.rejected_length for pair in measured)
    lengths = [log(pair.chosen_length) for pair in measured] + [log(pair.rejected_length) for pair in measured]
    chosen = [1.0] * len(measured) + [0.0] * len(measured)
    ratios = [pair.chosen_length / pair.rejected_length for pair in measured]
    return Length(
        chosen_longer=Share.of(longer, longer + shorter),
        mean_ratio=mean_length_ratio(measured),
        correlation=pearson(lengths, chosen),
        ratios=_bins(ratios, RATIO_EDGES),
    )


def _position(pairs: Iterable[Pair]) -> Position:
    """Whoever asks for `n` answers shows them in the order of their index, unless they were shuffled."""
    first = [
        pair.chosen[1] < pair.rejected[1]
        for pair in pairs
        if pair.source in SHOWN_TOGETHER and pair.chosen and pair.rejected and pair.chosen[0] == pair.rejected[0]
    ]
    return Position(first_chosen=Share.of(sum(first), len(first)))


def _likeness(pairs: Sequence[Pair], left_out: Sequence[tuple[Pair, LeftOut]], funnel: Funnel) -> Likeness:
    reasons = Counter(reason for pair, reason in left_out if not pair.is_thumb)
    before = len(pairs) + reasons.total()
    contradicted = funnel.left_out.get(LeftOut.CONTRADICTED, 0)
    return Likeness(
        duplicates=Share.of(reasons[LeftOut.DUPLICATE], before),
        near_duplicates=Share.of(reasons[LeftOut.NEAR_DUPLICATE], before),
        look_alikes=Share.of(repeated(pairs), len(pairs)),
        bound=BOUND,
        contradicted=Share.of(min(contradicted, funnel.votes), funnel.votes),
    )


def _leakage(training: Sequence[Pair], held_out: Sequence[Pair], evidence: Evidence) -> Leakage:
    prompts = {pair.prompt_digest for pair in training}
    return Leakage(
        prompts=Share.of(sum(pair.prompt_digest in prompts for pair in held_out), len(held_out)),
        look_alikes=Share.of(known(held_out, training), len(held_out)),
        learned_before=Share.of(
            sum(pair.prompt_digest in evidence.learned_prompts for pair in held_out), len(held_out)
        ),
    )


def _ages(pairs: Iterable[Pair], evidence: Evidence) -> Ages:
    seconds = [(evidence.now - pair.voted_at).total_seconds() for pair in pairs if pair.voted_at is not None]
    days = [max(second / SECONDS_A_DAY, 0.0) for second in seconds]
    return Ages(
        median_days=median(days) if days else None,
        oldest_days=max(days, default=None),
        days=_bins(days, AGE_EDGES),
    )


def _days(pairs: Iterable[Pair], evidence: Evidence) -> tuple[Day, ...]:
    first = _day(evidence.now) - timedelta(days=DAYS_SHOWN - 1)
    made = Counter(_day(pair.voted_at) for pair in pairs if pair.voted_at is not None)
    voted = {day.day: day for day in evidence.votes.days}
    shown = sorted(day for day in made.keys() | voted.keys() if day >= first)
    return tuple(_one_day(voted.get(day, DayVotes(day)), made[day]) for day in shown)


def _one_day(votes: DayVotes, pairs: int) -> Day:
    return Day(
        day=votes.day,
        up=votes.up,
        down=votes.down,
        comparisons=votes.comparisons,
        corrections=votes.corrections,
        pairs=pairs,
    )


def _day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def _power(held_out: int) -> Power:
    return Power(
        held_out_pairs=held_out,
        win_rate=detectable_win_rate(held_out),
        needed=tuple(Needed(win_rate=rate, pairs=pairs_needed(rate)) for rate in WIN_RATES),
    )


def _bins(values: Iterable[float], edges: Sequence[float]) -> tuple[Bin, ...]:
    """One bin below the first edge, one from the last on, and those between."""
    held = Counter(sum(value >= edge for edge in edges) for value in values)
    bounds = pairwise((None, *edges, None))
    return tuple(Bin(low=low, high=high, pairs=held[place]) for place, (low, high) in enumerate(bounds))
