"""What an engine is given of a machine: by default, shared with others, and as an operator says."""

from __future__ import annotations

import pytest

from serving import machine
from serving.machine import GIB, Machine
from serving.settings import ServingSettings

EIGHT_CORES = Machine(cores=8, memory_bytes=64 * GIB, compiler=True)
LAPTOP = Machine(cores=2, memory_bytes=4 * GIB, compiler=False)


def test_an_engine_alone_computes_on_all_cores() -> None:
    assert machine.cpu_threads(ServingSettings(), EIGHT_CORES) == 8


def test_engines_of_one_machine_share_its_cores_and_its_memory() -> None:
    two = ServingSettings(replicas=2)
    assert machine.cpu_threads(two, EIGHT_CORES) == 4
    assert machine.kv_cache_bytes(two, EIGHT_CORES) == 2 * GIB
    assert machine.kv_cache_bytes(ServingSettings(), EIGHT_CORES) == 4 * GIB


def test_threads_of_an_engine_are_told_before_torch_is_loaded() -> None:
    assert machine.thread_variables(ServingSettings(replicas=4), EIGHT_CORES)["OMP_NUM_THREADS"] == "2"


def test_replicas_that_may_come_are_counted() -> None:
    assert machine.cpu_threads(ServingSettings(replicas=1, max_replicas=4), EIGHT_CORES) == 2


def test_a_small_machine_still_gets_one_thread_and_a_cache() -> None:
    three = ServingSettings(replicas=3)
    assert machine.cpu_threads(three, LAPTOP) == 1
    assert machine.kv_cache_bytes(three, LAPTOP) == machine.LEAST_KV_CACHE_BYTES


def test_what_an_operator_says_is_taken() -> None:
    told = ServingSettings(replicas=2, cpu_threads=3, kv_cache_gib=5)
    assert machine.cpu_threads(told, EIGHT_CORES) == 3
    assert machine.kv_cache_bytes(told, EIGHT_CORES) == 5 * GIB


def test_compiling_without_a_compiler_is_refused_with_the_remedy() -> None:
    assert machine.compiled(ServingSettings(compiled=True), EIGHT_CORES)
    assert not machine.compiled(ServingSettings(), LAPTOP)
    with pytest.raises(ValueError, match=r"serving\.compiled .* install g\+\+"):
        machine.compiled(ServingSettings(compiled=True), LAPTOP)


def test_the_engine_keeps_what_it_compiles_in_our_folder_and_opens_no_door() -> None:
    found = machine.environment(ServingSettings(max_choices=4), "/state/cache", gpu=False)
    assert found["VLLM_CACHE_ROOT"].startswith("/state/cache/")
    assert found["TORCHINDUCTOR_CACHE_DIR"].startswith("/state/cache/")
    assert found["VLLM_MAX_N_SEQUENCES"] == "4"
    closed = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE")
    assert {found[name] for name in closed} == {"0"}


def test_engines_on_cpus_leave_the_choice_of_cores_to_the_kernel() -> None:
    assert machine.environment(ServingSettings(), "/c", gpu=False)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in machine.environment(ServingSettings(), "/c", gpu=True)


def test_this_machine_has_cores_and_memory() -> None:
    here = Machine.here()
    assert here.cores >= 1
    assert here.memory_bytes > 0
