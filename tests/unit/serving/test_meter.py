"""What a replica counts: the right numbers under the right labels, and no more of them than adapters are loaded."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.contracts import BASE, ReplicaStatus
from serving.http_meter import MOST_REASONS
from serving.meter import MOST_RETIRED, Meter

FIRST, SECOND = "policy-0001-aaaaaaaa", "policy-0002-bbbbbbbb"


def a_status(**fields: object) -> ReplicaStatus:
    given = {"replica": "one", "generation": 3, "stable": BASE, "wanted": (), "loaded": (), "in_flight": {}} | fields
    return ReplicaStatus.model_validate(given)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) -> value; without the times at which series were made."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def exposed(meter: Meter, **status: object) -> dict[tuple[str, ...], float]:
    return samples(meter.expose(a_status(**status)))


def named(meter: Meter) -> set[str]:
    """The adapters that series are of."""
    return {
        sample.labels["adapter"]
        for family in text_string_to_metric_families(meter.expose(a_status()))
        for sample in family.samples
        if "adapter" in sample.labels
    }


def test_a_finished_request_is_counted_with_its_tokens_lengths_and_times() -> None:
    meter = Meter("one")
    meter.loaded(FIRST)
    meter.first_token(FIRST, 0.02)
    meter.next_tokens(FIRST, [0.004])
    meter.ended(FIRST, "finished", 0.3, prompt_tokens=7, answer_tokens=(3, 40))
    found = exposed(meter)
    assert found["heliotrope_chat_requests_total", FIRST, "finished"] == 1
    assert found["heliotrope_chat_tokens_total", FIRST, "prompt"] == 7
    assert found["heliotrope_chat_tokens_total", FIRST, "answer"] == 43
    assert found["heliotrope_chat_time_to_first_token_seconds_bucket", FIRST, "0.01"] == 0
    assert found["heliotrope_chat_time_to_first_token_seconds_bucket", FIRST, "0.025"] == 1
    assert found["heliotrope_chat_inter_token_seconds_sum", FIRST] == pytest.approx(0.004)
    assert found["heliotrope_chat_request_duration_seconds_sum", FIRST] == pytest.approx(0.3)
    assert found["heliotrope_chat_answer_tokens_bucket", FIRST, "4.0"] == 1
    assert found["heliotrope_chat_answer_tokens_count", FIRST] == 2


def test_an_answer_that_broke_off_says_nothing_of_lengths() -> None:
    meter = Meter("one")
    meter.ended(BASE, "cancelled", 0.3, prompt_tokens=7, answer_tokens=(2,))
    found = exposed(meter)
    assert found["heliotrope_chat_requests_total", BASE, "cancelled"] == 1
    assert found["heliotrope_chat_tokens_total", BASE, "answer"] == 2
    assert ("heliotrope_chat_answer_tokens_count", BASE) not in found


def test_how_the_replica_stands_is_exposed_as_it_is_now() -> None:
    meter = Meter("one")
    meter.loaded(FIRST)
    busy = exposed(meter, in_flight={FIRST: 2}, waiting=5)
    assert busy["heliotrope_inflight_requests", FIRST] == 2
    assert busy["heliotrope_inflight_requests", BASE] == 0
    assert busy["heliotrope_waiting_requests",] == 5
    assert busy["heliotrope_replica_route_generation",] == 3
    assert busy["heliotrope_adapter_loaded", FIRST] == 1
    assert exposed(meter)["heliotrope_inflight_requests", FIRST] == 0


def test_phases_of_swaps_are_told_apart() -> None:
    meter = Meter("one")
    meter.swapped("prepare", 0.2, ok=False)
    meter.swapped("flip", 0.001, ok=True)
    found = exposed(meter)
    assert found["heliotrope_adapter_swap_duration_seconds_count", "failed", "prepare"] == 1
    assert found["heliotrope_adapter_swap_duration_seconds_count", "ok", "flip"] == 1


def test_records_and_votes_are_counted_with_what_became_of_them() -> None:
    meter = Meter("one")
    meter.recorded("finished", 0.002, durable=True)
    meter.recorded("finished", 3.0, durable=False)
    meter.voted("rating", "new", 0.004)
    meter.voted("rating", "idempotency_conflict", 0.001)
    meter.voted("rating", "storage_unavailable", 3.0)
    meter.recorded("cancelled", 3.0, durable=False)
    found = exposed(meter)
    assert found["heliotrope_completions_logged_total", "finished"] == 1
    assert found["heliotrope_completions_unlogged_total",] == 1
    assert found["heliotrope_store_write_duration_seconds_count", "completion"] == 1
    assert found["heliotrope_feedback_received_total", "rating", "new"] == 1
    assert found["heliotrope_feedback_received_total", "rating", "idempotency_conflict"] == 1
    assert found["heliotrope_store_write_duration_seconds_count", "feedback"] == 1
    assert found["heliotrope_store_errors_total", "completion"] == 2
    assert found["heliotrope_store_errors_total", "feedback"] == 1


def test_an_unloaded_adapter_is_exposed_once_more_and_then_forgotten() -> None:
    meter = Meter("one")
    meter.loaded(FIRST)
    meter.loaded(SECOND)
    meter.ended(FIRST, "finished", 0.3, prompt_tokens=7, answer_tokens=(3,))
    meter.unloaded(FIRST)
    last = exposed(meter)
    assert last["heliotrope_chat_requests_total", FIRST, "finished"] == 1
    assert last["heliotrope_adapter_loaded", FIRST] == 0
    assert named(meter) == {BASE, SECOND}


def test_what_is_counted_after_the_unload_is_forgotten_too() -> None:
    meter = Meter("one")
    meter.loaded(FIRST)
    meter.unloaded(FIRST)
    meter.expose(a_status())
    meter.ended(FIRST, "finished", 0.3, prompt_tokens=7, answer_tokens=(3,))
    assert FIRST in named(meter)
    assert named(meter) == {BASE}


def test_an_adapter_that_comes_back_is_kept() -> None:
    meter = Meter("one")
    meter.loaded(FIRST)
    meter.unloaded(FIRST)
    meter.loaded(FIRST)
    meter.expose(a_status())
    assert named(meter) == {BASE, FIRST}


@pytest.mark.parametrize("watched", [True, False], ids=["exposed each time", "exposed never"])
def test_a_thousand_swaps_leave_no_more_series_than_one(watched: bool) -> None:
    meter = Meter("one")

    def swap(n: int) -> int:
        """How many lines are exposed after it."""
        adapter = f"policy-{n:04}-{n:08x}"
        meter.loaded(adapter)
        meter.swapped("prepare", 0.1, ok=True)
        meter.swapped("flip", 0.001, ok=True)
        meter.first_token(adapter, 0.01)
        meter.next_tokens(adapter, [0.01])
        meter.ended(adapter, "finished", 0.3, prompt_tokens=7, answer_tokens=(3,))
        meter.unloaded(adapter)
        return len(meter.expose(a_status()).splitlines()) if watched else 0

    lines = {swap(n) for n in range(1000)}
    assert len(lines) == 1
    assert len(named(meter)) == (1 if watched else 1 + MOST_RETIRED)
    assert named(meter) == {BASE}


def test_reasons_of_refusals_stay_few() -> None:
    meter = Meter("one")
    for n in range(1000):
        meter.refused(f"code_{n}")
    reasons = {labels[0] for name, *labels in exposed(meter) if name == "heliotrope_requests_rejected_total"}
    assert len(reasons) == MOST_REASONS + 1
    assert exposed(meter)["heliotrope_requests_rejected_total", "other"] == 1000 - MOST_REASONS


def test_routes_and_methods_that_callers_make_up_are_not_repeated() -> None:
    meter = Meter("one")
    meter.http.answered(None, "BREW", 404, 0.001, 0)
    meter.http.answered("/chat/completions", "POST", 200, 0.5, 900)
    meter.http.answered("/feedback", "POST", 401, 0.001, 9, "invalid_api_key")
    meter.http.disconnected("/chat/completions")
    found = exposed(meter)
    assert found["heliotrope_http_requests_total", "404", "other", "none"] == 1
    assert found["heliotrope_http_requests_total", "200", "POST", "/chat/completions"] == 1
    assert found["heliotrope_http_request_body_bytes_bucket", "1024.0", "/chat/completions"] == 1
    assert found["heliotrope_client_disconnects_total", "/chat/completions"] == 1
    assert found["heliotrope_http_errors_total", "invalid_api_key", "/feedback"] == 1
    assert found["heliotrope_auth_failures_total", "invalid_api_key"] == 1
