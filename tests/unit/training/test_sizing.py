"""What a round is computed to take, against what the trainer counts, holds and keeps on tiny models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from service.settings import load as load_settings
from tests.benchmarks.shapes import TINY
from tests.tiny_models import ARCHITECTURES, EOS
from tests.unit.training.conftest import LORA, MakeSpec
from training import cost, footprint, sizing
from training.footprint import Work
from training.memory import activation_bytes_per_token
from training.model_shape import ModelShape
from training.pairs import Pair
from training.policy import Policy, load_policy
from training.rows import FULL, Item, Rows, lay_out
from training.speed import training_operations
from training.world import ALONE

ROOT = Path(__file__).parents[3]
WORK = Work(
    pairs=6, prompt=40, chosen=12, rejected=20, epochs=1, rank=LORA.rank, pairs_per_step=6, tokens_per_micro_batch=10**6
)
PAIRS = [Pair(str(n), (10 + n, *range(50, 89)), (*range(100, 111), EOS), tuple(range(130, 150))) for n in range(6)]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def shape(architecture: str, models: dict[str, Path]) -> ModelShape:
    return ModelShape.of(json.loads((models[architecture] / "config.json").read_text()))


def rows() -> Rows:
    return lay_out([Item(pair) for pair in PAIRS], "shared")


def step(policy: Policy) -> None:
    logprobs = policy.logprobs(rows())[:, :, FULL]
    (logprobs[:, 0] - logprobs[:, 1]).sum().backward()


def counted(do: Callable[[], object]) -> float:
    """Floating point operations of the matrix products that PyTorch sees."""
    with FlopCounterMode(display=False) as counter:
        do()
    return counter.get_total_flops()


def test_the_parameters_of_base_and_adapter_are_exactly_those_of_the_policy(
    architecture: str, shape: ModelShape, moved_policies: dict[str, Policy]
) -> None:
    policy = moved_policies[architecture]
    trainable = {id(parameter) for parameter in policy.trainable}
    frozen = sum(p.numel() for p in policy.base.parameters() if id(p) not in trainable)
    assert shape.parameters == frozen
    assert shape.body == policy.body_parameters
    assert shape.head == policy.head.weight.numel()
    assert shape.adapter(LORA.rank) == sum(parameter.numel() for parameter in policy.trainable)


def test_the_adapters_bytes_are_its_own_its_gradients_and_its_moments(make_spec: MakeSpec) -> None:
    policy = load_policy(make_spec(), ALONE)
    optimizer = torch.optim.AdamW(policy.trainable)
    step(policy)
    optimizer.step()
    held = [tensor for state in optimizer.state.values() for tensor in (state["exp_avg"], state["exp_avg_sq"])]
    held += [tensor for parameter in policy.trainable for tensor in (parameter, parameter.grad)]
    of_a_micro_batch = [parameter.grad for parameter in policy.trainable]
    bytes_held = sum(t.untyped_storage().nbytes() for t in (*held, *of_a_micro_batch) if t is not None)
    shape = ModelShape.of(policy.config.to_dict())
    assert footprint.memory(shape, WORK).adapter == bytes_held


def test_operations_are_those_that_pytorch_counts(
    architecture: str, shape: ModelShape, moved_policy: Callable[[str], Policy]
) -> None:
    """A step in bfloat16, as on a GPU, and its reference. PyTorch does not see inside a CPU's attention."""
    policy = moved_policy(architecture)
    policy.to_bfloat16()
    with torch.no_grad():
        reference = counted(lambda: policy.logprobs(rows()))
    there_and_back = counted(lambda: step(policy))
    computed = footprint.operations(shape, WORK)
    found = (reference + there_and_back) / (computed.passes + computed.update)
    # Of two layers the first's q, k and v have nobody to pass a gradient on to, and the last sees answers alone.
    assert 0.75 < found < 1.0


def test_the_deeper_the_model_the_closer_is_what_is_computed(make_spec: MakeSpec, tmp_path: Path) -> None:
    shape, policy = deep(make_spec, tmp_path, layers=16)
    computed = footprint.operations(shape, WORK)
    with torch.no_grad():
        reference = counted(lambda: policy.logprobs(rows()))
    assert (reference + counted(lambda: step(policy))) / (computed.passes + computed.update) == pytest.approx(
        1, abs=0.06
    )


def test_activations_that_are_computed_twice_are_counted_once_more(make_spec: MakeSpec, tmp_path: Path) -> None:
    shape, policy = deep(make_spec, tmp_path, layers=16)
    once = counted(lambda: step(policy))
    policy.checkpoint_gradients()
    again = counted(lambda: step(policy)) - once
    computed = footprint.operations(shape, replace(WORK, checkpointing=True))
    attention = WORK.pairs * footprint.attention_operations(shape, WORK)
    assert again == pytest.approx(computed.again - attention, rel=0.1)


