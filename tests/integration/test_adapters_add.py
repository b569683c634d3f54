"""An adapter that was trained elsewhere: brought by the command line, measured, judged, and answering on every replica."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from service import model
from service.cli import app
from tests.conftest import Service

PAIRS = 12


@pytest.fixture(scope="module")
def seedling() -> Path:
    return model.resolve("seedling")


@pytest.fixture(scope="module")
def outside(seedling: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter as PEFT writes it, which changes the base a little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        policy = get_peft_model(AutoModelForCausalLM.from_pretrained(seedling), config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.02)
    directory = tmp_path_factory.mktemp("outside")
    policy.save_pretrained(str(directory))
    return directory


@pytest.fixture
def new_pairs(service: Service) -> Iterator[int]:
    """Pairs on which the base and anything near it agree: an answer of the seedling's own, and none at all."""
    lines = []
    for number in range(PAIRS):
        question = [{"role": "user", "content": f"What is {number} plus {number + 3}?"}]
        answer = service.openai.chat.completions.create(model="base", messages=question, temperature=0, max_tokens=40)  # type: ignore[arg-type]
        lines.append(json.dumps({"prompt": question, "chosen": [
            {"role": "assistant", "content": answer.choices[0].message.content}
        ], "rejected": [{"role": "assistant", "content": "zzz qqq " * 6}]}))  # fmt: skip
    imported = service.operator.post("/ops/preferences/import", content="\n".join(lines))
    assert imported.status_code == 200, imported.text
    yield funnel(service)["pairs_imported"]
    if service.operator.get("/ops/status").json()["route"]["stable"] != "base":
        service.operator.post("/ops/rollback", json={"to": "base"}).raise_for_status()


def funnel(service: Service) -> dict[str, Any]:
    return service.operator.get("/ops/preferences").json()["funnel"]


def run(service: Service, *words: str) -> Result:
    environment = {"HELIOTROPE_URL": service.url, "HELIOTROPE_KEY": service.keys["operator"]}
    return CliRunner().invoke(app, list(words), env=environment)


def test_an_adapter_from_outside_is_judged_and_then_answers(service: Service, outside: Path, new_pairs: int) -> None:
    refused = run(service, "adapters", "add", str(outside))
    assert refused.exit_code == 1
    assert "--assume-base" in refused.stderr
    added = run(service, "adapters", "add", str(outside), "--assume-base", "--watch", "--note", "by hand")
    assert added.exit_code == 0, added.output
    assert "promoted" in added.stdout
    round = service.operator.get("/ops/rounds").json()["data"][0]
    assert (round["note"], round["candidate"]["assumed_base"], round["report"]["steps"]) == ("by hand", True, [])
    assert [check["name"] for check in round["verdict"]["checks"]][:4] == [
        "integrity", "loadable", "outside", "held_out",
    ]  # fmt: skip
    assert round["report"]["pairs_held_out"] == new_pairs
    assert round["parity"] is None or round["parity"]["mean_abs"] < 1e-3
    adapter = service.operator.get(f"/ops/adapters/{round['adapter']}").json()
    assert (adapter["added_by"], adapter["parent"]) == ("local", "base")
    question: Any = [{"role": "user", "content": "What is 2 plus 2?"}]
    answer = service.openai.chat.completions.create(model="policy", messages=question, max_tokens=20)
    assert answer.model == round["adapter"]
    assert funnel(service)["pairs_imported"] == new_pairs, "it was judged by them and has learned none"
