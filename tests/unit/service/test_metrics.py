"""`GET /metrics`: right numbers, right names, bounded labels, and an answer whoever is away."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, insert, update

from service.alarms import AlarmKind, ring
from service.contracts import Check, Role, Round, RoundState, Verdict
from service.metrics.merging import exposition, merged
from service.metrics.refusals import MOST_ADAPTERS, RefusalCount
from service.metrics.scrape import Scrape
from service.store.answers import SETTLED
from service.store.store import Store
from service.store.tables import quarantine, rounds
from serving.contracts import Choice, Completion
from tests.small_service import Refusal, SmallService, client, refusal

MakeCompletion = Callable[..., Completion]
StartRound = Callable[..., Awaitable[Round]]
Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """(name, label values in the order of their names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


async def scraped(small: SmallService) -> Samples:
    return samples(await Scrape(small.store, small.host, small.settings.state).text())


# --- several texts as one -----------------------------------------------------------------------------

ONE = """# HELP heliotrope_x_total Things.
# TYPE heliotrope_x_total counter
heliotrope_x_total{kind="a\\"b"} 3.0
# HELP heliotrope_x_created Things.
# TYPE heliotrope_x_created gauge
heliotrope_x_created{kind="a\\"b"} 1.7e+09
"""
TWO = """# HELP heliotrope_x_total Things.
# TYPE heliotrope_x_total counter
heliotrope_x_total{kind="c"} 4.0
# HELP heliotrope_y Waiting.
# TYPE heliotrope_y gauge
heliotrope_y 1.0
"""


def test_each_family_comes_once_with_a_label_that_says_whose_each_series_is() -> None:
    assert exposition(merged({"two": TWO, "one": ONE})) == (
        "# HELP heliotrope_x_total Things.\n"
        "# TYPE heliotrope_x_total counter\n"
        'heliotrope_x_total{kind="a\\"b",replica="one"} 3.0\n'
        'heliotrope_x_total{kind="c",replica="two"} 4.0\n'
        "# HELP heliotrope_y Waiting.\n"
        "# TYPE heliotrope_y gauge\n"
        'heliotrope_y{replica="two"} 1.0\n'
    )


def test_of_nothing_nothing_is_exposed() -> None:
    assert exposition(merged({})) == ""


def test_replicas_that_disagree_on_what_a_metric_is_are_an_error() -> None:
    with pytest.raises(ValueError, match="heliotrope_y is a gauge and, of two, a counter"):
        merged({"one": TWO, "two": TWO.replace("heliotrope_y gauge", "heliotrope_y counter")})


# --- what a scrape answers ----------------------------------------------------------------------------


async def test_every_name_and_unit_follows_the_rules(small: SmallService) -> None:
    await small.like("first question")
    await small.round()
    text = await Scrape(small.store, small.host, small.settings.state).text()
    assert faults_of(text_string_to_metric_families(text)) == []
    assert text.count("# TYPE") == len(set(re.findall(r"# TYPE (\S+)", text)))


def faults_of(families: Any) -> list[str]:
    """What `promtool check metrics` would say, and what our own rules add."""
    found: list[str] = []
    for family in families:
        if not re.fullmatch(r"heliotrope_[a-z0-9]+(_[a-z0-9]+)*", family.name):
            found.append(f"{family.name}: not in snake case with our prefix")
        if not family.documentation.endswith((".", ";")) or len(family.documentation) < 4:
            found.append(f"{family.name}: no help")
        if family.name.endswith(("_count", "_sum", "_bucket", "_created")):
            found.append(f"{family.name}: a suffix that is reserved")
        if family.type != "counter" and family.name.endswith("_total"):
            found.append(f"{family.name}: a {family.type} is no total")
        if re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|kilobytes|percent|counter|gauge)(_|$)", family.name):
            found.append(f"{family.name}: no base unit, or its type in its name")
        for sample in family.samples:
            found += [f"{family.name}: label {name}" for name in sample.labels if not re.fullmatch(r"[a-z0-9_]+", name)]
            found += [
                f"{family.name}: label {name}" for name in sample.labels if name in ("user", "key", "prompt", "app")
            ]
    return found


