"""Where adapters and the files of rounds lie: the section `[artifacts]`. A folder of this machine, or an object store."""

from __future__ import annotations

from pydantic import Field

from service.errors import BadRequest
from service.section import Section

_LOCAL = ("", "file")  # schemes of a path on this machine
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # scheme -> the extra of this package that brings its client
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
