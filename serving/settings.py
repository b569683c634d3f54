"""What an operator may set about answering. Loaded by `service/settings.py` from the section `[serving]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    """An environment variable is text, which a literal number would not accept."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Rank = Annotated[Literal[8, 16, 32, 64], BeforeValidator(_number)]  # those that vLLM has kernels for


class ServingSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(default=1, ge=1, description="engines; each answers every request it is given")
    device: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="auto: gpu where Ray finds one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    max_model_len: int | None = Field(default=None, ge=16, description="tokens; None: what the model allows")
    max_requests: int = Field(default=64, ge=1, description="requests one replica works on at once")
    adapter_places: int = Field(
        default=4, ge=4, description="adapters one engine holds: stable, previous, the next, one that drains"
    )
    max_lora_rank: Rank = 8
    kv_cache_gib: int = Field(default=1, ge=1, description="GiB for the KV cache of one replica on a CPU")
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1, description="of a GPU's memory, per replica")
    cpus_per_replica: float = Field(default=0.5, ge=0, description="logical CPUs that Ray sets aside")
    route_poll_seconds: float = Field(default=1.0, gt=0, description="how often a replica reads the route row")
    drain_seconds: float = Field(default=60.0, ge=0, description="how long a stopping replica finishes its requests")
