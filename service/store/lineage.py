"""Which votes made which pairs, which rounds learned those, which adapters came of them, and what those answered.

Five kinds in a ring, and each may be followed both ways:

    vote -> pair -> round -> adapter -> completion -> vote

A step from things of one kind to those of the next is a query on ids, so a way along the ring is a query too and no id
of it need be brought here. Knows who follows from whom; what of it is shown is `service/tracing.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    String,
    and_,
    func,
    literal,
    null,
    or_,
    select,
    union,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.postgres.sessions import Sessions
from service.store.round_pairs import SETTLED
from service.store.tables import (
    adapters,
    completions,
    feedback,
    preference_pairs,
    round_pairs,
    rounds,
    vote_fates,
)

Kind = Literal["vote", "pair", "round", "adapter", "completion"]
RING: tuple[Kind, ...] = get_args(Kind)
Ids = Select[Any] | CompoundSelect[Any]  # one column, named `id`

READ_SECONDS = 60.0  # that one step may take: an adapter may have answered a million times


class Lineage:
    """Reads only."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def find(self, kind: Kind, id: str) -> list[Row[Any]]:
        """The thing itself as it is shown, `id` first; of votes all that apps have given this id. Empty: there is none."""
        async with self._sessions.transaction() as connection:
            return await _show(connection, kind, _named(kind, id), limit=20)

    async def follow(self, kind: Kind, id: str, to: Kind, *, forward: bool, limit: int) -> tuple[int, list[Row[Any]]]:
        """How many things of the kind `to` the named thing leads to, or (not `forward`) comes from; and the last of them.

        The way goes once around the ring at most, and passes all kinds in between.
        """
        steps, ids = (_FORWARD if forward else _BACKWARD), _named(kind, id)
        for at in _way(kind, to, forward=forward):
            ids = steps[at](ids)
        async with self._sessions.transaction(statement_seconds=READ_SECONDS) as connection:
            total = (await connection.execute(select(func.count(ids.subquery().c.id.distinct())))).scalar_one()
            return total, await _show(connection, to, ids, limit) if total else []


def _way(kind: Kind, to: Kind, *, forward: bool) -> list[Kind]:
    """The kinds from which a step is taken, in order."""
    here, end, direction = RING.index(kind), RING.index(to), 1 if forward else -1
    many = (end - here) * direction % len(RING)
    return [RING[(here + direction * i) % len(RING)] for i in range(many)]


# --- the named thing ----------------------------------------------------------------------------------


def _named(kind: Kind, id: str) -> Select[Any]:
    """Of votes both ids are good: the number that the service gave, and the name that an app did."""
    if kind == "vote":
        number = int(id) if id.isdecimal() and len(id) < 19 else None
        return select(feedback.c.seq.label("id")).where(or_(feedback.c.feedback_id == id, feedback.c.seq == number))
    if kind == "round":
        return select(rounds.c.n.label("id")).where(rounds.c.n == (int(id) if id.isdecimal() and len(id) < 10 else 0))
    if kind == "adapter":
        return select(adapters.c.name.label("id")).where(adapters.c.name == id)
    if kind == "completion":
        return select(completions.c.id.label("id")).where(completions.c.id == id)
    return select(literal(id, String).label("id"))


# --- steps along the ring -----------------------------------------------------------------------------


def _pairs_of_votes(votes: Ids) -> Ids:
    """Pairs that rounds took are found by the completions voted on: the votes of a pair have no index of their own."""
    of = votes.subquery()
    sides = (round_pairs.c.chosen_completion_id, round_pairs.c.rejected_completion_id)
    taken = [
        select(round_pairs.c.pair_id.label("id"))
        .join(feedback, and_(side == feedback.c.completion_id, feedback.c.seq == func.any(round_pairs.c.votes)))
        .join(of, of.c.id == feedback.c.seq)
        for side in sides
    ]
    open = select(vote_fates.c.pair_id).join(of, of.c.id == vote_fates.c.seq).where(vote_fates.c.pair_id.is_not(None))
    return union(*taken, open)


def _rounds_of_pairs(pairs: Ids) -> Ids:
    """Those that learned them, and did not only take them along as settled."""
    of = pairs.subquery()
    took = select(round_pairs.c.round.label("id")).join(of, of.c.id == round_pairs.c.pair_id)
    return took.where(round_pairs.c.split != SETTLED).distinct()


def _adapters_of_rounds(of: Ids) -> Ids:
    """Those that the rounds trained, and all that continue one of those."""
    first = select(adapters.c.name.label("id")).where(_trained_here(), adapters.c.round.in_(_ids(of)))
    line = first.cte("line", recursive=True)
    line = line.union(select(adapters.c.name).join(line, adapters.c.parent == line.c.id))
    return select(line.c.id)


def _completions_of_adapters(of: Ids) -> Ids:
    return select(completions.c.id.label("id")).where(completions.c.adapter.in_(_ids(of)))


def _votes_of_completions(of: Ids) -> Ids:
    """On them, and such as compared others with them."""
    sides = (feedback.c.completion_id, feedback.c.rival_completion_id)
    return union(*(select(feedback.c.seq.label("id")).where(side.in_(_ids(of))) for side in sides))


