"""What an operator may set about which preferences count: the sections `[preferences]` and `[quarantine]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.section import Section


class PreferenceSettings(Section):
    """The guards; each leaves pairs out for a reason of its own (`service/pairs.py`, LeftOut)."""

    across_users: Literal["single_turn", "never", "always"] = Field(
        default="single_turn",
        description="may one user's vote meet another's? single_turn: where the prompt is one message, not a "
        "conversation, beside the app's own system message",
    )
    max_pairs_per_user: int = Field(
        default=50, ge=1, description="in one round; votes without `user` are one user of their app"
    )
    max_pairs_per_user_per_day: int = Field(default=50, ge=1, description="by the day (UTC) of their latest vote")
    max_pairs_per_prompt: int = Field(default=16, ge=1, description="in one round")
    max_share_per_app: float = Field(
        default=1.0, gt=0, le=1, description="of the pairs from votes that every other guard lets through"
    )
    near_duplicate: float = Field(
        default=0.9, gt=0, le=1, description="likeness from which two pairs count as one; 1: only the very same"
    )
    dictated: float = Field(
        default=0.8, gt=0, le=1, description="share of an answer that its prompt may hold already; 1: all of it"
    )
    max_age_days: int | None = Field(default=None, ge=1, description="of a pair's latest vote; None: any")
    max_adapters_behind: int | None = Field(
        default=None, ge=0, description="adapters that were promoted since the answer's own; None: any number"
    )
    staleness_half_life: float | None = Field(
        default=None, gt=0, description="adapters after which a pair weighs half in the loss; None: all weigh the same"
    )
    max_longer_share: float = Field(
        default=1.0, ge=0.5, le=1, description="of the pairs, in which the longer answer may be the chosen one"
    )

    @property
    def go_by_the_route(self) -> bool:
        """Does it matter to any guard which adapter answers now?"""
        return self.max_adapters_behind is not None or self.staleness_half_life is not None


class QuarantineSettings(Section):
    """Votes are held back when they come in a way that people do not vote in."""

    enabled: bool = True
    burst_votes: int = Field(default=200, ge=2, description="of one user within burst_minutes")
    burst_minutes: float = Field(default=10.0, gt=0)
    flips: int = Field(default=6, ge=2, description="changes of mind of one user about one and the same answer")
    recent_votes: int = Field(
        default=2000, ge=1, description="latest votes of an app, of at most a day, among which shares are taken"
    )
    dominance_votes: int = Field(default=200, ge=2, description="of them, from which shares of users are looked at")
    user_share: float = Field(default=0.25, gt=0, le=1, description="of an app's recent votes that one user may have")
    phrase_share: float = Field(
        default=0.4, gt=0, le=1, description="of one user's liked answers that may share a phrase which others' lack"
    )
    phrase_votes: int = Field(
        default=20, ge=2, description="answers liked by one user from which phrases are looked at"
    )
