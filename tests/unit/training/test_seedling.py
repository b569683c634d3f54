"""The seedling's cache, its determinism and its chat template, with a model too small to know anything."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from training.corpus import Style, held_out, render
from training.seedling import Recipe, ensure_seedling

TINY = Recipe(hidden=32, layers=1, heads=1, intermediate=32, steps=2, threads=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def seedling(cache: Path) -> Path:
    return ensure_seedling(cache, recipe=TINY)


@pytest.fixture(scope="module")
def tokenizer(seedling: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(seedling)


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_a_second_call_trains_nothing(cache: Path, seedling: Path) -> None:
    calls: list[float] = []
    assert ensure_seedling(cache, lambda share, doing: calls.append(share), TINY) == seedling
    assert calls == []


def test_progress_rises_to_one(tmp_path: Path) -> None:
    shares: list[float] = []
    ensure_seedling(tmp_path, lambda share, doing: shares.append(share), TINY)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_the_same_recipe_gives_the_same_weights(seedling: Path, tmp_path: Path) -> None:
    again = ensure_seedling(tmp_path, recipe=TINY)
    assert again.name == seedling.name
    assert weights(again) == weights(seedling)


def test_another_recipe_has_another_name(seedling: Path, tmp_path: Path) -> None:
    other = ensure_seedling(tmp_path, recipe=Recipe(hidden=32, layers=1, heads=1, intermediate=32, steps=1, threads=1))
    assert other.name != seedling.name


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(share: float, doing: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_seedling(tmp_path, interrupt, TINY)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert weights(ensure_seedling(tmp_path, recipe=TINY))


def test_what_a_killed_build_left_is_cleared_away(seedling: Path, tmp_path: Path) -> None:
    orphan = tmp_path / f".{seedling.name}.killed"
    orphan.mkdir()
    ensure_seedling(tmp_path, recipe=TINY)
    assert not orphan.exists()


def _build_and_count(cache: Path, built: Callable[[bool], None]) -> None:
    calls: list[float] = []
    ensure_seedling(cache, lambda share, doing: calls.append(share), TINY)
    built(bool(calls))


def test_two_processes_at_once_build_it_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    processes = [spawn.Process(target=_build_and_count, args=(tmp_path, results.put)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(results.get() for _ in processes) == [False, True]


def test_building_leaves_the_callers_threads_and_dice_alone(tmp_path: Path) -> None:
    threads, dice = torch.get_num_threads(), torch.random.get_rng_state()
    ensure_seedling(tmp_path, recipe=TINY)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), dice)


def test_the_model_stops_at_the_end_of_a_turn(seedling: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(seedling)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.config.max_position_embeddings == 512


def test_a_rendered_prompt_is_a_prefix_of_prompt_and_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    question = held_out()[0]
    prompt = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": question.prompt},
    ]
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert start[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    for style in Style:
        answer = {"role": "assistant", "content": render(question, style)}
        whole = tokenizer.apply_chat_template([*prompt, answer], return_dict=False)
        assert whole[: len(start)] == start
        assert whole[-1] == tokenizer.eos_token_id
