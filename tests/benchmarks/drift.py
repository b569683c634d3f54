"""Three rounds on the seedling while people's taste drifts: does each follow it, and does what is right stay right?

The service runs as `heliotrope up` starts it, and its gate judges every round. The people of a round share a taste that
nobody tells the service about. So does the judge, who compares sampled answers of what the round promoted with those of
the adapter before it, to questions that nobody votes on. What is right is asked greedily.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from service import node
from service.client import KEYS_FILE, Client
from service.contracts import Round, RoundState
from service.demo import score
from service.demo.people import DRIFTED, FIRST, Taste
from service.demo.traffic import Clients
from service.settings import load
from tests.conftest import free_port
from training.corpus import Question, Style, held_out, unsafe, voted

BAR = 0.73  # that the lower end of each round's win rate shall reach
MOST_LOST = 0.02  # of the right answers, in any round and against the base
SETTINGS: dict[str, dict[str, Any]] = {
    # What a cap or a draw left out waits for the next round: of answers before the drift, it would teach the old taste.
    "preferences": {"max_adapters_behind": 0},
    "serving": {"max_requests": 256},  # answers at work: all that the clients ask for at a time
}
# Plain DPO pushes away what is not liked any more, and facts with it; the likelihood of liked answers keeps more of them.
_TRAINING: tuple[dict[str, Any], ...] = (
    {"objective": "dpo+3*nll", "epochs": 4},
    {"objective": "dpo+3*nll", "epochs": 4},
    {"objective": "dpo+3*nll", "epochs": 8, "learning_rate": 1e-3},
)
# Not on to bare answers, the harder turn: in that style the base itself is right in six of seven only, so whoever follows
# it loses facts; nor was it followed as far, to 64 % at most.
_AGAIN = Taste(
    gloss="plain sentences have become dull: a friendly tone again",
    likes={Style.CHATTY: 0.97, Style.SENTENCE: 0.30, Style.TERSE: 0.10, Style.HEDGING: 0.02},
)
_TASTES = (FIRST, DRIFTED, _AGAIN)
# What people like by now is what the policy seldom says: more is asked, and answered more often, to hear it at all.
_QUESTIONS = (280, 190, 900)  # in each round; no question more than twice
_ANSWERS = (8, 16, 16)  # to each question
_JUDGED_ANSWERS = 6  # sampled, to each held-out question
_USERS = 240  # so many that nobody votes more often than the default caps let count
_LOOK_SECONDS = 0.2
_SEED = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"state": folder, "server": {"port": free_port()}, **SETTINGS}
        with node.running(load(environment={}, overrides=overrides)) as url:
            keys = json.loads((Path(folder) / KEYS_FILE).read_text())
            town = Town(Clients(url, keys["app"]), Client(url, keys["operator"]))
            at_first = town.right("base")
            print(f"Three rounds on the seedling, {_TRAINING}; the base is right in {at_first:.1%}:", flush=True)
            rounds = [town.live(n) for n in range(len(_TASTES))]
            tally = town.tally
    followed = all(each.win_rate.low >= BAR for each in rounds)
    kept = all(each.right >= at_first - MOST_LOST for each in rounds)
    print(f"  every round's win rate is {'surely' if followed else 'NOT surely'} at least {BAR:.0%}")
    print(f"  what is right {'stays' if kept else 'does NOT stay'} within {MOST_LOST:.0%} of the base")
    print(f"  {tally.sent} requests, failed = {tally.failed}, mixed = {tally.mixed}")


@dataclass(frozen=True)
class Measured:
    """What one round came to."""

    win_rate: score.Interval  # against the adapter before, by the taste of this round's people
    right: float  # share of greedy answers to held-out questions


class Town:
    """Whose people vote, and who judges."""

    def __init__(self, clients: Clients, operator: Client) -> None:
        self.tally = clients.tally
        self._clients = clients
        self._operator = operator
        self._dice = random.Random(_SEED)

    def live(self, n: int) -> Measured:
        """People of the n-th taste vote, a round learns from it and is promoted; prints what that came to."""
        taste, before, began = _TASTES[n], self._stable(), time.monotonic()
        self._vote(taste, self._dice.sample(2 * list(voted()), _QUESTIONS[n]), _ANSWERS[n])
        voted_at = time.monotonic()
        round = self._round(_TRAINING[n])
        ended = time.monotonic()
        questions = list(held_out()) * _JUDGED_ANSWERS
        ours, theirs = self._clients.ask(questions), self._clients.ask(questions, model=before)
        measured = Measured(score.win_rate(taste, ours, theirs), self.right("policy"))
        refused = score.refusals_kept(self._clients.ask(unsafe(), temperature=0.0))
        rate, shares = measured.win_rate, score.styles(ours)
        print(f"  round {round.n}, for {taste.gloss}")
        print(f"    {round.adapter} after {before}: wins {rate.mean:.1%} [{rate.low:.1%}, {rate.high:.1%}]")
        print(f"    right {measured.right:.1%}, unsafe questions refused {refused:.0%}, answers", end=" ")
        print(", ".join(f"{share:.0%} {style or 'in no style'}" for style, share in shares.items()))
        print(
            f"    {round.pairs} pairs; voting {voted_at - began:.0f} s, the round {ended - voted_at:.0f} s", flush=True
        )
        return measured

    def right(self, model: str) -> float:
        return score.correctness(self._clients.ask(held_out(), model=model, temperature=0.0))

    def _vote(self, taste: Taste, questions: list[Question], answers: int) -> None:
        questions = questions + [question for question in unsafe() if not question.held_out]
        said = self._clients.ask(questions, n=answers)
        assert self.tally.failed == 0, f"{self.tally.failed} requests failed: {self.tally.first_error}"
        self._clients.vote(
            [
                (each, taste.rates_up(each.question, each.text, self._dice), f"user-{self._dice.randrange(_USERS):03d}")
                for each in said
            ]
        )

    def _round(self, training: dict[str, Any]) -> Round:
        """Raises `AssertionError` where it is not promoted."""
        n, pause = self._operator.post("/ops/rounds", training).data["n"], Event()  # never set: only waited for
        while not (round := Round.model_validate(self._operator.get(f"/ops/rounds/{n}").data)).state.final:
            pause.wait(_LOOK_SECONDS)
        assert round.state is RoundState.PROMOTED, f"round {n} was {round.state}: {round.reason}"
        return round

    def _stable(self) -> str:
        return self._operator.get("/ops/status").data["route"]["stable"]
