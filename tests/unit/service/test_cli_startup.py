"""The command line starts light: operators' laptops need neither torch nor a cluster."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "vllm", "ray", "transformers", "sqlalchemy", "fastapi", "pydantic_settings", "rich", "httpx")


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    program = f"import sys, service.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_python_m_service_is_the_command_line() -> None:
    shown = subprocess.run([sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True)
    for command in (
        "up", "down", "status", "chat", "round", "adapters", "promote", "rollback", "import", "preferences",
        "keys", "audit", "demo", "doctor",
    ):  # fmt: skip
        assert f" {command} " in shown.stdout
