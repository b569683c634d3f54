"""The story that `heliotrope demo` tells: people vote, the policy learns, the swap, the drift, the way back.

Every figure is computed from what the running service really answered; the story only arranges them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service import node
from service.client import KEYS_FILE, Client
from service.contracts import Round
from service.demo import score
from service.demo.people import DRIFTED, FIRST, Taste
from service.demo.traffic import Answer, Clients
from service.errors import HeliotropeError
from service.pairs import Funnel
from service.settings import Settings
from service.watch import watch
from training.corpus import held_out, unsafe, voted

SEED = 7
USERS = 240  # so many that nobody votes more often than the default caps let count
QUESTIONS_PER_ROUND = 240
ANSWERS_PER_QUESTION = 6
JUDGED_ANSWERS = 3  # sampled answers a held-out question, from the policy and from the base
BAR = 0.73  # the win rate over the base that a round of DPO is commonly quoted with

console = Console()


@dataclass
class Chapter:
    """What one round came to; a line of the demo's JSON."""

    version: str
    pairs: int
    win_rate: dict[str, float]
    correctness: float
    refusals_kept: float
    seconds: dict[str, float] = field(default_factory=dict)


def tell(settings: Settings, json_file: Path | None) -> None:
    """Run the whole demo; raises `HeliotropeError` when the service does not do what it promises."""
    began = time.monotonic()
    state = settings.state / "demo" / time.strftime("%Y%m%d-%H%M%S")
    settings = settings.model_copy(update={"state": state})
    state.mkdir(parents=True)
    console.print(Panel.fit("[bold]Heliotrope[/bold]: people vote, the policy turns towards them"))
    with node.running(settings) as url:
        keys = json.loads((state / KEYS_FILE).read_text())
        story = Story(url, keys["app"], keys["operator"], time.monotonic() - began)
        story.tell()
    result = story.result(time.monotonic() - began)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    console.print(
        f"\nThe whole story took {result['seconds_total']:.0f} s. Talk to what it left behind:\n"
        f"  heliotrope up --state {state}\n  heliotrope chat --state {state}\n"
        "Then serve a model of your own: heliotrope up --model Qwen/Qwen3-0.6B --state ~/qwen",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


class Story:
    """The chapters, in order, against one running service."""

    def __init__(self, url: str, app_key: str, operator_key: str, start_seconds: float) -> None:
        self._clients = Clients(url, app_key)
        self._operator = Client(url, operator_key)
        self._dice = random.Random(SEED)
        self._start_seconds = start_seconds
        self._chapters: list[Chapter] = []
        self._swap_ms: list[float] = []
        self._rollback_ms = 0.0
        self._base_correct = 0.0
        self._samples = self._dice.sample(list(held_out()), 5)
        self._unasked = self._dice.sample(list(voted()), len(voted()))  # people do not ask the same thing twice

    def tell(self) -> None:
        console.print(f"ready after {self._start_seconds:.0f} s\n")
        self._base()
        self._chapter(1, FIRST)
        self._chapter(2, DRIFTED)
        self._go_back()

    def result(self, seconds_total: float) -> dict[str, Any]:
        tally = self._clients.tally
        return {
            "rounds": [asdict(chapter) for chapter in self._chapters],
            "requests": {"sent": tally.sent, "failed": tally.failed, "mixed": tally.mixed},
            "swap_ms": [round(ms, 1) for ms in self._swap_ms],
            "rollback_ms": round(self._rollback_ms, 1),
            "seconds_total": round(seconds_total, 1),
        }

    # --- chapters -----------------------------------------------------------------------------------

    def _base(self) -> None:
        console.rule("Before: the base model answers in every style there is")
        self._show_samples()
        self._base_correct = score.correctness(self._clients.ask(held_out(), model="base", temperature=0.0))

    def _chapter(self, n: int, taste: Taste) -> None:
        """People with a taste vote; a round learns; the judge, who shares the taste, compares with the base."""
        seconds: dict[str, float] = {}
        console.rule(f"Round {n}")
        console.print(f"what people like, and nobody tells the service: [italic]{taste.gloss}[/italic]")
        with _timed(seconds, "voting"):
            self._converse(taste)
        self._show_funnel()
        before = self._stable()
        with _timed(seconds, "round"):
            version, pairs = self._round()
        console.rule(f"After round {n}: {version}")
        self._show_samples()
        with _timed(seconds, "judging"):
            chapter = self._judge(taste, version, pairs, before)
        chapter.seconds.update(seconds)
        self._chapters.append(chapter)

    def _converse(self, taste: Taste) -> None:
        questions = [self._unasked.pop() for _ in range(QUESTIONS_PER_ROUND)]
        questions += [question for question in unsafe() if not question.held_out]  # and some try what they should not
        bar = Progress(TextColumn("chatting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
        with bar:
            task = bar.add_task("chat", total=len(questions))
            answers = self._clients.ask(questions, n=ANSWERS_PER_QUESTION, done=lambda: bar.advance(task))
        votes = [
            (
                answer,
                taste.rates_up(answer.question, answer.text, self._dice),
                f"user-{self._dice.randrange(USERS):03d}",
            )
            for answer in answers
        ]
        self._clients.vote(votes)
        ups = sum(up for _, up, _ in votes)
        console.print(
            f"{len(votes)} answers, {ups} thumbs up, {len(votes) - ups} thumbs down, each durable before its 201"
        )

    def _round(self) -> tuple[str, int]:
        """Train, judge and promote, while clients go on chatting; what the operator would type: round start --watch."""
        failed, sent = self._clients.tally.failed, self._clients.tally.sent
        with self._clients.load(voted()):
            n = self._operator.post("/ops/rounds", {}).data["n"]
            promoted = watch(self._operator, n, console)
        final = Round.model_validate(self._operator.get(f"/ops/rounds/{n}").data)
        if not promoted or final.adapter is None or final.pairs is None:
            raise HeliotropeError(f"round {n} ended {final.state}: {final.reason}")
        swap = next(event for event in self._operator.events(n, 0) if event["kind"] == "swap")["data"]
        self._swap_ms.append(swap["flip_seconds"] * 1000)
        tally = self._clients.tally
        console.print(
            f"swapped in {swap['flip_seconds'] * 1000:.0f} ms while clients chatted: {tally.sent - sent} requests, "
            f"failed = {tally.failed - failed}, mixed = {tally.mixed}"
        )
        return final.adapter, final.pairs

    def _judge(self, taste: Taste, version: str, pairs: int, before: str) -> Chapter:
        questions = list(held_out()) * JUDGED_ANSWERS
        ours = self._clients.ask(questions)
        theirs = self._clients.ask(questions, model="base")
        rate = score.win_rate(taste, ours, theirs)
        greedy = self._clients.ask(held_out(), temperature=0.0)
        refusals = self._clients.ask(unsafe(), temperature=0.0)
        chapter = Chapter(version, pairs, asdict(rate), score.correctness(greedy), score.refusals_kept(refusals))
        self._show_verdict(chapter, ours, theirs, before)
        if {answer.model for answer in ours} != {version}:
            raise HeliotropeError(f"{version} was promoted, but other adapters answered")
        return chapter

    def _go_back(self) -> None:
        console.rule("And back: one command")
        stable, previous = self._stable(), self._previous()
        with self._clients.load(voted()):
            began = time.monotonic()
            switch = self._operator.post("/ops/rollback", {"reason": "the demo shows the way back"}).data
            self._rollback_ms = (time.monotonic() - began) * 1000
            now = {answer.model for answer in self._clients.ask(self._samples)}
        if now != {previous}:
            raise HeliotropeError(f"after the rollback {now} answered, not {previous}")
        console.print(
            f"{stable} -> {previous} in {self._rollback_ms:.0f} ms from the command to the answer of every replica "
            f"(the flip itself: {switch['flip_seconds'] * 1000:.0f} ms)"
        )
        tally = self._clients.tally
        console.print(f"all in all: {tally.sent} requests, failed = {tally.failed}, mixed = {tally.mixed}")
        if tally.first_error:
            console.print(f"[red]the first failure: {tally.first_error}[/red]")

    # --- what people see ----------------------------------------------------------------------------

    def _show_samples(self) -> None:
        table = Table(box=None, pad_edge=False)
        table.add_column("asked", style="dim")
        table.add_column("answered")
        for answer in self._clients.ask(self._samples):
            table.add_row(answer.question.prompt, answer.text)
        console.print(table)

    def _show_funnel(self) -> None:
        shown = self._operator.get("/ops/preferences", limit="1", wait="true")  # with every vote that was acknowledged
        funnel = Funnel.model_validate(shown.data["funnel"])
        table = Table(title="from votes to pairs", title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        table.add_column("votes", justify="right")
        table.add_row("effective votes", str(funnel.votes))
        for reason, votes in funnel.left_out.items():
            table.add_row(f"  left out: {reason}", str(votes))
        table.add_row("  in pairs", str(funnel.votes_in_pairs))
        table.add_row("[bold]new pairs[/bold]", f"[bold]{funnel.pairs}[/bold]")
        console.print(table)

    def _show_verdict(self, chapter: Chapter, ours: Sequence[Answer], theirs: Sequence[Answer], before: str) -> None:
        rate = chapter.win_rate
        table = Table(title=f"the judge, on {len(held_out())} held-out questions", title_justify="left", box=None)
        for column in ("", "base", chapter.version):
            table.add_column(column)
        ours_by, theirs_by = score.styles(ours), score.styles(theirs)
        for style, share in ours_by.items():
            table.add_row(f"answers in style {style or 'none'}", f"{theirs_by[style]:.0%}", f"{share:.0%}")
        table.add_row("right answers (greedy)", f"{self._base_correct:.1%}", f"{chapter.correctness:.1%}")
        table.add_row("unsafe questions refused (greedy)", "", f"{chapter.refusals_kept:.0%}")
        console.print(table)
        met = "above" if rate["low"] >= BAR else "below"
        console.print(
            f"[bold]win rate over the base {rate['mean']:.1%}[/bold]  (95 % interval {rate['low']:.1%} to "
            f"{rate['high']:.1%}; its lower end is {met} {BAR:.0%})   it continued {before}"
        )

    def _stable(self) -> str:
        return self._operator.get("/ops/status").data["route"]["stable"]

    def _previous(self) -> str:
        return self._operator.get("/ops/status").data["route"]["previous"]


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[phase] = round(time.monotonic() - began, 1)
