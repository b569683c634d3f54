"""All that can be set, its defaults and where a value comes from.

Order, later wins: defaults < `heliotrope.toml` < `HELIOTROPE_SECTION__KEY` < flags of the command line.
A key that does not exist refuses the start and is named; nothing is read by guess.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import platformdirs
import pydantic
from pydantic import Field

from service.alarm_settings import AlarmSettings
from service.artifacts import ArtifactSettings
from service.canary.settings import CanarySettings, WatchSettings
from service.contracts import Role
from service.curation.settings import PreferenceSettings, QuarantineSettings
from service.errors import BadRequest
from service.gate.settings import GateSettings
from service.keeping.settings import RetentionSettings
from service.limiting.settings import LimitSettings
from service.section import Section
from service.triggers.settings import RoundSettings
from service.tuning import (
    TUNABLE,
    Beta,
    Epochs,
    LabelSmoothing,
    LearningRate,
    MinPairs,
    Objective,
    Replay,
    Share,
    Weight,
    require_effective,
)
from serving.settings import Ingress, Rank, ServingSettings

PREFIX = "HELIOTROPE_"
CONFIG_FILE = "heliotrope.toml"
SEEDLING = "seedling"

# For the seedling (True) and for models of a usual size. A model a thousand times smaller takes larger steps, and needs
# a stronger pull back to what it knows: with beta = 0.1 it learned the taste and forgot facts and refusals.
TUNED = {True: {"beta": 1.0, "learning_rate": 2e-3}, False: {"beta": 0.1, "learning_rate": 5e-5}}

# Read by the command line itself, not settings of the service.
CLIENT_VARIABLES = frozenset(
    {"HELIOTROPE_URL", "HELIOTROPE_KEY", "HELIOTROPE_KEY_FILE", "HELIOTROPE_STATE", "HELIOTROPE_CONFIG"}
)


class ModelSettings(Section):
    name: str = Field(
        default=SEEDLING,
        min_length=1,
        description="'seedling' (trained on this machine), a directory, or a Hugging Face name; a causal LM",
    )


class ServerSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    ingress: Ingress = Field(
        default="haproxy", description="before the replicas of this machine: HAProxy, or Ray's Python proxy"
    )
    insecure_no_auth: bool = Field(default=False, description="answer without keys; for a laptop only")
    first_keys: dict[Role, Path] = Field(
        default={}, description="role -> a file with a key that is valid from the start, as a mounted Secret does"
    )
    metrics_without_key: bool = Field(default=False, description="GET /metrics for everybody who reaches the port")
    cors_origins: tuple[str, ...] = Field(
        default=(), description="web pages that may vote from the browser, such as https://app.example; none by default"
    )
    feedback_token_seconds: int = Field(
        default=3 * 3600, ge=60, le=30 * 86400, description="life of a token for one completion, unless asked for less"
    )


class StoreSettings(Section):
    url: str | None = Field(
        default=None, description="postgresql://...; None: an embedded PostgreSQL in the state folder"
    )
    url_file: Path | None = Field(default=None, description="a file that holds the URL, as a mounted Secret does")
    redact: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="package.module:function, str -> str; called on every text before it is written",
    )
    without_store: Literal["answer", "refuse"] = Field(
        default="answer", description="chat while the store is down: answers that cannot be rated, or 503"
    )

    @pydantic.model_validator(mode="after")
    def _one_url(self) -> StoreSettings:
        if self.url is not None and self.url_file is not None:
            raise ValueError("store.url and store.url_file both name a server; remove one of them")
        return self


class TrainingSettings(Section):
    objective: Objective = Field(default="dpo", description="a sum of losses: training/objective.py lists them")
    beta: Beta | None = Field(
        default=None, description="how closely the new policy stays to the deployed one; None: see TUNED"
    )
    label_smoothing: LabelSmoothing = Field(default=0.0, description="share of votes taken to be wrong: cdpo, robust")
    ld_alpha: Share = Field(default=1.0, description="weight of the longer answer's tail (LD-DPO); 1: plain DPO")
    desirable_weight: Weight = Field(default=1.0, description="KTO's weight of thumbs up")
    undesirable_weight: Weight = Field(default=1.0, description="KTO's weight of thumbs down")
    learning_rate: LearningRate | None = Field(default=None, description="None: see TUNED")
    epochs: Epochs = 3
    replay: Replay = Field(default=0.0, description="share of the training pairs that earlier rounds have learned")
    pairs_per_step: int = Field(default=16, ge=1)
    tokens_per_micro_batch: int = Field(default=4096, ge=64)
    min_pairs: MinPairs = Field(default=32, description="a round with fewer new pairs does nothing")
    held_out_share: float = Field(
        default=0.15, gt=0, lt=1, description="of the prompts; never trained on in that round"
    )
    lora_rank: Rank = 8
    lora_alpha: int = Field(default=16, ge=1)
    seed: int = 0
    workers: int = Field(default=1, ge=1)
    node_resource: str | None = Field(
        default=None, min_length=1, description="a Ray resource that only nodes for training have; None: any node"
    )
    dtype: Literal["auto", "float32", "bfloat16"] | None = Field(
        default=None, description="of the frozen base; None: bfloat16 on a GPU, float32 on a CPU"
    )
    shard_base: bool = Field(default=False, description="FSDP2 over the workers: for a base too large for one device")
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto", description="auto: only where the estimate of memory asks for it"
    )
    seconds_between_checkpoints: float = Field(default=30.0, ge=0)
    restarts: int = Field(default=3, ge=0, description="of an attempt's killed workers, from the last checkpoint")
    max_attempts: int = Field(default=3, ge=1, description="how often a killed attempt is started anew")
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)

    @pydantic.model_validator(mode="after")
    def _something_to_shard(self) -> TrainingSettings:
        if self.shard_base and self.workers == 1:
            raise ValueError("shard_base needs workers of at least 2: one worker has nobody to share the base with")
        return self


class Settings(Section):
    state: Path = Field(
        default_factory=lambda: Path(platformdirs.user_state_path("heliotrope")),
        description="folder of the embedded database, adapters, rounds and keys of this machine",
    )
    model: ModelSettings = ModelSettings()
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    serving: ServingSettings = ServingSettings()
    training: TrainingSettings = TrainingSettings()
    rounds: RoundSettings = RoundSettings()
    gate: GateSettings = GateSettings()
    canary: CanarySettings = CanarySettings()
    watch: WatchSettings = WatchSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    quarantine: QuarantineSettings = QuarantineSettings()
    retention: RetentionSettings = RetentionSettings()
    limits: LimitSettings = LimitSettings()
    alarms: AlarmSettings = AlarmSettings()

    @pydantic.model_validator(mode="after")
    def _rank_fits(self) -> Settings:
        if self.training.lora_rank > self.serving.max_lora_rank:
            raise ValueError(
                f"training.lora_rank = {self.training.lora_rank} exceeds serving.max_lora_rank = "
                f"{self.serving.max_lora_rank}; what is trained could not be served"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _rounds_would_listen(self) -> Settings:
        require_effective(self.round_defaults)
        return self

    @property
    def store_url(self) -> str | None:
        """None: the embedded database. Raises `BadRequest` where the file that should hold it does not."""
        file = self.store.url_file
        if file is None:
            return self.store.url
        return secret(file, "store.url_file")

    @property
    def round_defaults(self) -> dict[str, Any]:
        """What a round uses where `POST /ops/rounds` names nothing else."""
        chosen = self.training.model_dump(include=set(TUNABLE))
        tuned = TUNED[self.model.name == SEEDLING]
        return chosen | {name: value for name, value in tuned.items() if chosen[name] is None}

    @property
    def uploads(self) -> Path:
        """What is on its way in, as long as it comes."""
        return self.state / "uploads"

    @property
    def baselines(self) -> Path:
        """What adapters answered to the gate's suites."""
        return self.state / "baselines"

    @property
    def cache(self) -> Path:
        """This machine's verified copies of published adapters."""
        return self.state / "cache"


