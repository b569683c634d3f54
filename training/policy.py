"""The policy: a frozen base model with one trainable LoRA adapter, and the log-probs it gives to answers.

Round 1 begins with a fresh adapter whose B is zero, so the policy is the base; a later round continues the deployed
adapter. Either way the policy before the first update *is* the deployed one, and so its own reference. There is no
second adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from training import lora
from training.adapter import read_parent
from training.attention import PACKED, Unshareable
from training.contracts import RoundSpec
from training.errors import AdapterInvalid, TrainingError
from training.last_layer import LastLayer, looked_at, only_at
from training.logprobs import head_of, token_logprobs
from training.rows import Rows
from training.world import World

# What transformers passes on as it is, instead of making a mask of the whole row.
NO_MASK = {"attention_mask": torch.empty(1, 1, 1, 1)}


class Policy:
    """Base model and adapter on one device, in evaluation mode for good: dropout would make it differ from itself."""

    def __init__(self, base: torch.nn.Module, device: torch.device) -> None:
        self.base = base.to(device).eval()
        self.device = device
        self.head = head_of(base)
        self.named_parameters = lora.parameters(base)
        self.trainable = list(self.named_parameters.values())
        self._decoder = base.get_decoder()  # pyright: ignore[reportCallIssue]
        LastLayer(self._decoder)
        # Gemma 2 caps its scores, which only transformers' plain implementation does.
        self._shares = not getattr(self.config, "attn_logit_softcapping", None)
        self.config._attn_implementation = PACKED if self._shares else "eager"

    @property
    def config(self) -> PretrainedConfig:
        """The text model's configuration."""
        return self.base.config.get_text_config()  # pyright: ignore

    @property
    def dtype(self) -> torch.dtype:
        """Of the base model; the adapter is always in float32."""
        return self.head.weight.dtype

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens at which the engine ends an answer."""
        eos: int | list[int] | None = self.base.generation_config.eos_token_id  # pyright: ignore
        return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

    @property
    def target_modules(self) -> list[str]:
        """The names of the layers that carry the adapter, such as `q_proj`."""
        return sorted({name.rpartition(".")[2] for name, _ in lora.layers(self.base)})

    @property
    def body_parameters(self) -> int:
        """Of the matrices that every token is multiplied with."""
        return sum(layer.base_layer.in_features * layer.base_layer.out_features for _, layer in lora.layers(self.base))

    def keep_merged(self) -> None:
        """From now on keep a second copy of the base's matrices, those with the update: `merge` makes it."""
        for _, layer in lora.layers(self.base):
            layer.keeps_merged = True

    def merge(self) -> None:
        """Add the update as it is now to the kept copies, for all micro-batches until it changes again."""
        for _, layer in lora.layers(self.base):
            layer.merge()

    def logprobs(self, rows: Rows) -> Tensor:
        """log p(answer | prompt), nats: float64 [examples, 2 answers, 2 (FULL, DISCOUNTED)]. An absent answer has 0."""
        rows = rows.to(self.device)
        per_token = token_logprobs(self.hidden(rows), self.head, rows.targets).double()[rows.uses]
        sums = per_token.new_zeros(2 * rows.examples, 2).index_add(0, rows.slots, per_token[:, None] * rows.weights)
        return sums.view(rows.examples, 2, 2)

    def hidden(self, rows: Rows) -> Tensor:
        """The hidden states that predict the answers' tokens: [answer tokens, hidden size]."""
        rows = rows.to(self.device)
        if rows.packing is not None and not self._shares:
            raise Unshareable("its attention does more to the scores than scale and mask them")
        packed = {"attention_mask": rows.mask} if rows.packing is None else {"packing": rows.packing} | NO_MASK
        with only_at(rows.sources.unique()):
            states = self._decoder(
                input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False, **packed
            ).last_hidden_state  # [rows, tokens, hidden size]
        return states.flatten(0, 1).index_select(0, rows.sources)

    @torch.no_grad()
    def own_logprob(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """log p(answer | prompt) by the model's own forward and logits: slow, and the truth to compare with."""
        token_ids = torch.tensor([[*prompt, *answer]], device=self.device)
        logits = self.base(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        target = token_ids[0, len(prompt) :, None]
        return logits.log_softmax(-1).gather(-1, target).double().sum().item()

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the adapter's tensors under the names PEFT saves them with, as float32."""
        return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in self.named_parameters.items()}

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Become the policy with this adapter."""
        lora.load(self.base, weights)

    def to_bfloat16(self) -> None:
        """Round the frozen base model's weights; the adapter stays in float32."""
        trainable = {id(parameter) for parameter in self.trainable}
        for parameter in self.base.parameters():
            if id(parameter) not in trainable:
                parameter.data = parameter.data.to(torch.bfloat16)
        self.head = head_of(self.base)

    def checkpoint_gradients(self) -> None:
        """From now on compute activations a second time in the backward pass instead of keeping them."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            """Of the first time, and of the second, which looks at the same positions."""
            return nullcontext(), only_at(looked_at())

        self.base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})  # pyright: ignore
        for module in self.base.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # the layer looks at its own flag; what it contains stays in evaluation mode


def load_policy(spec: RoundSpec, world: World, dtype: torch.dtype = torch.float32) -> Policy:
    """The deployed policy, ready to be trained. Raises `TrainingError` or `AdapterInvalid` with the reason."""
    try:
        base = AutoModelForCausalLM.from_pretrained(
            spec.model, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"the base model in {spec.model} cannot be loaded: {error}") from error
    base.requires_grad_(False)
    lora.attach(base, spec.lora, spec.seed)
    if spec.parent is not None:
        try:
            lora.load(base, read_parent(spec.parent, spec.lora, spec.fingerprints))
        except AdapterInvalid as error:
            raise AdapterInvalid(f"parent {spec.parent.name}: {error}") from error
    if spec.shard_base:
        _shard(base, world)
    return Policy(base, world.device)


def _shard(base: torch.nn.Module, world: World) -> None:
    """FSDP2: each worker keeps its part of every layer's frozen weights. The adapter, and what is no layer, stay whole.

    The adapter's gradients are then added up as without sharding, and frozen weights have none to scatter. The decoder
    is FSDP's root though it holds nothing of its own: else each layer would be one, and what a root has gathered it
    keeps until the backward pass, so that every GPU would hold the whole base.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    adapter = set(lora.parameters(base).values())
    decoder: torch.nn.Module = base.get_decoder()  # pyright: ignore[reportCallIssue]
    for layer in decoder.layers:  # pyright: ignore[reportGeneralTypeIssues]
        fully_shard(layer, mesh=mesh, ignored_params=adapter)
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()))
