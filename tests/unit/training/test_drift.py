"""The KL between two policies, against torch's own distributions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from training.drift import drift, hidden_kl, kl_sums
from training.logprobs import Head

HIDDEN, VOCABULARY, TOKENS = 16, 50, 23


@pytest.fixture(params=[(1.0, None), (0.25, None), (1.0, 5.0), (2.0, 5.0)], ids=str)
def head(request: pytest.FixtureRequest) -> Head:
    scale, softcap = request.param
    return Head(torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1)), scale, softcap)


def hidden_states(seed: int, tokens: int = TOKENS) -> Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def distribution(hidden: Tensor, head: Head) -> Categorical:
    logits = head.scale * hidden.double() @ head.weight.double().T
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return Categorical(logits=logits)


@pytest.mark.parametrize("logits_per_chunk", [1, 14 * VOCABULARY, 10**6])  # the second leaves a short last chunk
def test_it_is_the_kl_of_the_two_distributions(head: Head, logits_per_chunk: int) -> None:
    candidate, other = hidden_states(2), hidden_states(3)
    ours = hidden_kl(candidate, other, head, logits_per_chunk)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(
        ours, kl_divergence(distribution(candidate, head), distribution(other, head)), rtol=1e-5, atol=1e-6
    )


def test_it_is_the_candidates_expectation_and_not_the_others(head: Head) -> None:
    candidate, other = hidden_states(2), hidden_states(3)
    assert not torch.allclose(hidden_kl(candidate, other, head), hidden_kl(other, candidate, head), rtol=0.01)


def test_a_policy_has_not_moved_from_itself(head: Head) -> None:
    assert hidden_kl(hidden_states(2), hidden_states(2), head).tolist() == [0.0] * TOKENS


def test_rounding_makes_no_divergence_negative(head: Head) -> None:
    candidate = hidden_states(2, tokens=2000)
    nearly = candidate * (1 + 1e-7)
    assert hidden_kl(candidate, nearly, head).min().item() >= 0


def test_distributions_without_common_tokens_are_far_apart_and_finite() -> None:
    head = Head(torch.eye(HIDDEN) * 500)
    candidate, other = torch.eye(HIDDEN)[:1], torch.eye(HIDDEN)[1:2]
    assert hidden_kl(candidate, other, head).tolist() == pytest.approx([500.0])


def test_it_keeps_no_graph(head: Head) -> None:
    assert not hidden_kl(hidden_states(2).requires_grad_(), hidden_states(3), head).requires_grad


def test_drift_is_the_mean_over_the_tokens_of_all_batches(head: Head) -> None:
    candidate, previous, base = hidden_states(2), hidden_states(3), hidden_states(4)
    batches = [slice(0, 5), slice(5, None)]
    found = drift(sum((kl_sums(candidate[b], previous[b], base[b], head) for b in batches), torch.zeros(3).double()))
    assert found.tokens == TOKENS
    assert found.kl_previous == pytest.approx(hidden_kl(candidate, previous, head).mean().item())
    assert found.kl_base == pytest.approx(hidden_kl(candidate, base, head).mean().item())


def test_a_batch_without_tokens_adds_nothing_and_there_is_no_drift_over_none(head: Head) -> None:
    nothing = hidden_states(2, tokens=0)
    sums = kl_sums(nothing, nothing, nothing, head)
    assert sums.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="no tokens"):
        drift(sums)
