"""The shape of a decoder as its `config.json` tells it, and how many parameters that makes. Pure; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Vectors beside the matrices of a layer: how many as long as the hidden state, and how many as long as a head.
_NORMS = {"qwen3": (2, 2), "gemma3_text": (4, 2)}
_PLAIN_NORMS = (2, 0)


@dataclass(frozen=True)
class ModelShape:
    """A decoder with gated MLPs, such as Llama, Qwen3 and Gemma 3."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool  # the head is the embedding
    hidden_norms: int = 2  # of a layer
    head_norms: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """From transformers' configuration. Raises `ValueError` naming what is missing or cannot be reckoned with."""
        config = config.get("text_config", config)
        if config.get("num_experts") or config.get("num_local_experts"):
            raise ValueError("this model has experts: which of them a token meets is not known beforehand")
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            norms = _NORMS.get(config.get("model_type", ""), _PLAIN_NORMS)
            return cls(
                hidden=hidden,
                layers=int(config["num_hidden_layers"]),
                intermediate=int(config["intermediate_size"]),
                heads=heads,
                key_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or hidden // heads),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", True)),
                hidden_norms=norms[0],
                head_norms=norms[1],
            )
        except KeyError as missing:
            raise ValueError(f"config.json has no {missing}: only plain decoders can be reckoned with") from missing

    @property
    def queries(self) -> int:
        """Numbers in all queries of a token."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Numbers in all keys of a token, and in all values."""
        return self.key_heads * self.head_size

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each of a layer: q, k, v, o, gate, up, down. All of them carry the adapter."""
        up = (self.hidden, self.intermediate)
        to_keys = (self.hidden, self.keys)
        return (
            (self.hidden, self.queries), to_keys, to_keys, (self.queries, self.hidden),
            up, up, (self.intermediate, self.hidden),
        )  # fmt: skip

    @property
    def matrix_parameters(self) -> int:
        """Of the matrices of one layer."""
        return sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def layer_parameters(self) -> int:
        """Of one layer, its norms included."""
        return self.matrix_parameters + self.hidden_norms * self.hidden + self.head_norms * self.head_size

    @property
    def body(self) -> int:
        """Parameters that every token is multiplied with."""
        return self.layers * self.matrix_parameters

    @property
    def head(self) -> int:
        """Parameters that every answer's token is multiplied with."""
        return self.vocabulary * self.hidden

    @property
    def outside(self) -> int:
        """Parameters that are in no layer: embedding, head, and the last norm."""
        return self.head * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.outside

    def adapter(self, rank: int) -> int:
        """Trainable parameters: A [rank, inputs] and B [outputs, rank] for each matrix."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.matrices)
