"""Tiny random models of the architectures every path is tested on, with a tokenizer and a chat template.

They answer nonsense, but through the same code as real ones: Llama's plain decoder, Qwen3's normalised queries and
keys, Gemma's sliding windows and soft caps. Built in well under a second, the same bytes for the same arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Architecture = Literal["llama", "qwen3", "gemma"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

VOCABULARY = 512
CONTEXT_TOKENS = 512
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")
PAD, BOS, EOS = 0, 1, 2

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = ("What is the capital of France? The capital of France is Paris.", "Two plus three is five, I think.")


def build(architecture: str, directory: Path) -> Path:
    """Write model, generation config and tokenizer to the directory; returns it."""
    model = _model(architecture)
    model.generation_config.eos_token_id = EOS
    model.generation_config.bos_token_id = BOS
    model.generation_config.pad_token_id = PAD
    model.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def _model(architecture: str) -> PreTrainedModel:
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "dtype": torch.float32,
        "initializer_range": 0.2,  # wide, so that different answers get visibly different log-probs
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        if architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
        if architecture == "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=False))
        if architecture == "gemma":
            layers = ["sliding_attention", "full_attention"]
            config = Gemma3TextConfig(
                **shape, sliding_window=16, layer_types=layers, final_logit_softcapping=30.0, query_pre_attn_scalar=32
            )
            return Gemma3ForCausalLM(config)
    raise ValueError(f"architecture {architecture!r} is none of {ARCHITECTURES}")


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXT * 10, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