def test_the_rules_find_what_breaks_them() -> None:
    bad = [Metric("heliotrope_x_ms", "Help.", "gauge"), Metric("other_x", "", "gauge")]
    bad.append(Metric("heliotrope_x_total", "Help.", "gauge"))
    assert len(faults_of(bad)) == 4


async def test_replicas_and_route_are_told(small: SmallService) -> None:
    adapter = await small.publish(7)
    await small.registry.promote(adapter.name, who="tess")
    found = await scraped(small)
    assert found["heliotrope_replicas",] == 2
    assert found["heliotrope_replicas_silent",] == 0
    assert found["heliotrope_replicas_lagging",] == 0
    assert found["heliotrope_adapter_convergence_lag_seconds",] == 0
    assert found["heliotrope_adapter_replicas", adapter.name] == 2
    assert found["heliotrope_adapter_info", adapter.name, "stable", adapter.weights_sha256[:8]] == 1
    assert found["heliotrope_adapter_info", "base", "previous", ""] == 1
    assert found["heliotrope_adapter_active_version",] == 7
    assert found["heliotrope_route_generation",] == 1
    assert found["heliotrope_adapter_swaps_total", "promote"] == 1
    assert found["heliotrope_audit_events_total", "promote"] == 1
    assert found["heliotrope_adapter_loaded", adapter.name, "two"] == 1
    assert found["heliotrope_adapter_swap_duration_seconds_count", "ok", "flip", "one"] == 1
    assert found["heliotrope_replica_route_generation", "one"] == 1


async def test_rollbacks_are_told_apart_by_what_triggered_them(small: SmallService) -> None:
    adapter = await small.publish(1)
    for who in ("tess", "watch of round 3"):
        await small.registry.promote(adapter.name, who="tess")
        await small.registry.rollback(who=who)
    found = await scraped(small)
    assert found["heliotrope_rollbacks_total", "operator"] == 1
    assert found["heliotrope_rollbacks_total", "alarm"] == 1


async def test_a_replica_that_lags_is_counted_with_the_time_since_the_change(
    small: SmallService, database_engine: Engine
) -> None:
    adapter = await small.publish(1)
    small.host.deaf.add("two")
    small.host.after["prepare"] = lambda: asyncio.sleep(0)
    route = await small.store.route.read()
    new = route.model_copy(update={"generation": 1, "stable": adapter.name, "previous": "base"})
    await small.store.route.change(0, new, who="tess", action="promote", subject=adapter.name, detail={})
    found = await scraped(small)
    assert found["heliotrope_replicas_lagging",] == 1
    assert found["heliotrope_adapter_convergence_lag_seconds",] > 0


async def test_rounds_are_counted_by_outcome_with_their_times_and_checks(
    store: Store, small: SmallService, start_round: StartRound, database_engine: Engine
) -> None:
    for state in (RoundState.REJECTED, RoundState.PROMOTED, RoundState.TRAINING):
        round = await start_round(state)
        checks = (Check(name="held_out", outcome="fail" if state is RoundState.REJECTED else "pass", why="w"),)
        verdict = Verdict(promote=False, checks=checks).model_dump(mode="json")
        report = {"steps": [{"loss": 0.7}, {"loss": 0.25, "rewards/margins": 1.5, "kl": None}]}
        with database_engine.begin() as connection:
            values = {"verdict": verdict, "report": report, "attempt": 2}
            connection.execute(update(rounds).where(rounds.c.n == round.n).values(values))
    found = await scraped(small)
    assert found["heliotrope_rounds_total", "promoted"] == 1
    assert found["heliotrope_rounds_total", "rejected"] == 1
    assert found["heliotrope_rounds_total", "failed"] == 0
    assert found["heliotrope_round_state", "training"] == 1
    assert found["heliotrope_round_state", "judging"] == 0
    assert found["heliotrope_round_attempts_total",] == 6
    assert found["heliotrope_round_duration_seconds_count", "promoted"] == 1
    assert found["heliotrope_round_duration_seconds_sum", "promoted"] > 0
    assert found["heliotrope_round_last_success_timestamp_seconds",] == pytest.approx(
        datetime.now(UTC).timestamp(), abs=60
    )
    assert found["heliotrope_gate_results_total", "held_out", "fail"] == 1
    assert found["heliotrope_gate_results_total", "held_out", "pass"] == 2
    assert found["heliotrope_train_loss",] == 0.25
    assert found["heliotrope_train_reward_margin",] == 1.5
    assert ("heliotrope_train_kl",) not in found


