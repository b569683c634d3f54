"""Where adapters and the files of rounds lie: the section `[artifacts]`. A folder of this machine, or an object store."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from pydantic import Field

from service.errors import BadRequest
from service.section import Section

_LOCAL = ("", "file")  # schemes of a path on this machine
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # scheme -> the extra of this package that brings its client
CREDENTIALS_FILE = "AWS_SHARED_CREDENTIALS_FILE"  # where a cluster mounts its Secret; read by the client itself
ENDPOINT = "AWS_ENDPOINT_URL_S3"  # read by s3fs, and by whatever else speaks with Amazon's S3 and its like


class ArtifactSettings(Section):
    url: str | None = Field(
        default=None, description="s3://bucket/folder, or whatever else fsspec opens; None: the state folder"
    )
    endpoint: str | None = Field(
        default=None, pattern=r"^https?://", description="of an S3-compatible server that is not Amazon's"
    )

    @property
    def shared(self) -> bool:
        """Whether every node of a cluster reaches the same files."""
        return self.url is not None and self.url.partition("://")[0] not in _LOCAL and "://" in self.url

    @property
    def environment(self) -> dict[str, str]:
        """What a process that opens the URL must find in its environment, beside the credentials of the operator's."""
        return {} if self.endpoint is None else {ENDPOINT: self.endpoint}


def require_client(settings: ArtifactSettings) -> None:
    """Raises `BadRequest` with the remedy where nothing that is installed opens the URL."""
    if settings.url is None or not settings.shared:
        return
    import fsspec  # only a service needs it, and not the command line

    scheme = settings.url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise BadRequest(
            f"artifacts.url begins with {scheme}://, which fsspec does not know. Name an s3:// URL.",
            param="artifacts.url", code="artifacts_unknown",
        ) from error  # fmt: skip
    except ImportError as error:
        remedy = f"pip install 'heliotrope[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
        raise BadRequest(
            f"artifacts.url begins with {scheme}://, and what opens it is not installed. Install it: {remedy}.",
            param="artifacts.url", code="artifacts_client_missing",
        ) from error  # fmt: skip


def require_usable(settings: ArtifactSettings) -> None:
    """Raises `BadRequest` with the remedy unless an object can be written to the URL, read and deleted from here."""
    require_client(settings)
    if settings.url is None or not settings.shared:
        return
    _require_credentials_file()
    import fsspec

    there = {} if settings.endpoint is None else {"endpoint_url": settings.endpoint}
    try:
        files, root = fsspec.core.url_to_fs(settings.url, **there)
        probe = f"{root.rstrip('/')}/.usable-{uuid.uuid4().hex}"
        files.pipe_file(probe, b"heliotrope")
        assert files.cat_file(probe) == b"heliotrope", "an object store gives back what it was given"
        files.rm_file(probe)
    except Exception as error:  # each client has exceptions of its own
        raise BadRequest(
            f"artifacts.url: {settings.url} cannot be used ({type(error).__name__}: {error}). Make the bucket, name its "
            "server in artifacts.endpoint, and give credentials that may read, write, list and delete in it.",
            param="artifacts.url", code="artifacts_not_usable",
        ) from error  # fmt: skip


def _require_credentials_file() -> None:
    """A client goes on without credentials where the file that names them is not there, and says something else later."""
    named = os.environ.get(CREDENTIALS_FILE)
    if named is None:
        return
    try:
        empty = not Path(named).read_text().strip()
    except OSError as error:
        raise BadRequest(
            f"{CREDENTIALS_FILE} names {named}, which cannot be read ({error.strerror}). Mount the Secret with the "
            "credentials for artifacts.url there.",
            param="artifacts.url", code="secret_missing",
        ) from error  # fmt: skip
    if empty:
        raise BadRequest(
            f"{CREDENTIALS_FILE} names {named}, which is empty. Put the credentials for artifacts.url into the Secret.",
            param="artifacts.url", code="secret_empty",
        )  # fmt: skip
