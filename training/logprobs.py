"""The head: log-probs of the answers' tokens from the hidden states that predict them, and their gradient.

Only these positions meet the vocabulary, a chunk at a time, so the logits of a whole batch never exist. Every loss
here sees hidden states through log-probs alone; the gradient of a log-prob is therefore built while its logits are
at hand, and the backward pass only scales it. Knows one matrix; knows no loss and no batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.cost import LOGITS_PER_CHUNK
from training.errors import TrainingError


@dataclass(frozen=True)
class Head:
    """From a hidden state to logits: `softcap * tanh(scale * weight @ hidden / softcap)`, or without the cap."""

    weight: Tensor  # [vocabulary, hidden size], frozen
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[tokens, hidden size] -> float32 [tokens, vocabulary], in `out` where one is given."""
        if self.weight.dtype == torch.float32:
            logits = torch.mm(hidden, self.weight.T, out=out)
        else:
            logits = (hidden @ self.weight.T).float() if out is None else out.copy_(hidden @ self.weight.T)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logit / d (weight @ hidden): [tokens, vocabulary]; None where it is `scale` everywhere."""
        return None if self.softcap is None else 1 - (logits / self.softcap) ** 2


def head_of(causal_lm: torch.nn.Module) -> Head:
    """The head of a Hugging Face causal language model, with what its config does to the logits.

    Gemma caps them, Cohere multiplies and Granite divides. `layout.py` compares the result with the model's own
    logits, so a model that does something else besides is noticed. Raises `TrainingError` for a head with a bias.
    """
    linear, config = causal_lm.get_output_embeddings(), causal_lm.config  # pyright: ignore[reportCallIssue]
    if not isinstance(linear, torch.nn.Linear) or linear.bias is not None:
        raise TrainingError("the model's output head is not a plain matrix: this model cannot be trained here")
    config = config.get_text_config()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight.detach(), scale, getattr(config, "final_logit_softcapping", None))


def token_logprobs(hidden: Tensor, head: Head, targets: Tensor, logits_per_chunk: int = LOGITS_PER_CHUNK) -> Tensor:
    """log p(target) at each position: [tokens, hidden size] and [tokens] -> float32 [tokens], in nats."""
    chunk = max(1, logits_per_chunk // head.weight.shape[0])  # tokens
    return _TokenLogprobs.apply(hidden, head, targets, chunk)  # pyright: ignore[reportReturnType]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, targets: Tensor, chunk: int) -> Tensor:  # pyright: ignore
        logprobs = hidden.new_empty(len(targets), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # d logprob / d hidden
        workspace = hidden.new_empty(min(chunk, len(targets)), head.weight.shape[0], dtype=torch.float32)
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            target = targets[span]
            logits = head.logits(hidden[span], workspace[: len(target)])  # [tokens, vocabulary]
            of_target = logits.gather(-1, target[:, None])
            slope = head.slope(logits) if gradient is not None else None
            highest = logits.amax(-1, keepdim=True)
            exponentials = logits.sub_(highest).exp_()  # in place: torch's logsumexp reads and writes far more
            total = exponentials.sum(-1, keepdim=True)
            logprobs[span] = (of_target - highest - total.log())[:, 0]
            if gradient is not None:
                gradient[span] = _gradient(head, target, exponentials, total, slope)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return logprobs

    @staticmethod
    def backward(ctx, by_logprob: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return gradient * by_logprob[:, None].to(gradient.dtype), None, None, None


def _gradient(head: Head, target: Tensor, exponentials: Tensor, total: Tensor, slope: Tensor | None) -> Tensor:
    """`scale * (slope_y W_y - sum over v of p_v slope_v W_v)` with p = exponentials / total: [tokens, hidden size]."""
    weight = head.weight
    towards = weight[target].float()
    if slope is not None:
        towards *= slope.gather(-1, target[:, None])
        exponentials.mul_(slope)
    away = (exponentials.to(weight.dtype) @ weight).float()
    return torch.addcdiv(towards, away, total, value=-1).mul_(head.scale)
