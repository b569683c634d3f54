"""The store against a plain model of it, in memory: hypothesis draws who does what in which order.

The model is `store_model.py`. A small number of steps by default; `make machine STEPS=10000` takes more.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from service.contracts import RoundState
from service.curation.settings import PreferenceSettings, QuarantineSettings
from service.errors import BadRequest, Conflict, NotFound
from service.matching import Matcher
from service.pairs import ImportedPair, Pair, Source
from service.votes import FeedbackBody, Kind, Rating
from tests.conftest import empty
from tests.unit.service import store_access
from tests.unit.service.store_model import Answered, Model, Voted, record

STEPS = int(os.environ.get("STEPS", "150"))
STEPS_OF_AN_EXAMPLE = 50

APPS = st.sampled_from(["shop", "bank"])
USERS = st.sampled_from([None, "ada", "bob", "eve"])
ANSWERS = st.fixed_dictionaries(
    {
        "app": APPS,
        "user": USERS,
        "prompt": st.integers(0, 1),
        "texts": st.lists(
            st.sampled_from(["yes", "no", "it depends", "perhaps", "certainly", ""]), min_size=1, max_size=3
        ),
        "stored": st.sampled_from([*[True] * 7, False]),
        "finish": st.sampled_from([*["stop"] * 7, "length"]),
    }
)
RECENT = st.integers(0, 11)  # picks one of the latest
OF_RATINGS = {Source.SIBLINGS, Source.SAME_PROMPT, Source.THUMB}
ENDINGS = st.sampled_from([RoundState.PROMOTED, RoundState.REJECTED, RoundState.FAILED, RoundState.CANCELLED])
SUSPICIOUS = QuarantineSettings(burst_votes=20, flips=3, dominance_votes=30)  # so few that it happens

Result = TypeVar("Result")


class StoreMachine(RuleBasedStateMachine):
    """Each rule does the same to the store and to the model; invariants compare them."""

    def __init__(self, runner: asyncio.Runner, url: str, engine: Engine) -> None:
        super().__init__()
        empty(engine)
        self.runner, self.engine = runner, engine
        self.store = self.do(store_access.open_store(url))
        self.matcher = Matcher(self.store, PreferenceSettings(across_users="always"), SUSPICIOUS)
        self.model = Model()
        self.running: int | None = None  # round
        self.count = 0  # of answers and votes
        self.matched = 0  # `count` when it was last looked what follows from them
        self.froze = 0  # `count` when a round last took pairs

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self.everything_has_one_fate()
        finally:
            self.do(self.store.close())

    # --- what happens -------------------------------------------------------------------------------

    @initialize(answers=st.lists(ANSWERS, min_size=3, max_size=6))
    def open_the_doors(self, answers: list[dict[str, Any]]) -> None:
        for answer in answers:
            self.answer(answer)

    @rule(answer=ANSWERS)
    def answer(self, answer: dict[str, Any]) -> None:
        texts, finish, stored = answer["texts"], answer["finish"], answer["stored"]
        answered = Answered(f"c{self.next()}", answer["app"], answer["user"], answer["prompt"], len(texts))
        completion = record(answered, texts, stored, finish)
        self.do(self.store.completions.record(completion))
        self.do(self.store.completions.record(completion))  # again changes nothing
        self.model.completions.append(answered)

    @precondition(lambda self: self.model.completions)
    @rule(which=RECENT, user=USERS)
    def like_one_answer_and_not_the_others(self, which: int, user: str | None) -> None:
        about = self.completion(which)
        for index in range(about.choices):
            rating = Rating.UP if index == which % about.choices else Rating.DOWN
            self.vote(about.app, completion_id=about.id, choice_index=index, user=user, rating=rating)

    @precondition(lambda self: self.model.completions)
    @rule(which=RECENT, choice=st.integers(0, 2), user=USERS, rating=st.sampled_from(Rating))
    def rate(self, which: int, choice: int, user: str | None, rating: Rating) -> None:
        about = self.completion(which)
        self.vote(about.app, completion_id=about.id, choice_index=choice % about.choices, user=user, rating=rating)

    @precondition(lambda self: self.model.completions)
    @rule(
        which=RECENT, rival=RECENT, sides=st.tuples(st.integers(0, 2), st.integers(0, 2)), user=USERS, tie=st.booleans()
    )
    def compare(self, which: int, rival: int, sides: tuple[int, int], user: str | None, tie: bool) -> None:
        one, other = self.completion(which), self.completion(rival)
        keys = (one.id, sides[0] % one.choices), (other.id, sides[1] % other.choices)
        if keys[0] == keys[1]:
            return
        said = {"completion_id": keys[0][0], "choice_index": keys[0][1], "user": user}
        said["preferred_over"] = {"completion_id": keys[1][0], "choice_index": keys[1][1], "tie": tie}
        if one.app != other.app:
            self.refused(NotFound, one.app, said)
        elif one.prompt != other.prompt:
            self.refused(BadRequest, one.app, said)
        else:
            self.vote(one.app, **said)

    @precondition(lambda self: self.model.completions)
    @rule(which=RECENT, choice=st.integers(0, 2), user=USERS, text=st.sampled_from(["yes", "rather so", "no"]))
    def correct(self, which: int, choice: int, user: str | None, text: str) -> None:
        about = self.completion(which)
        self.vote(about.app, completion_id=about.id, choice_index=choice % about.choices, user=user, correction=text)

    @precondition(lambda self: self.model.votes)
    @rule(which=RECENT, rating=st.sampled_from(Rating))
    def change_ones_mind(self, which: int, rating: Rating) -> None:
        """About the same thing again, whatever was said of it."""
        old = self.voted(which)
        said = old.body.model_dump(exclude={"feedback_id", "rating", "correction", "preferred_over"})
        match old.body.kind:
            case Kind.RATING:
                said["rating"] = rating
            case Kind.CORRECTION:
                said["correction"] = f"{old.body.correction}, {rating}"
            case Kind.COMPARISON:
                assert old.body.rival is not None
                said |= dict(zip(("completion_id", "choice_index"), old.body.rival, strict=True))
                said["preferred_over"] = {
                    "completion_id": old.body.completion_id,
                    "choice_index": old.body.choice_index,
                }
        self.vote(old.app, **said)

    @precondition(lambda self: self.model.votes)
    @rule(which=RECENT)
    def say_it_again(self, which: int) -> None:
        vote = self.voted(which)
        receipt, created = self.do(self.store.feedback.put(vote.app, vote.body))
        assert not created
        assert receipt.effective == (vote.key in self.model.effective())

    @precondition(lambda self: self.model.votes)
    @rule(which=RECENT)
    def say_something_else_under_the_same_id(self, which: int) -> None:
        vote = self.voted(which)
        with pytest.raises(Conflict):
            self.do(self.store.feedback.put(vote.app, vote.body.model_copy(update={"comment": "else"})))

    @precondition(lambda self: self.model.completions)
    @rule(which=RECENT, beyond=st.booleans())
    def vote_on_what_was_never_given(self, which: int, beyond: bool) -> None:
        about = self.completion(which)
        app = about.app if beyond else "stranger"
        self.refused(NotFound, app, {"completion_id": about.id, "choice_index": 3 if beyond else 0, "rating": "up"})

    @precondition(lambda self: self.model.votes)
    @rule(which=RECENT)
    def retract(self, which: int) -> None:
        vote = self.voted(which)
        self.do(self.store.feedback.retract(*vote.key))
        self.model.votes[vote.key] = replace(vote, retracted=True)
        with pytest.raises(NotFound):
            self.do(self.store.feedback.retract("stranger", vote.key[1]))

    @precondition(lambda self: len(self.model.imported) < 6)
    @rule(texts=st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=3), thumb=st.booleans())
    def import_pairs(self, texts: list[str], thumb: bool) -> None:
        pairs = [
            ImportedPair(
                id=f"{text}{thumb}",
                messages=({"role": "user", "content": text},),
                chosen="so",
                rejected=None if thumb else "not so",
            )
            for text in texts
        ]
        new = {pair.id for pair in pairs} - self.model.imported
        assert self.do(store_access.take_in(self.store, pairs)) == len(new)
        self.model.imported |= new

    @precondition(lambda self: self.running is None and self.count >= self.froze + 4)
    @rule(share=st.sampled_from([0.3, 1.0]), settled=st.sampled_from([0.0, 0.5]), ending=st.none() | ENDINGS)
    def freeze_a_round(self, share: float, settled: float, ending: RoundState | None) -> None:
        """It takes some of what there is, of that a part without learning it, and ends at once or later."""
        self.froze = self.count
        self.do(self.matcher.catch_up())
        open = self.do(self.store.preferences.open()).pairs
        taken = open[: round(len(open) * share)]
        learned = len(taken) - int(len(taken) * settled)
        self.running = self.do(store_access.freeze(self.store, taken[:learned], settled=taken[learned:]))
        self.model.rounds[self.running] = tuple(taken)
        if ending is not None:
            self.end_the_round(ending, noticed=True)

    @precondition(lambda self: self.running is not None)
    @rule(ending=ENDINGS, noticed=st.booleans())
    def end_the_round(self, ending: RoundState, noticed: bool) -> None:
        """`noticed`: its pairs were taken off the others before."""
        assert self.running is not None
        if noticed:
            self.do(self.matcher.catch_up())
        self.do(store_access.end_round(self.store, self.running, ending))
        if ending in (RoundState.FAILED, RoundState.CANCELLED):
            self.model.without_verdict.add(self.running)
        self.running = None

    @precondition(lambda self: self.count >= 20)
    @rule(user=st.sampled_from(["ada", "bob"]), app=st.none() | APPS)
    def erase(self, user: str, app: str | None) -> None:
        """What they asked and said, and what others said of their answers."""
        self.do(self.matcher.catch_up())
        self.do(store_access.erase(self.store, user, app))
        gone = {a.id for a in self.model.completions if a.user == user and app in (None, a.app)}
        self.model.completions = [a for a in self.model.completions if a.id not in gone]
        for vote in list(self.model.votes.values()):
            theirs = vote.body.user == user and app in (None, vote.app)
            if theirs or gone & {completion_id for completion_id, _ in vote.choices}:
                del self.model.votes[vote.key]

    @precondition(lambda self: self.count >= 20)
    @rule(release=st.booleans())
    def decide_what_is_held(self, release: bool) -> None:
        for item in self.do(self.store.quarantine.list("held"))[:1]:
            status = "released" if release else "dropped"
            self.do(self.store.quarantine.decide(item.id, status, who="tess", reason=None))

    @precondition(lambda self: self.count >= self.matched + 8)
    @rule()
    def match(self) -> None:
        self.matched = self.count
        self.everything_has_one_fate()

    # --- what must be so ----------------------------------------------------------------------------

    @invariant()
    def the_votes_that_count_are_the_last_ones(self) -> None:
        assert store_access.effective(self.engine) == self.model.effective()

    def everything_has_one_fate(self) -> None:
        """After matching, which is the same whether it was done bit by bit or all at once."""
        self.do(self.matcher.catch_up())
        before = store_access.derived(self.engine)
        self.check_pairs(self.do(self.store.preferences.open()).pairs)
        store_access.match_all_anew(self.engine)
        self.do(self.matcher.catch_up())
        assert store_access.derived(self.engine) == before

    def check_pairs(self, open: list[Pair]) -> None:
        effective, seqs = self.model.effective(), store_access.seqs(self.engine)
        known = {answered.id: answered for answered in self.model.completions}
        learned = self.model.learned()
        fates = store_access.fates(self.engine)
        assert fates.keys() == {seqs[key] for key in effective}, "each effective vote has a fate, and nothing else has"
        assert {id for id in fates.values() if id} == {pair.id for pair in open if pair.app is not None}
        assert {pair.id for pair in open}.isdisjoint(pair.id for pair in learned)
        assert {pair.id for pair in open if pair.app is None} == self.model.imported - {pair.id for pair in learned}
        for pair in open:
            sides = [known[key[0]] for key in (pair.chosen, pair.rejected) if key is not None]
            assert len({(side.app, side.prompt) for side in sides} | {(pair.app, s.prompt) for s in sides}) <= 1
            assert set(pair.votes) <= {seqs[key] for key in effective}
            assert (pair.app is None) == (not pair.votes)
        used = Counter(
            key
            for pair in [*open, *learned]
            if pair.source in OF_RATINGS
            for key in (pair.chosen, pair.rejected)
            if key is not None
        )
        assert set(used.values()) <= {1}, "an answer is in one pair made of ratings"
        assert store_access.frozen(self.engine) == {
            n: {pair.id for pair in pairs} for n, pairs in self.model.rounds.items() if pairs
        }

    # --- the same to both ---------------------------------------------------------------------------

    def vote(self, app: str, **said: Any) -> None:
        body = FeedbackBody.model_validate(said | {"feedback_id": f"v{self.next()}"})
        receipt, created = self.do(self.store.feedback.put(app, body))
        assert (receipt.feedback_id, created, receipt.effective) == (body.feedback_id, True, True)
        vote = Voted(app, body)
        self.model.votes[vote.key] = vote

    def refused(self, error: type[Exception], app: str, said: dict[str, Any]) -> None:
        with pytest.raises(error):
            self.do(self.store.feedback.put(app, FeedbackBody.model_validate(said)))

    def completion(self, which: int) -> Answered:
        return self.model.completions[-1 - which % len(self.model.completions)]

    def voted(self, which: int) -> Voted:
        votes = list(self.model.votes.values())
        return votes[-1 - which % len(votes)]

    def next(self) -> int:
        self.count += 1
        return self.count


def test_the_store_does_what_its_model_does(database_url: str, database_engine: Engine) -> None:
    steady = settings(
        settings.get_profile("steady"),
        max_examples=max(1, STEPS // STEPS_OF_AN_EXAMPLE),
        stateful_step_count=STEPS_OF_AN_EXAMPLE,
    )
    with asyncio.Runner() as runner:

        class Here(StoreMachine):
            def __init__(self) -> None:
                super().__init__(runner, database_url, database_engine)

        run_state_machine_as_test(Here, settings=steady)
