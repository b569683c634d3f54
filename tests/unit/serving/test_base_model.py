from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.base_model import linear_layers


def _model(folder: Path, *shards: dict[str, tuple[int, ...]]) -> Path:
    for number, shapes in enumerate(shards):
        save_file(
            {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / f"{number}.safetensors"
        )
    return folder


def test_only_matrices_inside_blocks_can_be_adapted(tmp_path: Path) -> None:
    model = _model(
        tmp_path,
        {
            "model.embed_tokens.weight": (9, 4),
            "model.layers.0.self_attn.q_proj.weight": (4, 4),
            "lm_head.weight": (9, 4),
        },
        {"model.layers.1.self_attn.q_proj.weight": (4, 4), "model.layers.1.mlp.up_proj.weight": (8, 4)},
        {"model.layers.1.input_layernorm.weight": (4,), "model.layers.1.self_attn.q_proj.bias": (4,)},
    )
    assert linear_layers(model) == ["q_proj", "up_proj"]


def test_a_folder_without_weights_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=tmp_path.name):
        linear_layers(_model(tmp_path, {"lm_head.weight": (9, 4)}))
