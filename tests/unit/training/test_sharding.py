"""A base that is spread over workers: no worker holds more of it whole than the layers at hand. One process, alone in
its group, shows what FSDP gathers and what it lets go again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.unit.training.conftest import MakeSpec, move, random_pairs
from training.lora import layers
from training.memory import activation_bytes_per_token
from training.policy import Policy, load_policy
from training.rows import Item, Rows, lay_out
from training.world import ALONE


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def sharded(make_spec: MakeSpec) -> Policy:
    policy = load_policy(make_spec(workers=2, shard_base=True), ALONE)
    move(policy)
    return policy


def rows() -> Rows:
    return lay_out([Item(example) for example in random_pairs(4)], "shared")


def gathered(policy: Policy) -> list[str]:
    """The matrices that lie whole in this process."""
    return [name for name, layer in layers(policy.base) if not isinstance(layer.base_layer.weight, DTensor)]


def gradients(policy: Policy) -> list[Tensor]:
    return list(torch.autograd.grad(policy.logprobs(rows()).sum(), policy.trainable))


def test_a_layer_is_let_go_when_the_next_one_comes(sharded: Policy) -> None:
    assert gathered(sharded) == []
    with torch.no_grad():
        sharded.logprobs(rows())
    assert gathered(sharded) == []  # the reference has no backward pass that would let go of anything
    logprobs = sharded.logprobs(rows())
    assert gathered(sharded) == []
    logprobs.sum().backward()
    assert gathered(sharded) == []


@pytest.mark.parametrize("twice", [False, True], ids=["kept", "computed twice"])
def test_gradients_are_those_of_a_whole_base(sharded: Policy, make_spec: MakeSpec, twice: bool) -> None:
    whole = load_policy(make_spec(), ALONE)
    move(whole)
    if twice:
        sharded.checkpoint_gradients()
    for ours, theirs in zip(gradients(sharded), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_adapter_and_what_is_no_layer_stay_whole(sharded: Policy) -> None:
    whole = {name for name, parameter in sharded.base.named_parameters() if not isinstance(parameter, DTensor)}
    assert {name for name in whole if "lora_" not in name} == {"model.embed_tokens.weight", "model.norm.weight"}
    assert sum("lora_" in name for name in whole) == len(sharded.trainable)


def test_what_was_gathered_and_let_go_is_no_activation(sharded: Policy, make_spec: MakeSpec) -> None:
    whole = load_policy(make_spec(), ALONE)
    assert activation_bytes_per_token(sharded, random_pairs(4), "shared") == activation_bytes_per_token(
        whole, random_pairs(4), "shared"
    )
