"""The part of `fake_api.py` that pauses, approves and tells of canaries."""

from __future__ import annotations

from typing import Any

from service.canary.harm import Harm, Usual
from service.canary.outlook import Sights
from service.canary.power import Traffic, table
from service.canary.settings import CanarySettings
from service.canary.state import CanaryState, Seen, Watched, WatchState
from service.contracts import Pause, Round, RoundState
from service.errors import NotFound

Answer = dict[str, Any] | None


def answered(rounds: dict[int, Round], now: Any, method: str, path: list[str], body: Any) -> Answer:
    """None: it is none of these calls."""
    match method, path:
        case "POST", ["ops", "rounds", n, "approve" | "reject" as word]:
            if int(n) not in rounds:
                raise NotFound(f"There is no round {n}.", param="n", code="round_not_found")
            new = {"approved_by": "admin"} if word == "approve" else {"state": RoundState.REJECTED}
            rounds[int(n)] = rounds[int(n)].model_copy(update=new)
            return rounds[int(n)].model_dump(mode="json")
        case "POST", ["ops", "pause"]:
            return Pause(who="admin", reason=body.get("reason"), at=now).model_dump(mode="json")
        case "POST", ["ops", "resume"]:
            return {"was_paused": True}
        case "GET", ["ops", "triggers"]:
            return {
                "pause": None, "triggers": {"new_pairs": 200}, "next_cron": None, "new_pairs": 12,
                "missing": "12 new pairs, 32 are needed (min_pairs): 20 are missing", "waits_for": None,
            }  # fmt: skip
        case "GET", ["ops", "canary", "power"]:
            traffic = Traffic(hours=168, users=16_800, harmed={Harm.DISLIKED: 336})
            settings = CanarySettings(steps=(0.05, 1.0))
            told = Sights(
                adapter="base", traffic=traffic, alpha=0.05, power=0.8, steps=settings.shares,
                sights=table(traffic, settings),
            )  # fmt: skip
            return told.model_dump(mode="json")
    return None


def a_canary(now: Any) -> dict[str, Any]:
    """In its first step, which nothing has harmed."""
    seen = tuple(Seen(harm=harm, candidate=1, stable=19, e_value=0.75, bound=100) for harm in Harm)
    state = CanaryState(
        candidate="new", stable="old", usual=Usual(), step=1, waits_for="12 of 200 requests of this step"
    )
    state = state.begin(0.05, 0.05, now).model_copy(update={"seen": seen, "users": {"candidate": 12, "stable": 240}})
    return state.model_dump(mode="json")


def a_watch(now: Any) -> dict[str, Any]:
    """Of an adapter that was taken back."""
    seen = (Watched(harm=Harm.DISLIKED, rate=0.15, before=0.02, e_value=512, bound=300),)
    return WatchState(
        adapter="new", before="old", began=now, until=now, open=False, users=400, seen=seen, ended="rolled_back",
        why="disliked: 15.0% of 400 users an hour",
    ).model_dump(mode="json")  # fmt: skip
