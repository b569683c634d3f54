"""The head gives the log-probs that autograd through all logits would give, and the same gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny_models import ARCHITECTURES
from training.errors import TrainingError
from training.logprobs import Head, head_of, token_logprobs
from training.policy import Policy

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
    logits = head.scale * (hidden @ head.weight.T).float()
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@pytest.mark.parametrize("tokens_per_chunk", [1, 7, TOKENS, 1000])  # of 7 the last chunk is short
def test_values_and_gradient_equal_plain_autograd(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor, tokens_per_chunk: int
) -> None:
    weights = torch.randn(TOKENS, generator=torch.Generator().manual_seed(4))
    ours = token_logprobs(hidden, head, targets, logits_per_chunk=tokens_per_chunk * VOCABULARY)
    (our_gradient,) = torch.autograd.grad((ours * weights).sum(), hidden)
    theirs = plain(hidden, head, targets)
    (their_gradient,) = torch.autograd.grad((theirs * weights).sum(), hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


def test_bfloat16_weights_have_a_float32_softmax(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> None:
    rounded = Head(head.weight.bfloat16(), head.scale, head.softcap)
    states = hidden.detach().bfloat16().requires_grad_()
    ours, theirs = token_logprobs(states, rounded, targets, 7 * VOCABULARY), plain(states, rounded, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)  # both round the products alike, and nothing after them
    (our_gradient,) = torch.autograd.grad(ours.sum(), states)
    (their_gradient,) = torch.autograd.grad(theirs.sum(), states)
    assert our_gradient.dtype == torch.bfloat16
    torch.testing.assert_close(our_gradient.float(), their_gradient.float(), rtol=0.05, atol=0.05)


def test_values_are_the_same_bits_with_and_without_a_gradient(
    head: Head, hidden: torch.Tensor, targets: torch.Tensor
) -> None:
    assert torch.equal(token_logprobs(hidden, head, targets), token_logprobs(hidden.detach(), head, targets))


def test_large_logits_do_not_overflow(hidden: torch.Tensor, targets: torch.Tensor) -> None:
    head = Head(1000 * torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1)))
    ours = token_logprobs(hidden, head, targets)
    torch.testing.assert_close(ours, plain(hidden, head, targets))
    assert torch.autograd.grad(ours.sum(), hidden)[0].isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_of_a_model_gives_its_logits(architecture: str, moved_policies: dict[str, Policy]) -> None:
    policy = moved_policies[architecture]
    token_ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        states = policy.base.get_decoder()(token_ids).last_hidden_state[0]  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(head_of(policy.base).logits(states), policy.base(token_ids).logits[0])
    assert (head_of(policy.base).softcap == 30.0) is (architecture == "gemma")


class Model(nn.Module):
    """As much of a causal language model as its head is found by."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.config = None

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize("head", [nn.Linear(2, 3, bias=True), nn.Identity()], ids=["bias", "no matrix"])
def test_a_head_that_is_no_plain_matrix_is_refused(head: nn.Module) -> None:
    with pytest.raises(TrainingError, match="not a plain matrix"):
        head_of(Model(head))
