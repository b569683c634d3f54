"""What KubeRay builds from a settings file, and what it is told of a file that a cluster cannot run with."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cluster import settings_of
from service.errors import BadRequest

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