def deep(make_spec: MakeSpec, folder: Path, layers: int) -> tuple[ModelShape, Policy]:
    """A Llama of many layers, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "deep")
    policy = load_policy(make_spec().model_copy(update={"model": str(folder / "deep")}), ALONE)
    policy.to_bfloat16()
    return ModelShape.of(config.to_dict()), policy


@pytest.mark.parametrize("parameter_bytes", [4, 2], ids=["float32", "bfloat16"])
def test_activations_are_those_that_the_backward_pass_finds(
    architecture: str, shape: ModelShape, moved_policy: Callable[[str], Policy], parameter_bytes: int
) -> None:
    """A CPU keeps more: keys and values once for each head that shares them, and those of a prompt for each answer but
    the first. That is added here; what is left are a few numbers a token, such as a norm's."""
    policy = moved_policy(architecture)
    if parameter_bytes == 2:
        policy.to_bfloat16()
    measured = activation_bytes_per_token(policy, PAIRS, "shared") * WORK.pairs * WORK.tokens
    work = replace(WORK, parameter_bytes=parameter_bytes)
    computed = footprint.activation_bytes(shape, work, WORK.pairs * WORK.tokens, WORK.pairs * WORK.answers)
    repeated = 2 * (shape.queries - shape.keys) * WORK.tokens + 2 * shape.queries * (WORK.prompt + WORK.rejected)
    computed += shape.layers * WORK.pairs * parameter_bytes * repeated
    assert measured == pytest.approx(computed, rel=0.08)


def test_of_activations_that_are_computed_twice_the_inputs_of_layers_are_kept(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    shape, policy = deep(make_spec, tmp_path, layers=16)
    policy.checkpoint_gradients()
    tokens, answers = WORK.pairs * WORK.tokens, WORK.pairs * WORK.answers
    measured = activation_bytes_per_token(policy, PAIRS, "shared") * tokens
    one_layer = sum(footprint._kept_of_a_token(shape, 2)) * tokens  # which the backward pass computes, one at a time
    computed = footprint.activation_bytes(shape, replace(WORK, checkpointing=True), tokens, answers) - one_layer
    assert measured == pytest.approx(computed, rel=0.15)


def test_a_sharded_base_lies_in_parts_and_a_few_layers_whole() -> None:
    shape = sizing.MODELS["Llama-3.1-70B"]
    alone = footprint.weight_bytes(shape, Work())
    assert alone == 2 * shape.parameters
    of_eight = footprint.weight_bytes(shape, Work(gpus=8, sharded=True))
    assert alone / 8 < of_eight < alone / 4
    assert footprint.weight_bytes(shape, Work(gpus=16, sharded=True)) < of_eight


def test_trainer_benchmark_and_table_count_with_one_formula(moved_policies: dict[str, Policy]) -> None:
    policy = moved_policies["llama"]
    forward = cost.forward_operations(policy.body_parameters, policy.head.weight.numel(), 700, 300)
    assert training_operations(policy, 700, 300) == cost.training_operations(forward) == 2 * forward
    rows = TINY.rows()
    answers = sum(len(row.chosen_token_ids or ()) + len(row.rejected_token_ids or ()) for row in rows)
    tokens = answers + sum(len(row.prompt_token_ids or ()) for row in rows)
    head = TINY.llama.hidden * TINY.llama.vocabulary
    assert TINY.floor() == cost.round_operations(
        cost.forward_operations(TINY.llama.body, head, tokens, answers), TINY.epochs
    )


@pytest.mark.parametrize(
    ("model", "billions"),
    [("Qwen3-0.6B", 0.596), ("Llama-3.1-8B", 8.030), ("Qwen3-32B", 32.762), ("Llama-3.1-70B", 70.554)],
)
def test_the_models_of_the_table_have_the_parameters_that_their_cards_say(model: str, billions: float) -> None:
    assert sizing.MODELS[model].parameters / 1e9 == pytest.approx(billions, abs=0.001)


def test_more_gpus_than_pairs_in_a_step_are_no_quicker() -> None:
    assert Work(pairs=960, gpus=16).busiest_share == Work(pairs=960, gpus=32).busiest_share == 1 / 16


def test_a_model_that_fits_nowhere_is_said_to() -> None:
    huge = replace(sizing.MODELS["Llama-3.1-70B"], layers=2000)
    assert sizing.fit(huge, sizing.GPUS["L4"], Work()) is None
    assert "more than 32" in sizing.table({"huge": huge}, Work())


def test_the_published_table_is_the_one_that_is_printed() -> None:
    published = (ROOT / "k8s" / "README.md").read_text()
    printed = CliRunner().invoke(sizing.app, []).output.strip()
    assert re.sub(r"\s+", " ", printed) in re.sub(r"\s+", " ", published)


def test_a_model_of_ones_own_is_sized(models: dict[str, Path]) -> None:
    shown = CliRunner().invoke(sizing.app, [str(models["qwen3"] / "config.json"), "--pairs", "5"])
    assert shown.exit_code == 0, shown.output
    assert "| qwen3 | L4 | 1 |" in shown.output


@pytest.mark.parametrize("config", ['{"hidden_size": 8}', '{"num_local_experts": 8}', "["])
def test_a_model_that_cannot_be_reckoned_with_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    shown = CliRunner().invoke(sizing.app, [str(tmp_path / "config.json")])
    assert shown.exit_code == 2
    assert "Traceback" not in shown.output


def test_the_settings_for_a_sharded_base_are_those_that_the_table_asks_for() -> None:
    settings = load_settings(ROOT / "k8s" / "overlays" / "gpu-sharded" / "heliotrope.toml", environment={}).training
    work = Work(
        rank=settings.lora_rank, epochs=settings.epochs, pairs_per_step=settings.pairs_per_step,
        tokens_per_micro_batch=settings.tokens_per_micro_batch,
    )  # fmt: skip
    found = sizing.fit(sizing.MODELS["Qwen3-32B"], sizing.GPUS["L4"], work)
    assert found is not None
    assert found.work.sharded and settings.shard_base
    assert found.work.gpus == settings.workers
