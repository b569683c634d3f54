"""The layers of a base model that adapters may change, read from the headers of its weights. Knows no vLLM."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open


def linear_layers(model: Path) -> list[str]:
    """The names of the linear layers inside the model's blocks, such as `q_proj`: what PEFT calls `all-linear`.

    Head and embeddings stand outside the blocks, so they are never among them. Raises `ValueError` when there is none.
    """
    names = {name.split(".")[-2] for file in sorted(model.glob("*.safetensors")) for name in _matrices_in_blocks(file)}
    if not names:
        raise ValueError(f"{model} holds no safetensors file with linear layers in numbered blocks")
    return sorted(names)


def _matrices_in_blocks(file: Path) -> list[str]:
    """`model.layers.0.self_attn.q_proj.weight`: a matrix below a number."""
    with safe_open(file, framework="np") as tensors:
        return [
            name
            for name in tensors.keys()  # noqa: SIM118  no mapping, it only has this method
            if name.endswith(".weight")
            and any(part.isdecimal() for part in name.split("."))
            and len(tensors.get_slice(name).get_shape()) == 2
        ]
