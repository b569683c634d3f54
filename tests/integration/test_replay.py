"""A round of the running service, trained once more by `heliotrope round replay`: the same bytes, or a reason why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.contracts import RoundState
from tests.conftest import Service
from training.snapshot import iterate, write_snapshot

ROOT = Path(__file__).parents[2]
PAIRS = [
    {
        "prompt": f"What is {n} plus {n}?",
        "chosen": f"It is {2 * n}.",
        "rejected": f"Well, {2 * n} I suppose, friend {n}.",
    }
    for n in range(24)
]


@pytest.fixture(scope="module")
def round(service: Service) -> dict[str, Any]:
    """One that has trained; what the gate makes of it is nothing to a replay."""
    lines = "".join(f"{json.dumps(pair)}\n" for pair in PAIRS)
    service.operator.post("/ops/preferences/import", content=lines).raise_for_status()
    started = service.operator.post("/ops/rounds", json={"epochs": 2}).raise_for_status().json()
    while True:
        found = service.operator.get(f"/ops/rounds/{started['n']}").raise_for_status().json()
        if RoundState(found["state"]).final:
            assert found["report"] is not None, found["reason"]
            return found
        time.sleep(0.5)


def replay(service: Service, n: int) -> subprocess.CompletedProcess[str]:
    options = ["--url", service.url, "--state", str(service.state)]
    command = [sys.executable, "-m", "service", *options, "round", "replay", str(n), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_replay_gives_the_same_adapter_to_the_bit(service: Service, round: dict[str, Any]) -> None:
    ended = replay(service, round["n"])
    assert ended.returncode == 0, ended.stderr
    replayed = json.loads(ended.stdout)
    assert replayed["reproduced"] is True
    assert replayed["found"] == round["report"]["adapter_digest"]
    assert "training" in ended.stderr, "it really trained"


def test_other_pairs_are_found_out(service: Service, round: dict[str, Any]) -> None:
    snapshot = service.state / "rounds" / f"{round['n']:04d}" / "pairs.parquet"
    kept = snapshot.read_bytes()
    try:
        write_snapshot(snapshot, list(iterate(snapshot))[1:])
        ended = replay(service, round["n"])
        assert ended.returncode == 1
        assert "pairs" in ended.stderr
    finally:
        snapshot.write_bytes(kept)


def test_a_snapshot_that_is_gone_is_the_reason_why_not(service: Service, round: dict[str, Any]) -> None:
    snapshot = service.state / "rounds" / f"{round['n']:04d}" / "pairs.parquet"
    moved = snapshot.rename(snapshot.with_suffix(".away"))
    try:
        refused = service.operator.get(f"/ops/rounds/{round['n']}/replay")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_replayable")
        assert "its snapshot is gone" in refused.json()["error"]["message"]
    finally:
        moved.rename(snapshot)