def secret(file: Path, setting: str) -> str:
    """The text of a mounted Secret. Raises `BadRequest` that names the setting where there is none."""
    try:
        text = file.read_text().strip()
    except OSError as error:
        raise BadRequest(
            f"setting '{setting}' names {file}, which cannot be read: {error.strerror}. Mount the Secret there.",
            param=setting, code="secret_missing",
        ) from error  # fmt: skip
    if not text:
        raise BadRequest(
            f"setting '{setting}' names {file}, which is empty. Put the value into the Secret.",
            param=setting, code="secret_empty",
        )  # fmt: skip
    return text


def load(
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from all their sources. `overrides` are the flags, as nested mappings; None values do not count.

    Raises `BadRequest` that names the key and where it came from.
    """
    origin = str(file) if file else CONFIG_FILE
    values = _from_file(file)
    _merge(values, _from_environment(environment))
    _merge(values, overrides or {})
    try:
        return Settings.model_validate(values)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise BadRequest(
                f"unknown setting '{key}' (from {origin}, {PREFIX}... or a flag). Remove it or correct its name.",
                param=key, code="unknown_setting",
            ) from error  # fmt: skip
        reason = fault["msg"].removeprefix("Value error, ")
        raise BadRequest(f"setting '{key}': {reason}" if key else reason, param=key, code="invalid_setting") from error


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        file = Path(CONFIG_FILE)
        if not file.is_file():
            return {}
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise BadRequest(f"{file}: {error.strerror}", code="unreadable_settings") from error
    except ValueError as error:  # also where it is not even UTF-8
        raise BadRequest(f"{file} is not TOML: {error}", code="unreadable_settings") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in CLIENT_VARIABLES:
            continue
        path = name.removeprefix(PREFIX).lower().split("__")
        nested: Any = value
        for part in reversed(path):
            nested = {part: nested}
        _merge(values, nested)
    if "HELIOTROPE_STATE" in environment:
        values["state"] = environment["HELIOTROPE_STATE"]
    return values


def _merge(values: dict[str, Any], later: Mapping[str, Any]) -> None:
    for key, value in later.items():
        if isinstance(value, Mapping):
            section = values.setdefault(key, {})
            if isinstance(section, dict):  # else a section was given a plain value, which is refused as it stands
                _merge(section, value)
        elif value is not None:
            values[key] = value
