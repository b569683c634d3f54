"""How the seedling learns its corpus: rows of prompts with all their answers, a fixed number of steps, no randomness
but the seed's. Knows tokens and a model, nothing of files and caches.

A row packs documents `[prompt | terse | sentence | chatty | hedging]`. The answers share the prompt and do not see each
other, so a prompt is encoded once for its four answers, and every prompt meets every style equally often.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

ROW_TOKENS = 256
ROWS_PER_STEP = 8
OPEN_ROWS = 8  # how many rows a packer keeps open; more packs tighter and shuffles less
WARMUP_STEPS = 20
DECAY_SHARE = 0.8  # of the steps; the learning rate falls to zero over them
MATRIX_RATE = 0.05  # learning rate of the layers' matrices, under orthogonalised updates
VECTOR_RATE = 2e-2  # learning rate of embeddings and norms, under AdamW
MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Document:
    """A prompt and all the answers to it, as token ids; each answer ends in the end-of-turn token."""

    prompt: list[int]
    answers: tuple[list[int], ...]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


@dataclass(frozen=True)
class Batch:
    """Packed rows. `sources` are the flat positions that predict `targets`: the answers' tokens and no others."""

    ids: Tensor  # [rows, tokens]
    positions: Tensor  # [rows, tokens]; every answer continues behind its prompt
    mask: Tensor  # [rows, 1, tokens, tokens], True where a query may look
    sources: Tensor  # [targets]
    targets: Tensor  # [targets]


def pretrain(
    model: LlamaForCausalLM,
    documents: Sequence[Document],
    steps: int,
    dice: random.Random,
    progress: Callable[[float], None],
) -> None:
    """Train in place; `progress` is called with the share that is done."""
    optimisers = _optimisers(model)
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    batches = _batches(documents, dice)
    for step in range(steps):
        scale = min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, (1 - step / steps) / DECAY_SHARE)
        for optimiser, rates in zip(optimisers, peaks, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        loss = _loss(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        progress((step + 1) / steps)


def _loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of an answer token, nats."""
    hidden = model.model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    assert hidden is not None
    logits = model.lm_head(hidden.flatten(0, 1)[batch.sources])
    return torch.nn.functional.cross_entropy(logits, batch.targets)


def _batches(documents: Sequence[Document], dice: random.Random) -> Iterator[Batch]:
    """Epoch after epoch, in a new order each."""
    while True:
        order = list(documents)
        dice.shuffle(order)
        rows = pack(order)
        for start in range(0, len(rows) - ROWS_PER_STEP + 1, ROWS_PER_STEP):
            yield lay_out(rows[start : start + ROWS_PER_STEP])


def pack(documents: Sequence[Document]) -> list[list[Document]]:
    """First fit into rows of at most `ROW_TOKENS` tokens, keeping the order roughly as it is."""
    rows: list[list[Document]] = []
    open_rows: list[tuple[list[Document], list[int]]] = []  # a row, and in a list of one its free tokens
    for document in documents:
        for row, free in open_rows:
            if document.tokens <= free[0]:
                row.append(document)
                free[0] -= document.tokens
                break
        else:
            rows.append([document])
            open_rows = [*open_rows, (rows[-1], [ROW_TOKENS - document.tokens])][-OPEN_ROWS:]
    return rows


def lay_out(rows: Sequence[Sequence[Document]]) -> Batch:
    """Tokens, positions and mask of some rows."""
    width = max(sum(document.tokens for document in row) for row in rows)
    shape = (len(rows), width)
    ids, positions, part = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    owner = torch.full(shape, -1)  # which document a token belongs to; -1: padding, which sees only padding
    sources: list[int] = []
    targets: list[int] = []
    for r, row in enumerate(rows):
        at = 0
        for d, document in enumerate(row):
            length = len(document.prompt)
            owner[r, at : at + document.tokens] = d
            ids[r, at : at + length] = torch.tensor(document.prompt)
            positions[r, at : at + length] = torch.arange(length)
            at += length
            last_of_prompt = r * width + at - 1
            for k, answer in enumerate(document.answers):
                end = at + len(answer)
                ids[r, at:end] = torch.tensor(answer)
                positions[r, at:end] = torch.arange(length, length + len(answer))
                part[r, at:end] = k + 1
                sources += [last_of_prompt, *range(r * width + at, r * width + end - 1)]
                targets += answer
                at = end
    same_document = owner[:, :, None] == owner[:, None, :]
    visible = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = causal & same_document & visible
    return Batch(ids, positions, mask[:, None], torch.tensor(sources), torch.tensor(targets))


def _optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Orthogonal(matrices, MATRIX_RATE),
        torch.optim.AdamW(rest, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


class Orthogonal(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised by a Newton-Schulz iteration.

    `torch.optim.Muon` iterates matrix by matrix in bfloat16, which a CPU without such instructions emulates; here
    equal shapes go together, in float32.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, int], list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[min(parameter.shape), max(parameter.shape)].append(parameter)
            for parameters in by_shape.values():
                updates = _orthogonalised(torch.stack([self._wide_momentum(p) for p in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    rows, columns = parameter.shape
                    step = update if rows <= columns else update.T
                    parameter.add_(step, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _wide_momentum(self, parameter: torch.nn.Parameter) -> Tensor:
        """Nesterov momentum, turned so that it is never taller than wide."""
        assert parameter.grad is not None
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(parameter.grad, 1 - MOMENTUM)
        ahead = parameter.grad.lerp(momentum, MOMENTUM)
        return ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T


def _orthogonalised(x: Tensor) -> Tensor:
    """[matrices, rows, columns] with rows <= columns: singular values brought near 1, by Muon's quintic."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x
