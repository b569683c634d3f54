"""What KubeRay builds from a settings file, and what it is told of a file that a cluster cannot run with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.artifacts import CREDENTIALS_FILE, ArtifactSettings, require_usable
from service.cluster import blueprint, settings_of
from service.errors import BadRequest
from service.settings import Settings
from tests.conftest import empty
from training.fingerprints import fingerprints

GOOD = """
[store]
url = "postgresql://heliotrope@db/heliotrope"
[artifacts]
url = "s3://bucket/heliotrope"
[serving]
device = "cpu"
"""


def told(tmp_path: Path, text: str) -> BadRequest:
    file = tmp_path / "heliotrope.toml"
    file.write_text(text)
    with pytest.raises(BadRequest) as refusal:
        settings_of({"settings": str(file)})
    return refusal.value


def test_settings_that_every_node_can_follow_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "heliotrope.toml"
    file.write_text(GOOD)
    assert settings_of({"settings": str(file)}).artifacts.url == "s3://bucket/heliotrope"


@pytest.mark.parametrize(
    ("old", "new", "code", "remedy"),
    [
        ('url = "postgresql://heliotrope@db/heliotrope"', "", "store_not_shared", "PostgreSQL server that every node"),
        ('url = "s3://bucket/heliotrope"', "", "artifacts_not_shared", "Name an object store"),
        ("s3://bucket/heliotrope", "/var/lib/heliotrope", "artifacts_not_shared", "Name an object store"),
        ("s3://bucket/heliotrope", "file:///var/lib/heliotrope", "artifacts_not_shared", "Name an object store"),
        ('device = "cpu"', "", "device_not_said", "Say 'cpu' or 'gpu'"),
        ("[serving]", "[servings]", "unknown_setting", "Remove it or correct its name"),
    ],
)
def test_what_only_one_machine_can_have_is_refused_with_the_remedy(
    tmp_path: Path, old: str, new: str, code: str, remedy: str
) -> None:
    assert old in GOOD
    refusal = told(tmp_path, GOOD.replace(old, new))
    assert refusal.code == code
    assert remedy in refusal.message


def test_a_url_and_a_file_with_one_are_one_too_many(tmp_path: Path) -> None:
    assert "remove one of them" in told(tmp_path, GOOD.replace("[store]", '[store]\nurl_file = "/run/url"')).message


def test_a_secret_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    lost = GOOD.replace('url = "postgresql://heliotrope@db/heliotrope"', f'url_file = "{tmp_path}/url"')
    refusal = told(tmp_path, lost)
    assert (refusal.code, refusal.param) == ("secret_missing", "store.url_file")


def test_the_url_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://heliotrope@db/heliotrope\n")
    file = tmp_path / "heliotrope.toml"
    file.write_text(GOOD.replace('url = "postgresql://heliotrope@db/heliotrope"', f'url_file = "{tmp_path}/url"'))
    assert settings_of({"settings": str(file)}).store_url == "postgresql://heliotrope@db/heliotrope"


@pytest.mark.parametrize("args", [{}, {"settings": "x", "port": 1}])
def test_arguments_are_one_file_and_nothing_else(args: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        settings_of(args)


# --- with a database and a model --------------------------------------------------------------------------

KEY = f"hel_operator_{'0' * 12}_{'x' * 43}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As much of a base model as is looked at before a replica loads it."""
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture
def settings(tmp_path: Path, base: Path, database_url: str, database_engine: Engine) -> Settings:
    """As a cluster reads them, its secrets in files."""
    empty(database_engine)
    secrets = {"url": database_url, "operator": KEY}
    for name, text in secrets.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / "heliotrope.toml"
    file.write_text(f"""
[model]
name = "{base}"
[store]
url_file = "{tmp_path}/url"
[server.first_keys]
operator = "{tmp_path}/operator"
[artifacts]
url = "memory://bucket/heliotrope"
[serving]
device = "cpu"
""")
    return settings_of({"settings": str(file)})


def refused(settings: Settings) -> BadRequest:
    with pytest.raises(BadRequest) as refusal:
        blueprint(settings)
    return refusal.value


def test_a_cluster_that_has_everything_is_built_and_every_node_is_told_which_base_it_needs(
    settings: Settings, base: Path
) -> None:
    for _ in ("chat", "operations"):
        told = blueprint(settings)
        assert (told.model, told.fingerprints, told.use_gpu) == (base, fingerprints(base), False)


@pytest.mark.parametrize(
    ("file", "text", "param", "code"),
    [
        ("url", None, "store.url_file", "secret_missing"),
        ("url", "\n", "store.url_file", "secret_empty"),
        ("operator", None, "server.first_keys.operator", "secret_missing"),
        ("operator", "", "server.first_keys.operator", "secret_empty"),
        ("operator", "a password", "server.first_keys.operator", "malformed_key"),
    ],
)
def test_each_secret_that_is_missing_is_named(
    settings: Settings, tmp_path: Path, file: str, text: str | None, param: str, code: str
) -> None:
    if text is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(text)
    refusal = refused(settings)
    assert (refusal.param, refusal.code) == (param, code)
    assert param in refusal.message


@pytest.mark.parametrize(("text", "code"), [(None, "secret_missing"), ("", "secret_empty")])
def test_credentials_of_the_object_store_that_are_missing_are_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, code: str
) -> None:
    monkeypatch.setenv(CREDENTIALS_FILE, str(tmp_path / "credentials"))
    if text is not None:
        (tmp_path / "credentials").write_text(text)
    refusal = refused(settings)
    assert (refusal.param, refusal.code) == ("artifacts.url", code)
    assert CREDENTIALS_FILE in refusal.message


def test_an_object_store_that_takes_nothing_is_refused_with_the_remedy() -> None:
    with pytest.raises(BadRequest, match="Make the bucket") as refusal:
        require_usable(ArtifactSettings(url="http://127.0.0.1:9/read-only"))
    assert (refusal.value.param, refusal.value.code) == ("artifacts.url", "artifacts_not_usable")


@pytest.mark.parametrize(
    ("file", "part"), [("model.safetensors", "base model"), ("tokenizer_config.json", "tokenizer or chat template")]
)
def test_another_base_under_the_same_database_is_refused_with_both_digests(
    settings: Settings, base: Path, file: str, part: str
) -> None:
    before = blueprint(settings).fingerprints
    with (base / file).open("a") as out:
        out.write(" ")
    refusal, after = refused(settings), fingerprints(base)
    ours, theirs = (
        (after.base_model, before.base_model) if part == "base model" else (after.tokenizer, before.tokenizer)
    )
    assert (refusal.param, refusal.code) == ("model.name", "base_model_changed")
    assert f"the {part} in {base} has the digest {ours}" in refusal.message
    assert theirs in refusal.message
    assert "a database (store.url) or state folder (--state) of its own" in refusal.message


def test_the_same_is_asked_by_a_command_that_ends(settings: Settings, tmp_path: Path, base: Path) -> None:
    command = [sys.executable, "-m", "service.cluster", str(tmp_path / "heliotrope.toml")]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (asked.returncode, fingerprints(base).base_model in asked.stdout) == (0, True), asked.stderr
    (tmp_path / "url").unlink()
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert asked.stderr.startswith("setting 'store.url_file' names ")
    assert len(asked.stderr.splitlines()) == 1
