"""The head gives the log-probs that autograd through all logits would give, and the same gradient."""

from __future__ import annotations

import pytest
import torch

from training.logprobs import Head, answer_logprobs, token_logprobs

HIDDEN, VOCABULARY, TOKENS = 16, 50, 23


@pytest.fixture(params=[(1.0, None), (0.25, None), (1.0, 5.0), (2.0, 5.0)], ids=str)
def head(request: pytest.FixtureRequest) -> Head:
    generator = torch.Generator().manual_seed(1)
    scale, softcap = request.param
    return Head(torch.randn(VOCABULARY, HIDDEN, generator=generator), scale, softcap)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2)).requires_grad_()


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(3))


def plain(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    logits = head.scale * hidden @ head.weight.T
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def test_values_and_gradient_equal_plain_autograd(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> None:
    weights = torch.randn(TOKENS, generator=torch.Generator().manual_seed(4))
    ours = token_logprobs(hidden, head, targets, logits_per_chunk=7 * VOCABULARY)  # the last chunk is short
    (our_gradient,) = torch.autograd.grad((ours * weights).sum(), hidden)
    theirs = plain(hidden, head, targets)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


def test_values_are_the_same_bits_with_and_without_a_gradient(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor
) -> None:
    assert torch.equal(token_logprobs(hidden, head, targets), token_logprobs(hidden.detach(), head, targets))


def test_answers_are_summed_by_their_owner(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> None:
    owners = torch.arange(TOKENS) % 4
    per_token = token_logprobs(hidden, head, targets).double()
    summed = answer_logprobs(hidden, head, targets, owners, pairs=2)
    assert summed.shape == (2, 2)
    assert summed.flatten().tolist() == pytest.approx([per_token[i::4].sum().item() for i in range(4)])
