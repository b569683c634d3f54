"""The doctor: each check on values that stand for a healthy and for a poor machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import doctor
from service.cli import app
from service.doctor import GIB, Finding
from service.settings import Settings
from serving import haproxy
from serving.machine import Machine
from serving.settings import ServingSettings
from tests.fake_api import FakeApi


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


def test_every_complaint_comes_with_a_remedy(tmp_path: Path) -> None:
    findings = doctor.examine(Settings(state=tmp_path), None)
    assert [finding for finding in findings if finding.outcome != "ok" and not finding.remedy] == []
    assert {
        "python",
        "gpu",
        "cpus",
        "memory",
        "disk",
        "shared memory",
        "open files",
        "database",
        "ingress",
        "service",
    } <= {finding.name for finding in findings}


def test_the_embedded_database_is_found_and_not_needed_with_a_server_of_one_s_own() -> None:
    assert doctor.database(None).found.startswith("postgres (PostgreSQL) 18")
    assert doctor.database("postgresql://db/x").outcome == "ok"


def test_haproxy_is_there_and_not_needed_with_rays_own_proxy() -> None:
    assert doctor.ingress("haproxy", haproxy.fault()) == Finding("ingress", "ok", "HAProxy")
    assert doctor.ingress("haproxy", "gone").outcome == "missing"
    assert doctor.ingress("python", "gone").outcome == "ok"


def test_packages_are_compared_with_what_is_asked_for() -> None:
    wanted = [
        "typer>=0.1",
        "rich==0.0.1",
        "no-such-package==1",
        'not-for-us==1; extra == "gpu"',
        "torch; extra == 'none'",
    ]
    found = doctor.check_packages(wanted, "cpu")
    assert [(finding.name, finding.outcome) for finding in found] == [
        ("package rich", "warn"),
        ("package no-such-package", "missing"),
    ]
    assert found[1].remedy == "pip install --no-deps 'no-such-package==1'"


def test_packages_that_are_all_there_take_one_line() -> None:
    assert doctor.check_packages(["typer>=0.1", "rich"], "cpu") == [
        Finding("packages", "ok", "2 as heliotrope[cpu] asks for them")
    ]


@pytest.mark.parametrize(("available", "outcome"), [(16 * GIB, "ok"), (3 * GIB, "warn"), (GIB, "missing")])
def test_memory_is_wanted_and_some_of_it_needed(available: int, outcome: str) -> None:
    finding = doctor.memory(available)
    assert finding.outcome == outcome
    assert finding.found == f"{available / GIB:.1f} GiB free"


def test_a_state_folder_that_does_not_exist_yet_is_on_its_parent_s_disk(tmp_path: Path) -> None:
    here, deeper = doctor.disk(tmp_path), doctor.disk(tmp_path / "not" / "yet")
    assert deeper.outcome == here.outcome


def test_few_cpus_and_few_files_are_only_warned_of() -> None:
    assert (doctor.cpus(1).outcome, doctor.cpus(2).outcome) == ("warn", "ok")
    assert (doctor.open_files(1024).outcome, doctor.open_files(65536).outcome) == ("warn", "ok")


def test_engines_that_ask_for_more_than_the_machine_has_are_seen() -> None:
    small = Machine(cores=2, memory_bytes=8 * GIB, compiler=False)
    assert doctor.engine(ServingSettings(), small).found == "1 x 2 threads, 1.0 GiB for the KV cache"
    assert doctor.engine(ServingSettings(), small).outcome == "ok"
    assert doctor.engine(ServingSettings(replicas=2, cpu_threads=2), small).outcome == "warn"
    assert doctor.engine(ServingSettings(kv_cache_gib=6), small).outcome == "warn"
    assert doctor.engine(ServingSettings(compiled=True), small).outcome == "missing"


def test_a_preloaded_allocator_is_seen() -> None:
    assert doctor.allocator("/usr/lib/libtcmalloc_minimal.so.4").outcome == "ok"
    assert doctor.allocator("").outcome == "warn"


def test_a_port_in_use_is_missing_unless_the_service_itself_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert doctor.port("127.0.0.1", number, in_use_by_us=False).outcome == "missing"
        assert doctor.port("127.0.0.1", number, in_use_by_us=True).outcome == "ok"
    assert doctor.port("127.0.0.1", number, in_use_by_us=False).outcome == "ok"


def test_a_running_service_is_told_from_one_that_died(api: FakeApi) -> None:
    assert doctor.service({"pid": 7, "url": api.url}).found == f"runs at {api.url} as process 7"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        died = doctor.service({"pid": 7, "url": f"http://127.0.0.1:{nobody.getsockname()[1]}"})
    assert died.outcome == "warn"


def test_the_command_exits_with_1_only_when_something_is_missing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {"HELIOTROPE_STATE": str(tmp_path), "HELIOTROPE_SERVER__PORT": str(taken.getsockname()[1])}
        table = CliRunner().invoke(app, ["doctor"], env=environment)
        listed = CliRunner().invoke(app, ["doctor", "--json"], env=environment)
    assert (table.exit_code, listed.exit_code) == (1, 1)
    findings = json.loads(listed.stdout)["findings"]
    assert "port" in next(finding["name"] for finding in findings if finding["outcome"] == "missing")
    assert all(finding["found"] in table.stdout for finding in findings if finding["name"] != "memory")