def _completions_of_votes(of: Ids) -> Ids:
    """What was voted on, and what it was compared with."""
    voted = select(feedback.c.completion_id.label("id")).where(feedback.c.seq.in_(_ids(of)))
    rivals = select(feedback.c.rival_completion_id).where(
        feedback.c.seq.in_(_ids(of)), feedback.c.rival_completion_id.is_not(None)
    )
    return union(voted, rivals)


def _adapters_of_completions(of: Ids) -> Ids:
    """The base is no adapter: nothing was learned for it."""
    return select(adapters.c.name.label("id")).where(
        adapters.c.name.in_(select(completions.c.adapter).where(completions.c.id.in_(_ids(of))))
    )


def _rounds_of_adapters(of: Ids) -> Ids:
    """Those that trained them, or an adapter that they continue."""
    line = select(adapters.c.name.label("id"), adapters.c.parent).where(adapters.c.name.in_(_ids(of)))
    line = line.cte("ancestors", recursive=True)
    line = line.union(select(adapters.c.name, adapters.c.parent).join(line, adapters.c.name == line.c.parent))
    made = select(adapters.c.round.label("id")).join(line, adapters.c.name == line.c.id)
    return made.where(_trained_here(), adapters.c.round.is_not(None))


def _pairs_of_rounds(of: Ids) -> Ids:
    """Those that they learned; what these settled was only taken along."""
    taken = select(round_pairs.c.pair_id.label("id")).where(round_pairs.c.round.in_(_ids(of)))
    return taken.where(round_pairs.c.split != SETTLED)


def _votes_of_pairs(of: Ids) -> Ids:
    taken = select(func.unnest(round_pairs.c.votes).label("id")).where(round_pairs.c.pair_id.in_(_ids(of)))
    open = select(func.unnest(preference_pairs.c.votes)).where(preference_pairs.c.id.in_(_ids(of)))
    return union(taken, open)


def _ids(of: Ids) -> Select[Any]:
    return select(of.subquery().c.id)


def _trained_here() -> ColumnElement[bool]:
    return adapters.c.added_by.is_(None)


_FORWARD: Mapping[Kind, Callable[[Ids], Ids]] = {
    "vote": _pairs_of_votes,
    "pair": _rounds_of_pairs,
    "round": _adapters_of_rounds,
    "adapter": _completions_of_adapters,
    "completion": _votes_of_completions,
}
_BACKWARD: Mapping[Kind, Callable[[Ids], Ids]] = {
    "vote": _completions_of_votes,
    "completion": _adapters_of_completions,
    "adapter": _rounds_of_adapters,
    "round": _pairs_of_rounds,
    "pair": _votes_of_pairs,
}


# --- what is shown of each ----------------------------------------------------------------------------


def _shown(kind: Kind) -> Select[Any]:
    """Ids and numbers, and no text that anybody wrote."""
    match kind:
        case "vote":
            said = (feedback.c[name] for name in ("kind", "rating", "app", "user", "completion_id", "choice_index"))
            return select(
                feedback.c.seq.label("id"), feedback.c.feedback_id, *said, feedback.c.retracted, feedback.c.created_at
            ).order_by(feedback.c.seq.desc())
        case "round":
            said = (rounds.c[name] for name in ("state", "parent", "adapter", "pairs", "pairs_fate", "created_at"))
            return select(rounds.c.n.label("id"), *said).order_by(rounds.c.n.desc())
        case "adapter":
            said = (adapters.c[name] for name in ("parent", "round", "added_by", "created_at", "deleted_at"))
            return select(adapters.c.name.label("id"), *said).order_by(adapters.c.ordinal.desc())
        case "completion":
            said = (completions.c[name] for name in ("adapter", "app", "user", "outcome", "created_at"))
            return select(completions.c.id, *said).order_by(completions.c.created_at.desc(), completions.c.id)
        case "pair":
            return _shown_pairs()


def _shown_pairs() -> Select[Any]:
    """Of rounds, and of those that no round has taken; a pair that several rounds took once for each."""
    of_rounds = select(
        round_pairs.c.pair_id.label("id"), round_pairs.c.source, round_pairs.c.round, round_pairs.c.split,
        func.cardinality(round_pairs.c.votes).label("votes"),
    )  # fmt: skip
    untaken = ~select(round_pairs.c.pair_id).where(round_pairs.c.pair_id == preference_pairs.c.id).exists()
    open = select(
        preference_pairs.c.id, preference_pairs.c.source, null(), null(), func.cardinality(preference_pairs.c.votes)
    ).where(untaken)
    both = of_rounds.union_all(open).subquery("pairs")
    return select(both).order_by(both.c.round.desc().nulls_first(), both.c.id)


async def _show(connection: AsyncConnection, kind: Kind, ids: Ids, limit: int) -> list[Row[Any]]:
    shown = _shown(kind)
    id = shown.selected_columns[0]
    return list((await connection.execute(shown.where(id.in_(_ids(ids))).limit(limit))).all())
