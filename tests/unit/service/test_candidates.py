"""`POST /ops/adapters`: what comes in, what is turned away at the door, and how the rest is measured and judged."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.contracts import Role, RoundState
from service.store.store import Store
from serving.adapters import CONFIG, MANIFEST, WEIGHTS, sha256_of
from serving.contracts import BASE
from tests.adapter_files import change_config, change_manifest, change_weights, flip_byte, read_json, write_adapter
from tests.fake_trainer import Done, evaluation
from tests.small_service import MAX_ADAPTER_BYTES, MAX_BODY_BYTES, Refusal, SmallService, client, refusal
from training.adapter import read_adapter
from training.contracts import HELD_OUT
from training.snapshot import iterate

ADAPTERS = "/ops/adapters"
QUESTIONS = [f"question {number}" for number in range(4)]


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path / "state")


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    """The operator `tess` with her key."""
    return await small.operator()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An adapter that was trained elsewhere on the served base, with the manifest that its trainer wrote."""
    directory = tmp_path / "outside"
    write_adapter(directory, 33)
    return directory


def packed(directory: Path, *names: str, change: Callable[[tarfile.TarInfo], Any] = lambda member: None) -> bytes:
    """The named files, or all, as a tar; `change` spoils each member's header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names or sorted(file.name for file in directory.iterdir()):
            content = (directory / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            change(member)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _uploads(small: SmallService) -> list[str]:
    folder = small.settings.uploads
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


# --- an adapter that comes in -------------------------------------------------------------------------


async def test_an_adapter_from_outside_is_measured_judged_and_promoted_like_any_other(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    await small.like(*QUESTIONS)
    began = await operator.post(f"{ADAPTERS}?note=by%20hand", content=packed(outside))
    assert began.status_code == 202
    candidate = began.json()["candidate"]
    assert (candidate["name"], candidate["assumed_base"]) == (read_json(outside / MANIFEST)["name"], False)
    assert (began.json()["requested_by"], began.json()["note"]) == ("tess", "by hand")
    [entry] = await small.store.audit.list()
    assert (entry.who, entry.action, entry.subject, entry.detail["reason"]) == ("tess", "add", "round 1", "by hand")
    ended = await small.finish(await small.store.rounds.get(1))
    assert ended.state is RoundState.PROMOTED
    [spec] = small.trainer.started
    assert spec.candidate == candidate["directory"]
    assert {row.split for row in list(iterate(Path(spec.snapshot)))} == {HELD_OUT}
    assert await small.answers_by() == {ended.adapter}
    adapter = (await operator.get(f"{ADAPTERS}/{ended.adapter}")).json()
    assert (adapter["added_by"], adapter["round"], adapter["parent"]) == ("tess", 1, BASE)
    assert adapter["weights_sha256"] == sha256_of(outside / WEIGHTS)
    checks = {check["name"]: check["outcome"] for check in adapter["verdict"]["checks"]}
    assert checks.keys() > {"integrity", "loadable", "outside", "held_out"}
    assert not checks.keys() & {"finite", "step0", "learned"}, "how it was trained is not known here"


async def test_what_it_was_judged_by_is_still_new(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    await small.like(*QUESTIONS)
    await small.like(QUESTIONS[0])
    await operator.post(ADAPTERS, content=packed(outside))
    judged = await small.finish(await small.store.rounds.get(1))
    assert judged.pairs == 4
    preview = await small.rounds.preview()
    assert (preview.pairs, preview.left_out) == (4, {"duplicate": 2}), "and so is what doubles one of them"
    after = await small.round(replay=0.5)
    assert (after.state, after.pairs, after.parent) == (RoundState.PROMOTED, 4, judged.adapter)
    assert (await small.store.adapters.get(str(after.adapter))).added_by is None


async def test_without_anything_to_judge_it_by_nothing_is_promoted(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    await operator.post(ADAPTERS, content=packed(outside))
    ended = await small.finish(await small.store.rounds.get(1))
    assert ended.state is RoundState.REJECTED
    assert str(ended.reason).startswith("held_out: 0 held-out pairs cannot decide")
    assert await small.store.adapters.list() == ()


async def test_one_that_answers_worse_is_rejected(store: Store, tmp_path: Path, outside: Path) -> None:
    worse = Done({"candidate": evaluation(accuracy=0.1)})
    small = await SmallService.start(store, tmp_path / "state", [worse])
    await small.like(*QUESTIONS)
    await (await small.operator()).post(ADAPTERS, content=packed(outside))
    ended = await small.finish(await small.store.rounds.get(1))
    assert (ended.state, ended.adapter) == (RoundState.REJECTED, None)


async def test_it_stands_on_the_published_adapter_that_it_says_to_continue(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    await small.like(*QUESTIONS)
    first = await small.round()
    await small.like(*(f"more {question}" for question in QUESTIONS))
    change_manifest(outside, parent=first.adapter)
    await operator.post(ADAPTERS, content=packed(outside))
    ended = await small.finish(await small.store.rounds.get(2))
    assert (await small.store.adapters.get(str(ended.adapter))).parent == first.adapter


# --- without a manifest -------------------------------------------------------------------------------


async def test_an_adapter_as_peft_writes_it_needs_somebody_to_vouch_for_its_base(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    (outside / MANIFEST).unlink()
    refused = await operator.post(ADAPTERS, content=packed(outside))
    assert refusal(refused) == Refusal(422, "base_unknown", MANIFEST)
    assert "--assume-base" in refused.json()["error"]["message"]
    assert _uploads(small) == []
    await small.like(*QUESTIONS)
    answer = await operator.post(f"{ADAPTERS}?assume_base=true", content=packed(outside))
    assert (answer.json()["candidate"]["name"], answer.json()["candidate"]["assumed_base"]) == (None, True)
    assert (await small.finish(await small.store.rounds.get(1))).state is RoundState.PROMOTED


async def test_nobody_can_vouch_against_a_manifest(operator: httpx.AsyncClient, outside: Path) -> None:
    change_manifest(outside, base_model="0" * 64)
    refused = await operator.post(f"{ADAPTERS}?assume_base=true", content=packed(outside))
    assert refusal(refused) == Refusal(422, "adapter_rejected")
    assert "another base model" in refused.json()["error"]["message"]


# --- turned away at the door --------------------------------------------------------------------------


def _linked(member: tarfile.TarInfo) -> None:
    member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0


def _renamed(name: str) -> Callable[[tarfile.TarInfo], None]:
    return lambda member: setattr(member, "name", name.format(member.name))


@pytest.mark.parametrize(
    "change",
    [_linked, _renamed("../{}"), _renamed("/{}"), _renamed("./{}"), _renamed("folder/{}"), _renamed("evil.py")],
    ids=["link", "up", "absolute", "dot", "folder", "other"],
)
async def test_only_the_files_of_an_adapter_come_in(
    small: SmallService, operator: httpx.AsyncClient, outside: Path, change: Callable[[tarfile.TarInfo], None]
) -> None:
    refused = await operator.post(ADAPTERS, content=packed(outside, change=change))
    assert refusal(refused)[:2] == (400, "invalid_member")
    assert _uploads(small) == []
    assert await small.store.rounds.list() == ()


async def test_a_file_comes_once(operator: httpx.AsyncClient, outside: Path) -> None:
    refused = await operator.post(ADAPTERS, content=packed(outside, CONFIG, CONFIG))
    assert refusal(refused) == Refusal(400, "invalid_member", CONFIG)


@pytest.mark.parametrize(("sent", "missing"), [((CONFIG, MANIFEST), WEIGHTS), ((WEIGHTS,), CONFIG)])
async def test_a_missing_file_is_named(
    operator: httpx.AsyncClient, outside: Path, sent: tuple[str, ...], missing: str
) -> None:
    refused = await operator.post(ADAPTERS, content=packed(outside, *sent))
    assert refusal(refused) == Refusal(400, "file_missing", missing)


@pytest.mark.parametrize("body", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08" + b"0" * 600], ids=["", "text", "gzip"])
async def test_what_is_no_tar_is_refused(small: SmallService, operator: httpx.AsyncClient, body: bytes) -> None:
    assert refusal(await operator.post(ADAPTERS, content=body)).status == 400
    assert _uploads(small) == []


def _not_finite(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.full_like(tensor, np.nan) for name, tensor in weights.items()}


def _of_the_head(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("self_attn.q_proj", "lm_head"): tensor for name, tensor in weights.items()}


SPOILED: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda outside: flip_byte(outside / WEIGHTS), "adapter_rejected", "does not hash"),
    (lambda outside: change_weights(outside, _not_finite), "adapter_rejected", "not all finite"),
    (lambda outside: change_weights(outside, _of_the_head), "adapter_rejected", "the head or the embeddings"),
    (lambda outside: change_config(outside, use_dora=True), "adapter_rejected", "DoRA"),
    (lambda outside: change_config(outside, lora_alpha=32), "other_shape", "rank 8 and alpha 32"),
    (lambda outside: change_config(outside, use_rslora=True), "other_shape", "use_rslora"),
    (lambda outside: change_manifest(outside, tokenizer="0" * 64), "adapter_rejected", "another tokenizer"),
    (lambda outside: (outside / MANIFEST).write_text("[]"), "adapter_rejected", "not a JSON object"),
    (lambda outside: (outside / CONFIG).write_text("{"), "adapter_rejected", "is not JSON"),
]


@pytest.mark.parametrize(("spoil", "code", "why"), SPOILED, ids=[why for _, _, why in SPOILED])
async def test_an_adapter_that_could_not_be_served_or_continued_is_refused(
    small: SmallService,
    operator: httpx.AsyncClient,
    outside: Path,
    spoil: Callable[[Path], object],
    code: str,
    why: str,
) -> None:
    spoil(outside)
    refused = await operator.post(ADAPTERS, content=packed(outside))
    assert refusal(refused)[:2] == (422, code)
    assert why in refused.json()["error"]["message"]
    assert _uploads(small) == []


async def test_an_adapter_may_be_larger_than_other_bodies_and_has_a_limit_too(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    (outside / MANIFEST).unlink()
    (outside / WEIGHTS).write_bytes(bytes(2 * MAX_BODY_BYTES))
    assert refusal(await operator.post(ADAPTERS, content=packed(outside))).code == "base_unknown"
    too_large = await operator.post(ADAPTERS, content=bytes(MAX_ADAPTER_BYTES + 1))
    assert refusal(too_large) == Refusal(413, "body_too_large")
    assert _uploads(small) == []


async def test_while_a_round_runs_nothing_comes_in(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    await small.ask_for_round()
    refused = await operator.post(ADAPTERS, content=packed(outside))
    assert refusal(refused) == Refusal(409, "round_running")
    assert _uploads(small) == []


async def test_an_idempotency_key_brings_an_adapter_once(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    headers = {"idempotency-key": "monday"}
    first = await operator.post(ADAPTERS, content=packed(outside), headers=headers)
    again = await operator.post(ADAPTERS, content=packed(outside), headers=headers)
    assert (first.status_code, again.status_code, again.json()["n"]) == (202, 200, first.json()["n"])
    assert len(_uploads(small)) == 1
    other = await operator.post(f"{ADAPTERS}?note=other", content=packed(outside), headers=headers)
    assert refusal(other).code == "idempotency_conflict"


async def test_only_an_operator_may_bring_one(small: SmallService, outside: Path) -> None:
    app = client(small.operations_app(), (await small.store.keys.issue(Role.APP, "shop"))[1])
    assert refusal(await app.post(ADAPTERS, content=packed(outside))).status == 403
    assert _uploads(small) == []


async def test_the_manifest_that_is_written_is_one_that_training_reads(
    small: SmallService, operator: httpx.AsyncClient, outside: Path
) -> None:
    (outside / MANIFEST).unlink()
    answer = await operator.post(f"{ADAPTERS}?assume_base=true", content=packed(outside))
    directory = Path(answer.json()["candidate"]["directory"])
    manifest, weights = read_adapter(directory)
    assert json.loads((directory / CONFIG).read_text())["r"] == manifest.rank == 8
    assert len(weights) == 2
