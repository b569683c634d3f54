"""Evidence over HTTP: a round's report, its page, release notes, what a replay needs, and what becomes of its pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contracts import AuditEntry, Round, RoundState
from service.dry_run import DryRun
from service.evidence import provenance
from service.evidence.recipe import Recipe
from service.evidence.records import RoundEvidence
from service.report.document import POLICY
from service.store.audit_chain import Chain
from service.store.store import Store
from tests.adapter_files import change_manifest
from tests.fake_trainer import Done, step
from tests.page_reader import Reader
from tests.small_service import Refusal, SmallService, refusal

QUESTIONS = [f"question {n}" for n in range(8)]
HOSTILE = "<script>alert('asked')</script>"
HOW: dict[str, Any] = {
    "objective": "dpo", "beta": 0.5, "seed": 7, "dtype": "float32", "workers": 1, "use_gpu": False, "threads": 3,
    "gradient_checkpointing": "auto", "layout": "shared",
}  # fmt: skip


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    return await small.operator()


async def a_round(small: SmallService, **body: Any) -> Round:
    await small.like(*QUESTIONS)
    round = await small.round(**body)
    assert round.state is RoundState.PROMOTED, round.reason
    return round


def trained_so(round: Round, folder: Path, **how: Any) -> None:
    """What training would have written into the manifest; the fake one writes nothing of it."""
    assert round.adapter is not None
    change_manifest(folder / "adapters" / round.adapter, training=HOW | how)


# --- the report ---------------------------------------------------------------------------------------


async def test_a_round_s_report_has_all_that_is_known(small: SmallService, operator: httpx.AsyncClient) -> None:
    round = await a_round(small, note=HOSTILE)
    answer = await operator.get(f"/ops/rounds/{round.n}/report")
    assert answer.status_code == 200
    found = RoundEvidence.model_validate_json(answer.text)
    assert found.round == round
    assert found.stable == round.adapter
    assert found.adapter is not None and found.adapter.parent == "base"
    assert [event.data["state"] for event in found.timeline if event.kind == "state"][-1] == "promoted"
    assert {step.kind: step.total for step in found.lineage.comes_from}["pair"] == 8
    assert [entry.action for entry in found.audit] == ["promote"]
    assert found.round.environment is not None
    assert found.round.environment["training"] == small.settings.training.model_dump(mode="json")
    assert found.round.environment["training_sha256"] == provenance.source_digest(provenance.ROOT / "training")


async def test_the_report_is_a_page_too(small: SmallService, operator: httpx.AsyncClient) -> None:
    round = await a_round(small, note=HOSTILE)
    answer = await operator.get(f"/ops/rounds/{round.n}/report.html")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-store"
    read = Reader(answer.text)
    assert "script" not in read.elements
    assert HOSTILE in read.text
    assert round.adapter is not None and round.adapter in read.text


async def test_a_round_that_only_began_has_a_report(small: SmallService, operator: httpx.AsyncClient) -> None:
    round = await small.ask_for_round()
    for form in ("report", "report.html"):
        assert (await operator.get(f"/ops/rounds/{round.n}/{form}")).status_code == 200


async def test_release_notes_are_those_of_the_adapter_s_round(small: SmallService, operator: httpx.AsyncClient) -> None:
    round = await a_round(small)
    answer = await operator.get(f"/ops/adapters/{round.adapter}/notes")
    assert answer.headers["content-type"].startswith("text/markdown")
    assert answer.text.startswith(f"# {round.adapter}\n")
    outsider = await small.publish(99)
    assert refusal(await operator.get(f"/ops/adapters/{outsider.name}/notes")) == Refusal(409, "no_round", "name")


# --- replay -------------------------------------------------------------------------------------------


async def test_a_replay_is_told_what_the_round_was_told(
    small: SmallService, operator: httpx.AsyncClient, tmp_path: Path
) -> None:
    round = await a_round(small)
    trained_so(round, tmp_path)
    recipe = Recipe.model_validate_json((await operator.get(f"/ops/rounds/{round.n}/replay")).text)
    assert round.report is not None
    assert recipe.adapter_digest == round.report["adapter_digest"]
    assert (recipe.threads, recipe.spec.seed, recipe.spec.beta) == (3, 7, 0.5)
    told = small.trainer.started[0]
    same = ("round", "snapshot", "pair_digest", "model", "parent", "adapter_ordinal", "lora")
    assert [getattr(recipe.spec, name) for name in same] == [getattr(told, name) for name in same]
    assert recipe.spec.fingerprints == told.fingerprints
    assert recipe.environment == provenance.Environment.model_validate(round.environment)


async def test_the_second_round_s_replay_begins_with_the_first_one_s_adapter(
    small: SmallService, operator: httpx.AsyncClient, tmp_path: Path
) -> None:
    first = await a_round(small)
    await small.like("something new", "and another")
    second = await small.round()
    trained_so(second, tmp_path)
    recipe = Recipe.model_validate_json((await operator.get(f"/ops/rounds/{second.n}/replay")).text)
    assert recipe.spec.parent == small.trainer.started[1].parent
    assert recipe.spec.parent is not None and recipe.spec.parent.name == first.adapter


@pytest.mark.parametrize(
    ("how", "said"),
    [({"use_gpu": True}, "sums have no fixed order"), ({"workers": 2}, "by several workers")],
)
async def test_what_has_no_fixed_order_of_sums_is_not_promised(
    small: SmallService, operator: httpx.AsyncClient, tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    round = await a_round(small)
    trained_so(round, tmp_path, **how)
    answer = await operator.get(f"/ops/rounds/{round.n}/replay")
    assert refusal(answer) == Refusal(409, "not_replayable", "n")
    assert said in answer.json()["error"]["message"]


async def test_what_is_gone_is_the_reason_why_not(
    small: SmallService, operator: httpx.AsyncClient, tmp_path: Path
) -> None:
    queued = await small.ask_for_round()
    answer = await operator.get(f"/ops/rounds/{queued.n}/replay")
    assert refusal(answer) == Refusal(409, "not_replayable", "n")
    assert "has trained no adapter" in answer.json()["error"]["message"]
    await small.rounds.cancel(queued.n, who="tess")
    round = await a_round(small)
    trained_so(round, tmp_path)
    (Path(small.depot.round(round.n)) / "pairs.parquet").unlink()
    answer = await operator.get(f"/ops/rounds/{round.n}/replay")
    assert "its snapshot is gone" in answer.json()["error"]["message"]
    (Path(small.depot.adapters) / str(round.adapter) / "manifest.json").unlink()
    answer = await operator.get(f"/ops/rounds/{round.n}/replay")
    assert "does not say how the adapter was trained" in answer.json()["error"]["message"]


# --- pairs --------------------------------------------------------------------------------------------


async def test_the_pairs_of_a_rolled_back_round_are_released_over_http(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    round = await a_round(small)
    path = f"/ops/rounds/{round.n}/pairs"
    assert refusal(await operator.post(path, json={"fate": "released"})) == Refusal(409, "still_answers", "n")
    await operator.post("/ops/rollback")
    answer = await operator.post(path, json={"fate": "released", "reason": "too curt"})
    assert answer.json() == {"round": round.n, "fate": "released", "pairs": 8}
    assert (await small.store.rounds.get(round.n)).pairs_fate == "released"
    entry = (await operator.get("/ops/audit")).json()["data"][0]
    assert (entry["action"], entry["who"], entry["detail"]["reason"]) == ("pairs_released", "tess", "too curt")
    assert refusal(await operator.post(path, json={"fate": "eaten"})) == Refusal(400, "invalid_value", "fate")
    assert refusal(await operator.post("/ops/rounds/9/pairs", json={"fate": "retired"})).status == 404


# --- the audit log ------------------------------------------------------------------------------------


async def test_the_log_is_paged_verified_and_exported(small: SmallService, operator: httpx.AsyncClient) -> None:
    for n in range(5):
        await small.store.audit.write(who="tess", action="note", subject=str(n), detail={"n": n})
    first = (await operator.get("/ops/audit?limit=2")).json()
    rest = (await operator.get(f"/ops/audit?limit=9&after={first['next']}")).json()
    assert [entry["subject"] for entry in first["data"] + rest["data"]] == ["4", "3", "2", "1", "0"]
    assert rest["next"] is None
    verified = (await operator.get("/ops/audit/verify")).json()
    assert verified == {"entries": 5, "digest": first["data"][0]["digest"], "fault": None}
    lines = (await operator.get("/ops/audit/export")).text.splitlines()
    chain = Chain(verified["digest"]).follow(AuditEntry.model_validate_json(line) for line in lines).ended()
    assert (chain.entries, chain.digest, chain.fault) == (5, verified["digest"], None)
    missing = (await operator.get(f"/ops/audit/verify?kept={'f' * 64}")).json()
    assert "is gone" in missing["fault"]
    assert refusal(await operator.get("/ops/audit/verify?kept=xyz")) == Refusal(400, "invalid_value", "kept")


@pytest.mark.parametrize(
    "path", ["/ops/rounds/1/report", "/ops/rounds/1/report.html", "/ops/rounds/1/replay", "/ops/audit/export"]
)
async def test_an_app_s_key_opens_none_of_it(small: SmallService, operator: httpx.AsyncClient, path: str) -> None:
    app = await small.app()
    answer = await operator.get(path, headers={"authorization": app.headers["authorization"]})
    assert answer.status_code == 403


# --- dry run ------------------------------------------------------------------------------------------


async def dry(operator: httpx.AsyncClient, **body: Any) -> DryRun:
    answer = await operator.post("/ops/rounds", json={"dry_run": True, **body})
    assert answer.status_code == 200, answer.text
    return DryRun.model_validate_json(answer.text)


async def test_before_the_first_round_a_dry_run_guesses(small: SmallService, operator: httpx.AsyncClient) -> None:
    await small.like(*QUESTIONS)
    (small.settings.state / "model").mkdir(exist_ok=True)
    (small.settings.state / "model" / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (small.settings.state / "model" / "model.safetensors").write_bytes(bytes(2_000_000))
    found = await dry(operator)
    assert (found.enough, found.missing, found.people, found.apps) == (True, None, 8, 1)
    assert found.training + found.held_out == 8
    assert (found.estimate.basis, found.estimate.tokens > 0) == ("guess", True)
    assert found.estimate.memory_bytes is not None and found.estimate.memory_bytes > 4_000_000
    assert found.canary is None


async def test_after_a_round_a_dry_run_goes_by_it(store: Store, tmp_path: Path) -> None:
    took: dict[str, Any] = {
        "steps": tuple(step(n, num_tokens=900 * n) for n in range(1, 9)), "pairs_trained": 6,
        "seconds": {"load": 2.0, "train": 7.2, "write": 1.0}, "peak_bytes": 3 << 30,
    }  # fmt: skip
    resumed = Done(took | {"resumed_from": 4})
    small = await SmallService.start(store, tmp_path, [Done(took)], [resumed])
    operator = await small.operator()
    await a_round(small)
    await small.like(*(f"new {question}" for question in QUESTIONS))
    await small.round()
    await small.like(*(f"newer {question}" for question in QUESTIONS))
    found = await dry(operator, epochs=6)
    assert (found.estimate.basis, found.estimate.rounds) == ("rounds", 1), "half a round says nothing of a whole one"
    assert found.estimate.tokens == pytest.approx(7200 * 2 * found.training / 6)
    assert found.estimate.training_seconds == pytest.approx(3 + 7.2 * 2 * found.training / 6)
    assert found.estimate.memory_bytes == 3 << 30
    (past,) = await small.store.past_rounds.last()
    assert (past.tokens, past.examples) == (7200, 6 * 3)
    assert {"queued", "collecting", "training", "judging"} <= set(past.states)
    assert all(seconds >= 0 for seconds in past.states.values())


async def test_a_dry_run_with_a_canary_says_what_harm_it_could_see(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path, sections={"canary": {"steps": [0.05, 1.0]}})
    await small.like(*QUESTIONS)
    found = await dry(await small.operator())
    assert found.canary is not None
    assert found.canary.steps == (0.05,)
    assert found.canary.traffic.users > 0
    assert {sight.share for sight in found.canary.sights} == {0.05}


async def test_a_dry_run_says_what_is_missing_and_refuses_what_a_round_would(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    await small.like(*QUESTIONS)
    short = await dry(operator, min_pairs=20)
    assert not short.enough and short.missing is not None and "12 are missing" in short.missing
    refused = await operator.post("/ops/rounds", json={"dry_run": True, "label_smoothing": 0.1})
    assert refusal(refused) == Refusal(400, "invalid_value", "label_smoothing")
    assert await small.store.rounds.list() == ()
