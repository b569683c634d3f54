"""What a round leaves for people to judge it by: where it ran, its report, its release notes, and how to train it again."""

from __future__ import annotations

from service.evidence.provenance import environment

__all__ = ["environment"]