async def test_votes_pairs_and_quarantine_are_told_as_sums(
    store: Store, small: SmallService, database_engine: Engine
) -> None:
    await small.like("first question", "second question")
    await small.rounds.overview.bring_up_to_date()
    with database_engine.begin() as connection:
        item = {"kind": "burst", "app": "shop", "user": "ada", "why": "often", "evidence": {}}
        connection.execute(insert(quarantine).values(item))
    await ring(store, AlarmKind.ROLLBACK, "policy-1", "down-votes", {})
    assert (await scraped(small))["heliotrope_alarms_undelivered",] == 0  # nobody has tried
    await store.alarms.claim(1, within=timedelta(hours=1), claim=timedelta(hours=1))
    found = await scraped(small)
    assert found["heliotrope_feedback_effective",] == 4
    assert found["heliotrope_feedback_pending",] == 0
    assert found["heliotrope_pairs_available",] == 2
    assert found["heliotrope_feedback_quarantined", "burst", "held"] == 0
    assert found["heliotrope_alarms_total", "rollback"] == 1
    assert found["heliotrope_alarms_total", "round_failed"] == 0
    assert found["heliotrope_alarms_undelivered",] == 1


async def test_votes_that_are_sent_are_counted_with_what_became_of_them(small: SmallService) -> None:
    (completion,) = await small.like("first question")
    app = await small.app()
    vote = {"completion_id": completion, "rating": "up", "feedback_id": "f"}
    for body in (vote, vote, vote | {"rating": "down"}, vote | {"completion_id": "nobody's", "feedback_id": "g"}):
        await app.post("/feedback", json=body)
    found = await scraped(small)
    counted = {labels[1]: value for name, *labels in found if name == "heliotrope_feedback_received_total"
               for value in [found[(name, *labels)]]}  # fmt: skip
    assert counted == {"new": 1, "repeated": 1, "idempotency_conflict": 1, "completion_not_found": 1}


async def test_the_store_is_told_of(small: SmallService) -> None:
    found = samples(await Scrape(small.store, small.host, small.settings.state, free_bytes=lambda _: 123).text())
    assert found["heliotrope_store_up",] == 1
    assert found["heliotrope_store_ping_seconds",] > 0
    assert found["heliotrope_store_free_bytes",] == 123
    assert found["heliotrope_store_size_bytes",] > 1e6
    assert found["heliotrope_store_schema_version",] >= 5


async def test_without_the_store_the_replicas_are_told_of_and_without_replicas_the_store(
    small: SmallService, tmp_path: Path
) -> None:
    away = Store(f"postgresql+psycopg://heliotrope@/postgres?host={tmp_path}")
    without_store = await scraped(dataclasses.replace(small, store=away))
    assert without_store["heliotrope_store_up",] == 0
    assert ("heliotrope_store_ping_seconds",) not in without_store
    assert without_store["heliotrope_replica_route_generation", "two"] == 0
    small.host.gone = True
    without_replicas = await scraped(small)
    assert without_replicas["heliotrope_replicas_silent",] == 1
    assert without_replicas["heliotrope_replicas",] == 0
    assert without_replicas["heliotrope_store_up",] == 1


# --- over HTTP ----------------------------------------------------------------------------------------


async def test_the_endpoint_takes_keys_for_metrics_and_of_operators(store: Store, small: SmallService) -> None:
    app = small.operations_app()
    answers = {}
    for role in Role:
        answers[role] = await client(app, (await store.keys.issue(role, "prom"))[1]).get("/metrics")
    assert answers[Role.METRICS].status_code == answers[Role.OPERATOR].status_code == 200
    assert answers[Role.METRICS].headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(answers[Role.METRICS].text)["heliotrope_replicas",] == 2
    assert refusal(answers[Role.APP]) == Refusal(403, "insufficient_role")
    assert refusal(await client(app, None).get("/metrics")) == Refusal(401, "invalid_api_key")


