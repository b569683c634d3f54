"""What a canary started now could see: the traffic of the last days, and from it the harm of each size and the time it takes."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, ConfigDict

from service.canary.power import POWER, Sight, Traffic, table
from service.canary.settings import CanarySettings
from service.store.store import Store

HOURS = 168.0  # a week has all its days in it


class Sights(BaseModel):
    """`GET /ops/canary/power`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str
    traffic: Traffic
    alpha: float  # chance of stopping a candidate that does no harm
    power: float  # chance that harm of this size is seen after so long
    steps: tuple[float, ...]  # of the settings; empty: no canary, and the table is for half of the users
    sights: tuple[Sight, ...]


async def outlook(store: Store, settings: CanarySettings) -> Sights:
    """Of the adapter that answers now."""
    adapter = (await store.route.read()).stable
    usual = await store.canaries.usual(adapter, timedelta(hours=HOURS))
    traffic = await store.canaries.traffic(adapter, HOURS, usual)
    return Sights(
        adapter=adapter, traffic=traffic, alpha=settings.alpha, power=POWER, steps=settings.shares,
        sights=table(traffic, settings),
    )  # fmt: skip
