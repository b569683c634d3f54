"""The policy: a frozen base model with one trainable LoRA adapter, and the log-probs it gives to answers.

Round 1 begins with a fresh adapter whose B is zero, so the policy is the base; a later round continues the deployed
adapter. Either way the policy before the first update *is* the deployed one, and so its own reference. There is no
second adapter and no switch that turns the adapter off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from training.adapter import read_parent
from training.contracts import ParentAdapter, RoundSpec
from training.errors import AdapterInvalid, NotFinite, TrainingError
from training.logprobs import answer_logprobs, head_of
from training.pairs import Pair
from training.plan import MicroBatch
from training.rows import Layout, Rows, lay_out
from training.world import World


class Policy:
    """Base model and adapter on one device, in evaluation mode for good: dropout would make it differ from itself."""

    def __init__(self, model: PeftModel, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self._base = model.get_base_model()
        self._decoder = self._base.get_decoder()  # pyright: ignore[reportCallIssue]
        self.head = head_of(self._base)
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    @property
    def config(self) -> PretrainedConfig:
        """The text model's configuration."""
        return self._base.config.get_text_config()  # pyright: ignore

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens at which the engine ends an answer."""
        eos: int | list[int] | None = self._base.generation_config.eos_token_id  # pyright: ignore
        return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

    @property
    def target_modules(self) -> list[str]:
        """The names of the layers that carry the adapter, such as `q_proj`."""
        return sorted({name.rpartition(".")[2] for name in self.model.targeted_module_names})

    def logprobs(self, rows: Rows) -> Tensor:
        """log p(answer | prompt) summed over each answer's tokens: float64 [pairs, 2], chosen then rejected."""
        rows = rows.to(self.device)
        hidden = self._decoder(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
        ).last_hidden_state  # [rows, tokens, hidden size]
        predicting = hidden.flatten(0, 1).index_select(0, rows.sources)
        return answer_logprobs(predicting, self.head, rows.targets, rows.owners, rows.pairs)

    @torch.no_grad()
    def own_logprob(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """log p(answer | prompt) by the model's own forward and logits: slow, and the truth to compare with."""
        token_ids = torch.tensor([[*prompt, *answer]], device=self.device)
        logits = self.model(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        target = token_ids[0, len(prompt) :, None]
        return logits.log_softmax(-1).gather(-1, target).double().sum().item()

    def weights(self) -> dict[str, np.ndarray]:
        """The adapter's tensors under the names PEFT saves them with, as float32."""
        state = get_peft_model_state_dict(self.model)
        return {name: np.array(tensor.detach().float().cpu().numpy()) for name, tensor in state.items()}


def load_policy(spec: RoundSpec, device: torch.device) -> Policy:
    """The deployed policy, ready to be trained. Raises `TrainingError` or `AdapterInvalid` with the reason."""
    try:
        base = AutoModelForCausalLM.from_pretrained(
            spec.model, dtype=getattr(torch, spec.dtype), attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"the base model in {spec.model} cannot be loaded: {error}") from error
    base.requires_grad_(False)
    model = _fresh(base, spec) if spec.parent is None else _continued(base, spec.parent, spec)
    policy = Policy(model, device)
    if any(parameter.dtype != torch.float32 for parameter in policy.trainable):
        raise TrainingError("the adapter is not in float32, in which small updates would be lost")
    return policy


def _fresh(base: torch.nn.Module, spec: RoundSpec) -> PeftModel:
    config = LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        target_modules=spec.lora.target_modules,  # never the head or the embeddings
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # A is random: the same seed gives the same adapter
        torch.manual_seed(spec.seed)
        return get_peft_model(base, config)  # pyright: ignore


def _continued(base: torch.nn.Module, parent: ParentAdapter, spec: RoundSpec) -> PeftModel:
    written = read_parent(parent, spec.lora, spec.fingerprints)
    model = PeftModel.from_pretrained(base, parent.directory, is_trainable=True)  # pyright: ignore
    loaded = get_peft_model_state_dict(model)
    if loaded.keys() != written.keys():
        raise AdapterInvalid(f"{parent.name}: its tensors are not those of this base model's adapter")
    if not all(np.array_equal(loaded[name].float().cpu().numpy(), written[name]) for name in written):
        raise AdapterInvalid(f"{parent.name}: its weights did not arrive in the model as they were written")
    return model


@torch.no_grad()
def score(policy: Policy, pairs: Sequence[Pair], batches: Sequence[MicroBatch], layout: Layout, world: World) -> Tensor:
    """The policy's log-probs of all batched pairs, without gradient: float64 [pairs, 2], the same on each worker.

    Raises `NotFinite` naming the first pair whose log-probs are not numbers.
    """
    logprobs = torch.zeros(len(pairs), 2, dtype=torch.float64, device=policy.device)
    for batch in world.share(batches):
        logprobs[list(batch)] = policy.logprobs(lay_out([pairs[i] for i in batch], layout))
    world.sum(logprobs)
    for pair, finite in zip(pairs, logprobs.isfinite().all(dim=1).tolist(), strict=True):
        if not finite:
            raise NotFinite(f"the policy's log-probs of pair {pair.pair_id!r} are not finite")
    return logprobs
