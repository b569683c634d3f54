"""The section `[artifacts]`: what opens its URL must be here, and its endpoint reaches whoever opens it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.artifacts import ArtifactSettings, require_client
from service.errors import BadRequest


@pytest.mark.parametrize("url", [None, "/somewhere", "file:///somewhere", "memory://somewhere"])
def test_what_is_here_opens(url: str | None) -> None:
    require_client(ArtifactSettings(url=url))


@pytest.mark.parametrize(
    ("url", "code", "remedy"),
    [
        ("s4://bucket", "artifacts_unknown", "Name an s3:// URL"),
        ("dropbox://folder", "artifacts_client_missing", "dropboxdrivefs"),
    ],
)
def test_a_url_that_nothing_here_opens_is_refused_with_the_remedy(url: str, code: str, remedy: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        require_client(ArtifactSettings(url=url))
    assert (refusal.value.code, refusal.value.param) == (code, "artifacts.url")
    assert remedy in refusal.value.message


def test_without_the_extra_s3_is_refused_and_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"  # as if it were not installed
        "from service.artifacts import ArtifactSettings, require_client\n"
        "require_client(ArtifactSettings(url='s3://bucket/folder'))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Install it: pip install 'heliotrope[s3]'." in ended.stderr.splitlines()[-1]


def test_an_endpoint_travels_as_what_clients_of_s3_read() -> None:
    assert ArtifactSettings(url="s3://bucket").environment == {}
    there = ArtifactSettings(url="s3://bucket", endpoint="http://objects:8333")
    assert there.environment == {"AWS_ENDPOINT_URL_S3": "http://objects:8333"}
