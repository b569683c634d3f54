"""What an engine is given of the machine it runs on: threads, memory, a compiler. Pure, but for `Machine.here`.

Every choice has a setting in `[serving]` that overrides it. Knows no vLLM, so that whoever deploys can ask here too.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.settings import ServingSettings

GIB = 1 << 30
KV_CACHE_SHARE = 1 / 16  # of the memory, over the replicas: it is taken whole at the start, and a round needs the rest
LEAST_KV_CACHE_BYTES = GIB

# How long a thread waits busily for its next piece of work, some 100 microseconds: more than from one product of a step to
# the next, where waking it would cost as much as the product; less than from step to step, where others need the core.
SPINS = 5_000

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Machine:
    cores: int  # logical CPUs that this process may use
    memory_bytes: int  # that it may fill
    compiler: bool  # of C++, which torch needs to compile a model for a CPU

    @classmethod
    def here(cls) -> Machine:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        limits = (file.read_text().strip() for file in _MEMORY_LIMITS if file.is_file())
        memory_bytes = min(psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdigit()))
        return cls(cores, memory_bytes, any(shutil.which(name) for name in _COMPILERS))


def cpu_threads(settings: ServingSettings, machine: Machine) -> int:
    """Threads of one engine's matrix products: the cores, over the engines that share them.

    An engine that has more than it gets cores for waits at the end of each product for the thread that is not running.
    """
    return settings.cpu_threads or max(1, machine.cores // _engines(settings))


def thread_variables(settings: ServingSettings, machine: Machine) -> dict[str, str]:
    """For an engine on a CPU, to be set before torch is loaded."""
    return {"OMP_NUM_THREADS": str(cpu_threads(settings, machine)), "GOMP_SPINCOUNT": str(SPINS)}


def kv_cache_bytes(settings: ServingSettings, machine: Machine) -> int:
    """For the keys and values of one engine on a CPU."""
    if settings.kv_cache_gib is not None:
        return settings.kv_cache_gib * GIB
    share = int(machine.memory_bytes * KV_CACHE_SHARE) // _engines(settings)
    return max(LEAST_KV_CACHE_BYTES, share)


def compiled(settings: ServingSettings, machine: Machine) -> bool:
    """Whether an engine on a CPU compiles its model. Raises `ValueError` when it is asked to and cannot."""
    if settings.compiled and not machine.compiler:
        raise ValueError("serving.compiled asks for a C++ compiler, and there is none: install g++, or leave it out")
    return settings.compiled


def environment(settings: ServingSettings, cache: str, *, gpu: bool) -> dict[str, str]:
    """Of the process of one replica, which the engine's processes inherit. `cache`: a folder that is ours alone."""
    engine_cache = Path(cache) / "engine"
    return {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # its processes talk to one another on this machine only
        "VLLM_MAX_N_SEQUENCES": str(settings.max_choices),  # a second bound behind the desk's
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",  # its own route for it; ours is `load`
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_CACHE_ROOT": str(engine_cache),  # what is compiled is loaded again unchecked, so from our own folder
        "TORCHINDUCTOR_CACHE_DIR": str(engine_cache / "inductor"),
        "HF_HUB_OFFLINE": "1",  # the model is on this machine
        **({} if gpu else {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),  # else all engines here bind the same cores
    }


def sockets(folder: Path) -> dict[str, str]:
    """For the process that starts Ray. Engines put their sockets into `folder` and leave them there; its path is short."""
    return {"VLLM_RPC_BASE_PATH": str(folder)}


def _engines(settings: ServingSettings) -> int:
    """That may share this machine; where replicas have machines of their own, `cpu_threads` and `kv_cache_gib` say."""
    return max(settings.replicas, settings.max_replicas or 1)
