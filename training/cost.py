"""What a pass through the model costs, in operations, and the sizes that bound its memory: the formulas that the trainer,
its benchmark and `sizing.py` share. Pure; imports no torch.

With N parameters of the layers' matrices (the body), H*V those of the head, T tokens and A of them answers' tokens:

    forward   2 N T + 2 H V A       a multiplication and an addition for each parameter (arXiv:2001.08361, section 2.1);
                                    the head only where an answer's token is predicted
    backward  the same once more    the gradient of activations; that of the weights, which full training computes as
                                    well, does not exist: the base is frozen (LoRA, arXiv:2106.09685)
"""

from __future__ import annotations

LOGITS_PER_CHUNK = 2**23  # float32 logits alive at once: 32 MiB
USABLE_SHARE = (
    0.7  # of the free memory, for activations that are kept; the rest is for what comes and goes within a layer
)


def forward_operations(body: int, head: int, tokens: int, answer_tokens: int) -> float:
    """Floating point operations of the matrix products of one forward pass; `body` and `head` are parameters."""
    return 2.0 * body * tokens + 2.0 * head * answer_tokens


def training_operations(forward: float) -> float:
    """Of a LoRA step whose forward pass takes `forward`, at least: there, and back to the activations."""
    return 2.0 * forward


def round_operations(forward: float, epochs: int) -> float:
    """Of a whole round, at least: its steps in each epoch, and once the reference, which is a forward pass."""
    return epochs * training_operations(forward) + forward