async def test_a_key_for_metrics_opens_nothing_else(store: Store, small: SmallService) -> None:
    prometheus = client(small.operations_app(), (await store.keys.issue(Role.METRICS, "prom"))[1])
    assert refusal(await prometheus.get("/ops/status")) == Refusal(403, "insufficient_role")
    assert refusal(await prometheus.get("/ops/alarms")) == Refusal(403, "insufficient_role")


async def test_where_it_is_set_no_key_is_needed(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, sections={"server": {"metrics_without_key": True}})
    anybody = client(small.operations_app(), None)
    assert (await anybody.get("/metrics")).status_code == 200
    assert (await anybody.get("/ops/status")).status_code == 401


async def test_requests_are_counted_by_template_and_status(small: SmallService) -> None:
    operator, app = await small.operator(), await small.app()
    await operator.get("/ops/adapters/policy-0009-00000000")
    await operator.get("/made/up/by/a/caller")
    await app.post("/chat/completions", json={"model": "policy", "messages": [{"role": "user", "content": "hi"}]})
    found = samples((await operator.get("/metrics")).text)
    assert found["heliotrope_http_requests_total", "404", "GET", "conductor", "/ops/adapters/{name}"] == 1
    assert found["heliotrope_http_requests_total", "404", "GET", "conductor", "none"] == 1
    assert found["heliotrope_http_requests_total", "200", "POST", "one", "/chat/completions"] == 1
    assert not any("made" in label for key in found for label in key)


# --- refusals -----------------------------------------------------------------------------------------


def refusals(count: RefusalCount) -> dict[str, tuple[float, float]]:
    """Adapter -> refusals and answers."""
    refused, looked_at = (
        {sample.labels["adapter"]: sample.value for sample in family.samples} for family in count.families()
    )
    return {adapter: (refused[adapter], looked_at[adapter]) for adapter in looked_at}


def answered(make_completion: MakeCompletion, id: str, *texts: str, **fields: Any) -> Completion:
    choices = tuple(Choice(index=i, text=text, token_ids=(1,), finish_reason="stop") for i, text in enumerate(texts))
    # Settled by the next look, and not before the first.
    given = {"choices": choices, "created_at": datetime.now(UTC) - SETTLED + timedelta(seconds=0.5)} | fields
    return make_completion(id, **given)


async def test_refusals_are_counted_once_by_adapter(store: Store, make_completion: MakeCompletion) -> None:
    count = RefusalCount(store.answers)
    old = answered(make_completion, "old", "I’m sorry, but I cannot help.", created_at=datetime.now(UTC) - timedelta(1))
    await store.completions.record(old)
    await count.look()
    assert refusals(count) == {}  # what was there before counts for nobody
    for completion in (
        answered(make_completion, "a", "I’m sorry, but I can’t help with that.", "Gladly.", adapter="base"),
        answered(make_completion, "b", "I cannot assist with that.", adapter="policy-1"),
        answered(make_completion, "c", "I cannot assist with that.", adapter="policy-1", store=False),
        answered(make_completion, "d", "I cannot assist with that.", adapter="policy-1", outcome="cancelled"),
    ):
        await store.completions.record(completion)
    seen = await _looked(count, {"base": (1, 2), "policy-1": (1, 1)})
    await count.look()
    assert refusals(count) == seen


async def _looked(count: RefusalCount, expected: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """After as many looks as it takes until all has settled."""
    while sum(answers for _, answers in refusals(count).values()) < sum(answers for _, answers in expected.values()):
        await count.look()
    assert refusals(count) == expected
    return expected


async def test_adapters_that_have_not_answered_for_long_are_forgotten(
    store: Store, make_completion: MakeCompletion
) -> None:
    count = RefusalCount(store.answers)
    await count.look()
    for n in range(MOST_ADAPTERS + 3):
        await store.completions.record(answered(make_completion, f"c{n}", "Gladly.", adapter=f"policy-{n:04}"))
    while "policy-0018" not in refusals(count):
        await count.look()
    assert len(refusals(count)) == MOST_ADAPTERS
