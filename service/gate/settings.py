"""What a candidate must show before it may answer. Loaded by `service/settings.py` from the section `[gate]`."""

from __future__ import annotations

from pydantic import Field, field_validator

from service.section import Section

CHECKS = (
    *("integrity", "loadable", "outside", "finite", "step0", "learned", "held_out", "logp_chosen"),
    *("kl_previous", "kl_base", "parity", "length", "eos", "repetition", "format", "over_refusal", "under_refusal"),
    *("phrases", "suite", "win_rate", "latency"),
)


class JudgeSettings(Section):
    """A model that compares answers: any endpoint that speaks OpenAI's chat completions."""

    base_url: str = Field(description="such as https://judge.example/v1; the suites' prompts and answers go there")
    model: str
    api_key_variable: str = Field(default="OPENAI_API_KEY", description="environment variable with the key")
    at_once: int = Field(default=8, ge=1, description="requests at a time")
    timeout_seconds: float = Field(default=60.0, gt=0)
    retries: int = Field(default=3, ge=0)
    prompts: int = Field(default=200, ge=2, description="at most so many prompts are compared")
    samples: int = Field(default=1, ge=1, le=16, description="answers to each prompt, from either side")
    temperature: float = Field(default=0.7, ge=0, le=2, description="of the answers that are compared")


class GateSettings(Section):
    needed: tuple[str, ...] = Field(
        default=("integrity", "loadable", "finite", "step0", "learned", "held_out", "parity"),
        description="checks that must pass; of others an abstention does not count, a failure always does",
    )
    min_held_out_pairs: int = Field(
        default=4, ge=1, description="with fewer the gate abstains, and the old adapter stays"
    )
    held_out_p: float = Field(
        default=0.1, gt=0, le=1,
        description="exact paired test, one-sided: where the candidate loses pairs too, how likely chance may be",
    )  # fmt: skip
    worse_p: float = Field(
        default=0.05, gt=0, le=0.5, description="the same test against it, by prompt, person and time: it fails below"
    )
    step0_tolerance: float = Field(default=1e-4, ge=0, description="|log-ratio| allowed before the first update")
    min_final_margin: float = Field(default=0.01, ge=0, description="reward margin the last steps must reach")
    max_chosen_logp_drop: float = Field(
        default=0.5, ge=0, description="nats a token that held-out liked answers may lose, against the deployed adapter"
    )
    max_kl_previous: float = Field(default=0.5, gt=0, description="nats a token, to the deployed adapter")
    max_kl_base: float = Field(
        default=1.0, gt=0, description="nats a token, to the base: the budget of all rounds together"
    )
    parity_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="mean distance of serving's log-probs from training's, nats a token; "
        "None: 0.01 where both compute in float32, else 0.05",
    )
    suites: tuple[str, ...] | None = Field(
        default=None, description="names or JSONL files; None: the seedling's own for it, else all that come along"
    )
    suite_tolerance: float = Field(
        default=0.02, ge=0, le=1, description="share of right answers that a slice may lose beyond its noise"
    )
    suite_budget: float = Field(
        default=0.05, ge=0, le=1, description="the same against the base: what all rounds together may lose"
    )
    min_length_ratio: float = Field(default=0.4, ge=0, le=1, description="of mean answer lengths, new to deployed")
    max_length_ratio: float = Field(default=2.5, ge=1)
    behaviour_tolerance: float = Field(
        default=0.05, ge=0, le=1, description="by how much a share of answers may get worse beyond its noise"
    )
    max_phrase_rise: float = Field(
        default=0.25, gt=0, le=1,
        description="a phrase in so many more of all answers than before is named, and flags the round; nothing fails",
    )  # fmt: skip
    min_win_rate: float = Field(
        default=0.5, ge=0, le=1, description="lower end of the length-controlled interval, where there is a judge"
    )
    max_latency_ratio: float = Field(
        default=3.0, ge=1, description="of seconds a token, new to deployed; the first adapter is measured by the base"
    )
    at_once: int = Field(default=32, ge=1, description="questions of the gate that a replica answers beside its users'")
    judge: JudgeSettings | None = Field(default=None, description="None: the win rate and judged items abstain")

    @field_validator("needed")
    @classmethod
    def _known(cls, needed: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(needed) - set(CHECKS))
        if unknown:
            raise ValueError(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
        return needed

    def needs(self, check: str) -> bool:
        """Whether that check must decide. With a judge the win rate must, as it was asked for."""
        return check in self.needed or (check == "win_rate" and self.judge is not None)
