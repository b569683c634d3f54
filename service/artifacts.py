"""Where adapters and the files of rounds lie: the section `[artifacts]`. A folder of this machine, or an object store."""

from __future__ import annotations

from pydantic import Field

from service.section import Section

_LOCAL = ("", "file")  # schemes of a path on this machine


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
