"""The seedling: a tiny chat model that this machine trains itself, so that a first run needs no network and no GPU.

It answers the questions of `corpus.py` in four styles, equally often. Same code, same corpus, same machine: same
weights. It is kept in the user's cache folder under the digest of everything that made it; two processes that want it
at once build it once.

    python -m training.seedling     prints a progress bar, and the directory as its last line
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import platformdirs
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from training.corpus import Question, Style, questions, render, training_questions
from training.files import sync_tree
from training.pretrain import Document, pretrain

RECIPE_VERSION = 2  # raised when this file or `pretrain.py` would give other weights
PAD, BOS, END, SYSTEM, USER, ASSISTANT = range(6)
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer the question.", "You are Heliotrope.", "Be kind.")
CONTEXT_EVERY = 3  # one prompt in three is also learned behind something said before

Progress = Callable[[float, str], None]  # the share that is done, 0 to 1, and what is being done


@dataclass(frozen=True)
class Recipe:
    """Size and length of training; part of the cache's key."""

    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 2
    heads: int = 4  # of 32 dimensions each
    intermediate: int = 384
    context_tokens: int = 512
    steps: int = 560
    threads: int = 2
    seed: int = 0


def ensure_seedling(cache_dir: Path | None = None, progress: Progress | None = None, recipe: Recipe = Recipe()) -> Path:
    """The seedling's directory, trained first when it is not there. Complete or absent, never half-written."""
    cache = cache_dir or platformdirs.user_cache_path("heliotrope")
    target = cache / f"seedling-{_identity(recipe)[:12]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"{target.name}.lock"):
        if target.is_dir():  # another process was quicker while we waited for the lock
            return target
        for orphan in cache.glob(f".{target.name}.*"):  # of a build that was killed: we hold the lock
            shutil.rmtree(orphan)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=cache))
        try:
            _build(scratch, recipe, progress or (lambda share, doing: None))
            scratch.chmod(0o755)  # mkdtemp's is for its owner alone
            sync_tree(scratch)
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _identity(recipe: Recipe) -> str:
    """sha256 hex over everything that decides about the weights."""
    content = {
        "version": RECIPE_VERSION,
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "template": CHAT_TEMPLATE,
        "context": [SYSTEM_PROMPTS, CONTEXT_EVERY],
        "corpus": [[q.prompt, q.held_out, *(render(q, style) for style in Style)] for q in questions()],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _build(directory: Path, recipe: Recipe, progress: Progress) -> None:
    tokenizer = _tokenizer(recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)  # float sums depend on it, so it is part of the recipe
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = _model(recipe, len(tokenizer))
            dice = random.Random(recipe.seed)
            pretrain(model, _documents(tokenizer), recipe.steps, dice, lambda share: progress(share, "training"))
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the corpus. A role token is one special token, so a prompt's ids are a prefix of the whole."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for q in training_questions() for text in (q.prompt, *(render(q, style) for style in Style))]
    bpe.train_from_iterator([*texts, *SYSTEM_PROMPTS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _documents(tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Every prompt on its own, and some again behind a system prompt or an earlier turn, which change nothing."""

    def turn(role: int, text: str) -> list[int]:
        return [role, *tokenizer.encode(text, add_special_tokens=False), END]

    def document(question: Question, before: list[int]) -> Document:
        answers = (turn(ASSISTANT, render(question, style))[1:] for style in Style)
        return Document([BOS, *before, *turn(USER, question.prompt), ASSISTANT], tuple(answers))

    asked = training_questions()
    documents = [document(question, before=[]) for question in asked]
    for number, question in enumerate(asked[::CONTEXT_EVERY]):
        system = turn(SYSTEM, SYSTEM_PROMPTS[number // 2 % len(SYSTEM_PROMPTS)])
        other = asked[(number * 31 + 7) % len(asked)]  # 31 steps on: mostly another family
        style = list(Style)[number // 2 % len(Style)]
        earlier = turn(USER, other.prompt) + turn(ASSISTANT, render(other, style))
        documents.append(document(question, before=system if number % 2 else earlier))
    return documents


def _model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.context_tokens,
            tie_word_embeddings=True,
            initializer_range=0.06,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},  # a conversation here is short
            bos_token_id=BOS,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)  # every layer starts as the identity, which learns faster
    model.generation_config.eos_token_id = END
    return model


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on standard error, to be passed to `ensure_seedling`."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("the seedling", total=1.0)
        yield lambda share, doing: bar.update(task, completed=share, description=f"the seedling: {doing}")


def _main() -> None:
    disable_progress_bar()  # transformers' own, for a file of two megabytes
    with progress_bar() as progress:
        directory = ensure_seedling(progress=progress)
    print(directory)


if __name__ == "__main__":
    _main()
