"""The head: log-probs of the answers' tokens from the hidden states that predict them, and their gradient.

Only these positions meet the vocabulary, a chunk at a time, so the logits of a whole batch never exist. Every loss
here sees hidden states through log-probs alone; the gradient of a log-prob is therefore built while its logits are
at hand, and the backward pass only scales it. Knows one matrix; knows no loss and no batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.errors import TrainingError

LOGITS_PER_CHUNK = 2**24  # float32 logits alive at once: 64 MiB


@dataclass(frozen=True)
class Head:
    """From a hidden state to logits: `softcap * tanh(scale * weight @ hidden / softcap)`, or without the cap."""

    weight: Tensor  # [vocabulary, hidden size], frozen
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden size] -> float32 [tokens, vocabulary]."""
        logits = (hidden @ self.weight.T).float() * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logit_gradient(self, by_logit: Tensor, logits: Tensor) -> Tensor:
        """Chain rule from d/dlogits [tokens, vocabulary] to d/dhidden [tokens, hidden size]."""
        if self.softcap is not None:
            by_logit = by_logit * (1 - (logits / self.softcap) ** 2)
        return (by_logit * self.scale).to(self.weight.dtype) @ self.weight


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


def answer_logprobs(hidden: Tensor, head: Head, targets: Tensor, owners: Tensor, pairs: int) -> Tensor:
    """Sum over each answer's tokens: float64 [pairs, 2], chosen then rejected. `owners` as in `rows.py`."""
    per_token = token_logprobs(hidden, head, targets).double()
    return per_token.new_zeros(2 * pairs).index_add(0, owners, per_token).view(pairs, 2)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, targets: Tensor, chunk: int) -> Tensor:  # pyright: ignore
        with_gradient = ctx.needs_input_grad[0]
        logprobs = hidden.new_empty(len(targets), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if with_gradient else None  # d logprob / d hidden: [tokens, hidden size]
        for start in range(0, len(targets), chunk):
            span = slice(start, start + chunk)
            logits = head.logits(hidden[span])
            target = targets[span, None]
            logprobs[span] = (logits.gather(-1, target) - logits.logsumexp(-1, keepdim=True))[:, 0]
            if gradient is not None:
                by_logit = -logits.softmax(-1)  # d logprob / d logits is one_hot(target) - softmax(logits)
                by_logit.scatter_add_(-1, target, torch.ones_like(target, dtype=torch.float32))
                gradient[span] = head.logit_gradient(by_logit, logits)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return logprobs

    @staticmethod
    def backward(ctx, by_logprob: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return gradient * by_logprob[:, None].to(gradient.dtype), None, None, None
