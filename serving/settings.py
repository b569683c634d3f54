"""What an operator may set about answering. Loaded by `service/settings.py` from the section `[serving]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _number(value: Any) -> Any:
    """An environment variable is text, which a literal number would not accept."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


Ingress = Literal["python", "haproxy"]
Rank = Annotated[Literal[8, 16, 32, 64], BeforeValidator(_number)]  # those that vLLM has kernels for


class ServingSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(default=1, ge=1, description="engines; each answers every request it is given")
    device: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="auto: gpu where Ray finds one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    max_model_len: int | None = Field(default=None, ge=16, description="tokens; None: what the model allows")
    max_requests: int = Field(default=64, ge=1, description="answers one replica works on at once; n counts n times")
    adapter_places: int = Field(
        default=6,
        ge=4,
        description="adapters one engine holds: stable, previous, the next, one that drains or is asked for by its name; "
        "one more for a baseline that is not the base",
    )
    idle_adapter_seconds: float = Field(
        default=600.0, ge=0, description="how long an adapter stays loaded that was asked for by its full name"
    )
    max_lora_rank: Rank = 8
    kv_cache_gib: int | None = Field(
        default=None, ge=1, description="GiB for the KV cache of one replica on a CPU; None: a sixteenth of the memory"
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, description="of one replica's engine on a CPU; None: the cores over the replicas"
    )
    compiled: bool = Field(
        default=False, description="compile the model on a CPU: half as many tokens again, and a start of a minute more"
    )
    prefix_caching: bool = Field(default=True, description="keep keys and values of what prompts begin with alike")
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1, description="of a GPU's memory, per replica")
    cpus_per_replica: float = Field(default=0.5, ge=0, description="logical CPUs that Ray sets aside")
    node_resource: str | None = Field(
        default=None, min_length=1, description="a Ray resource that only nodes for answering have; None: any node"
    )
    route_poll_seconds: float = Field(default=1.0, gt=0, description="how often a replica reads the route row")
    drain_seconds: float | None = Field(
        default=None,
        description="how long a stopping replica finishes its requests; None: the longest answer, and 10 more",
    )
    stuck_seconds: float = Field(
        default=30.0, ge=2, description="a replica whose event loop stands still for so long is replaced"
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="replicas are added up to so many as requests ask for them; None: never"
    )
    max_waiting: int = Field(default=64, ge=0, description="answers that wait for a place in one replica's engine")
    max_waiting_seconds: float = Field(default=10.0, ge=0, description="a request that waits longer is turned away")
    first_token_seconds: float = Field(default=60.0, gt=0, description="from a request's arrival to its first token")
    answer_seconds: float = Field(default=600.0, gt=0, description="from a request's arrival to the end of its answer")
    max_choices: int = Field(default=16, ge=1, description="answers to one request: n")
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="of one request; None: what the context takes"
    )
    max_output_tokens: int | None = Field(default=None, ge=1, description="of one answer; None: what the context takes")

    @property
    def longest_drain_seconds(self) -> float:
        """How long a replica that is stopped may take to end."""
        return self.answer_seconds + 10 if self.drain_seconds is None else self.drain_seconds

    @model_validator(mode="after")
    def _answers_end_before_their_replica(self) -> ServingSettings:
        if self.longest_drain_seconds <= self.answer_seconds:
            raise ValueError(
                f"drain_seconds = {self.drain_seconds} must be more than answer_seconds = {self.answer_seconds}; "
                "else a stopping replica cuts its last answers off"
            )
        return self

    @model_validator(mode="after")
    def _replicas_can_grow(self) -> ServingSettings:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas = {self.max_replicas} is less than replicas = {self.replicas}")
        return self
