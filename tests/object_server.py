"""An object store that speaks S3, as somebody else runs it: moto's server, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import s3fs

from tests.fake_cluster import eventually

KEY, SECRET = "heliotrope", "not-a-secret"


@dataclass(frozen=True)
class ObjectServer:
    endpoint: str
    credentials: Path  # a file as Amazon's tools read it

    def files(self) -> Any:
        """Its content, from this process."""
        return s3fs.S3FileSystem(endpoint_url=self.endpoint, key=KEY, secret=SECRET, skip_instance_cache=True)


@contextmanager
def object_server(folder: Path, port: int, bucket: str) -> Iterator[ObjectServer]:
    """As long as the block lasts, with an empty bucket."""
    credentials = folder / "credentials"
    credentials.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "objects.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = ObjectServer(f"http://127.0.0.1:{port}", credentials)
        eventually(lambda: _answers(server.endpoint, process, folder))
        server.files().mkdir(bucket)
        yield server
    finally:
        process.terminate()
        process.wait()


def _answers(endpoint: str, process: subprocess.Popen[bytes], folder: Path) -> bool:
    assert process.poll() is None, (folder / "objects.log").read_text()
    return httpx.get(endpoint).is_success
