"""Where a setting comes from, and that nothing misspelt is ever ignored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import BadRequest
from service.settings import CONFIG_FILE, Settings, load


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path) -> Iterator[None]:
    """No heliotrope.toml of whoever runs the tests."""
    with contextlib.chdir(tmp_path):
        yield


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def _refusal(file: Path | None = None, environment: dict[str, str] | None = None, **overrides: Any) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        load(file, environment or {}, overrides)
    return refused.value


def test_the_defaults_need_nothing() -> None:
    settings = load(environment={})
    assert settings == Settings()
    assert (settings.model.name, settings.server.port, settings.store.url) == ("seedling", 8000, None)
    assert settings.server.host == "127.0.0.1", "the default does not open the port to the network"
    assert settings.server.insecure_no_auth is False


def test_later_sources_win_key_by_key(tmp_path: Path) -> None:
    file = _file(tmp_path, "[server]\nport = 1001\nhost = 'file'\n[training]\nbeta = 0.5\nepochs = 9\n")
    environment = {"HELIOTROPE_SERVER__PORT": "1002", "HELIOTROPE_TRAINING__BETA": "0.25"}
    overrides = {"server": {"port": 1003}}
    assert load(file, {}).server.port == 1001
    assert load(file, environment).server.port == 1002
    settings = load(file, environment, overrides)
    assert (settings.server.port, settings.server.host) == (1003, "file")
    assert (settings.training.beta, settings.training.epochs) == (0.25, 9)


def test_a_flag_that_was_not_given_does_not_count(tmp_path: Path) -> None:
    file = _file(tmp_path, "[server]\nport = 1001\n")
    assert load(file, {}, {"server": {"port": None}, "state": None}).server.port == 1001


def test_the_file_of_the_current_folder_is_read_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("[server]\nport = 1001\n")
    assert load(environment={}).server.port == 1001
    assert load(_file(tmp_path, "[server]\nport = 1002\n"), {}).server.port == 1002


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("HELIOTROPE_SERVER__INSECURE_NO_AUTH", "true", lambda s: s.server.insecure_no_auth is True),
        ("HELIOTROPE_MODEL__NAME", "Qwen/Qwen3-0.6B", lambda s: s.model.name == "Qwen/Qwen3-0.6B"),
        ("HELIOTROPE_STORE__URL", "postgresql://db/h", lambda s: s.store.url == "postgresql://db/h"),
        ("HELIOTROPE_SERVING__MAX_LORA_RANK", "16", lambda s: s.serving.max_lora_rank == 16),
        ("HELIOTROPE_SERVING__DTYPE", "bfloat16", lambda s: s.serving.dtype == "bfloat16"),
        ("HELIOTROPE_TRAINING__SEED", "7", lambda s: s.training.seed == 7),
        ("HELIOTROPE_STATE", "/srv/heliotrope", lambda s: s.state == Path("/srv/heliotrope")),
    ],
)
def test_every_kind_of_value_can_come_from_the_environment(name: str, value: str, read: Any) -> None:
    assert read(load(environment={name: value}))


def test_the_environment_of_others_and_of_the_command_line_is_left_alone() -> None:
    others = {"PATH": "/bin", "HELIO": "x", "HELIOTROPE_URL": "http://x", "HELIOTROPE_KEY": "k"}
    assert load(environment=others) == Settings()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("prot = 1\n", "prot"),
        ("[server]\nprot = 1\n", "server.prot"),
        ("[sevrer]\nport = 1\n", "sevrer"),
        ("[training]\nlearning-rate = 0.1\n", "training.learning-rate"),
        ("[serving]\nreplica = 2\n", "serving.replica"),
    ],
)
def test_an_unknown_key_of_the_file_is_named_with_the_file(tmp_path: Path, text: str, key: str) -> None:
    file = _file(tmp_path, text)
    refused = _refusal(file)
    assert (refused.param, refused.code) == (key, "unknown_setting")
    assert key in refused.message
    assert str(file) in refused.message


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("HELIOTROPE_SERVER__PROT", "server.prot"),
        ("HELIOTROPE_PORT", "port"),
        ("HELIOTROPE_SERVER__PORT__NUMBER", "server.port"),
        ("HELIOTROPE_", ""),
    ],
)
def test_an_unknown_key_of_the_environment_refuses_the_start(name: str, key: str) -> None:
    assert _refusal(environment={name: "1"}).param == key


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_that_is_given_a_value_is_refused_whatever_the_order(order: int) -> None:
    pairs = [("HELIOTROPE_SERVER", "x"), ("HELIOTROPE_SERVER__PORT", "1")]
    assert _refusal(environment=dict(pairs[::order])).param == "server"


@pytest.mark.parametrize(
    ("section", "value", "key"),
    [
        ("server", {"port": 0}, "server.port"),
        ("server", {"port": 65536}, "server.port"),
        ("server", {"port": "http"}, "server.port"),
        ("training", {"beta": 0}, "training.beta"),
        ("training", {"beta": float("nan")}, "training.beta"),
        ("training", {"learning_rate": float("inf")}, "training.learning_rate"),
        ("training", {"objective": "ppo"}, "training.objective"),
        ("training", {"lora_rank": 12}, "training.lora_rank"),
        ("training", {"min_pairs": 1}, "training.min_pairs"),
        ("training", {"held_out_share": 1}, "training.held_out_share"),
        ("serving", {"replicas": 0}, "serving.replicas"),
        ("serving", {"device": "tpu"}, "serving.device"),
        ("model", {"name": ""}, "model.name"),
        ("server", "x", "server"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_key(section: str, value: Any, key: str) -> None:
    refused = _refusal(None, {}, **{section: value})
    assert (refused.param, refused.code) == (key, "invalid_setting")
    assert key in refused.message


def test_what_is_trained_must_be_servable() -> None:
    refused = _refusal(training={"lora_rank": 16}, serving={"max_lora_rank": 8})
    assert "training.lora_rank = 16 exceeds serving.max_lora_rank = 8" in refused.message
    assert load(environment={}, overrides={"training": {"lora_rank": 16}, "serving": {"max_lora_rank": 16}})


@pytest.mark.parametrize(
    ("content", "why"), [(b"[server\n", "is not TOML"), (b"name = '\xff'\n", "is not TOML"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    refused = _refusal(file)
    assert refused.code == "unreadable_settings"
    assert str(file) in refused.message
    assert why in refused.message


def test_settings_survive_their_way_through_a_file() -> None:
    """`up --detach` hands them to its process as JSON."""
    settings = load(environment={}, overrides={"training": {"beta": 0.3}, "store": {"url": "postgresql://db"}})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
