"""`python -m training` in a process of its own: what PEFT makes of its adapter, and how it goes on after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import tiny_models
from tests.standalone import arguments, some_pairs, written
from training.adapter import read_adapter
from training.contracts import RoundReport
from training.samples import read_samples
from training.standalone import ADAPTER

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.jsonl", some_pairs(40))


def test_in_a_process_of_its_own_without_ray_it_writes_what_peft_loads(
    pairs: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = arguments(pairs, model, out, threads=1, learning_rate=1e-2)
    command = [sys.executable, "-X", "importtime", "-m", "training", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time")}
    assert "torch" in imported
    assert not imported & {"ray", "fastapi", "sqlalchemy", "vllm"}
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), out / "adapter").eval()
    answers = read_samples(out / "samples.json")
    assert answers
    for answer in answers:
        ids = torch.tensor([[*answer.prompt_token_ids, *answer.token_ids]])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, len(answer.prompt_token_ids) - 1 : -1].log_softmax(-1)
        theirs = logprobs.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(theirs, torch.tensor(answer.logprobs), rtol=0, atol=1e-4)


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_adapter(
    pairs: Path, model: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 30, "threads": 1, "checkpoint_seconds": 0}
    stopped = tmp_path / "stopped"
    command = [sys.executable, "-m", "training", *arguments(pairs, model, stopped, **options)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 3 of"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "goes on from the last checkpoint" in rest
    assert "Traceback" not in rest
    assert not (stopped / ADAPTER).exists()
    for out in (stopped, tmp_path / "whole"):
        options["json"] = True
        command = [sys.executable, "-m", "training", *arguments(pairs, model, out, **options)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        report = RoundReport.model_validate_json(ended.stdout)
        assert (report.resumed_from or 0) >= (2 if out == stopped else 0)
    assert read_adapter(stopped / ADAPTER)[0].files == read_adapter(tmp_path / "whole" / ADAPTER)[0].files


def test_a_name_that_is_not_on_this_machine_says_what_to_do_offline(pairs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", *arguments(pairs, "Qwen/Qwen3-0.6B", tmp_path / "out")]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=offline)
    assert ended.returncode == 1
    assert "run `hf download Qwen/Qwen3-0.6B`" in ended.stderr
