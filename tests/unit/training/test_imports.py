"""The service must be able to import what it uses of `training` without torch, Ray Train or a tokenizer."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = ("contracts", "errors", "objective", "snapshot", "samples", "fingerprints", "adapter", "attempt",
         "formats", "reading", "intake", "standalone", "display")  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_the_services_side_is_light(module: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'vllm', 'ray.train', 'pandas'}"
    code = f"import sys, training.{module}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"
