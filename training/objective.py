"""What a round minimises, as people write it: a sum of losses such as `dpo`, `dpo+0.2*nll` or `dpo+kto`.

Names and weights only; the formulas are in `losses.py`. Imports no torch, so that contracts can check an objective.
"""

from __future__ import annotations

from dataclasses import dataclass

# Losses of a pair: a chosen and a rejected answer to one prompt.
PAIRED = {
    "dpo": "DPO, sigmoid (arXiv:2305.18290)",
    "cdpo": "conservative DPO: `label_smoothing` of the votes may be wrong (ericmitchell.ai/cdpo.pdf)",
    "robust": "robust DPO: unbiased under `label_smoothing` flipped votes (arXiv:2403.00409)",
    "hinge": "SLiC's hinge on the DPO margin (arXiv:2305.10425)",
    "ipo": "IPO with log-ratios per token, as TRL has it (arXiv:2310.12036)",
    "ipo_sum": "IPO as in its paper, log-ratios of whole answers (arXiv:2310.12036)",
    "sigmoid_norm": "DPO with log-ratios per token (Tulu 3, arXiv:2411.15124)",
    "nll": "negative log-likelihood of the chosen answer per token, the mean over pairs (RPO, arXiv:2404.19733)",
    "nll_tokens": "the same, the mean over all tokens of a step",
}
# Losses of a single thumb: one answer, liked or not.
UNPAIRED = {
    "kto": "KTO (arXiv:2402.01306)",
    "apo_zero_unpaired": "APO-zero for single thumbs: KTO without its baseline (arXiv:2408.06266)",
}
ALIASES = {"rpo": "dpo+nll"}


@dataclass(frozen=True)
class Term:
    """One loss and its weight in the sum."""

    loss: str
    weight: float = 1.0


@dataclass(frozen=True)
class Objective:
    """The terms of a sum, those of pairs and those of thumbs."""

    paired: tuple[Term, ...]
    unpaired: tuple[Term, ...]


def parse(text: str) -> Objective:
    """`dpo+0.2*nll` -> its terms. Raises `ValueError` naming the part that is not understood, and what there is."""
    terms = [_term(part) for part in ALIASES.get(text.strip(), text).split("+")]
    names = [term.loss for term in terms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"objective {text!r} names {twice[0]!r} twice")
    return Objective(
        tuple(term for term in terms if term.loss in PAIRED), tuple(term for term in terms if term.loss in UNPAIRED)
    )


def _term(part: str) -> Term:
    factor, star, name = part.strip().rpartition("*")
    name = name.strip()
    if name not in PAIRED | UNPAIRED:
        raise ValueError(
            f"unknown loss {name!r}: an objective is a sum such as 'dpo+0.2*nll' of "
            f"{', '.join([*PAIRED, *UNPAIRED])}, or {', '.join(ALIASES)}"
        )
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        raise ValueError(f"the weight {factor.strip()!r} of {name!r} is not a number") from None
    if not 0 < weight <= 1000:
        raise ValueError(f"the weight {factor.strip()} of {name!r} is not above 0 and at most 1000")
    return Term(name, weight)
