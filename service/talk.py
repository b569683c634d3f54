"""A conversation in the terminal: answers stream in, and a `+` or `-` on a line of its own votes for the last one.

stdout holds the answers and nothing else, so a conversation can be piped; everything about them goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from service.client import Client
from service.errors import HeliotropeError
from service.terminal import clean, console

HELP = """\
+ or -        vote the last answer up or down; the last vote counts
/model        the models there are
/model NAME   talk to policy, policy@previous, base or an adapter
/new          begin a new conversation
/help         this
^C            stop an answer
^D            leave"""

RATINGS = {"+": "up", "-": "down"}
PROMPT = "> "


def typed_lines() -> Iterator[str]:
    """What the person at the terminal writes, until ^D."""
    import readline  # noqa: F401  (gives input() a history and a line editor)

    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print(file=sys.stderr)
            return


class Talk:
    """One person, one model at a time, one conversation at a time."""

    def __init__(self, client: Client, model: str, *, interactive: bool) -> None:
        self._client = client
        self._model = model
        self._messages: list[dict[str, str]] = []
        self._last: dict[str, str] | None = None  # completion_id and adapter of the last answer; None: nothing to rate
        self._notes = console(stderr=True)
        self._interactive = interactive  # a person sits there; otherwise the lines are piped

    def run(self, said: Iterable[str]) -> None:
        """Until the lines end. At a terminal an error is told and the talk goes on; in a pipe it ends it."""
        if self._interactive:
            self._note(f"Talking to {self._model}. + or - rates an answer, /help shows more, ^D leaves.")
        for line in said:
            try:
                self._take(line.strip())
            except HeliotropeError as error:
                if not self._interactive:
                    raise
                self._note(f"error: {error.message}", "red")

    def _take(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if line in RATINGS:
            self._vote(RATINGS[line])
        elif command == "/model":
            self._choose(argument.strip())
        elif line == "/new":
            self._messages, self._last = [], None
            self._note("A new conversation.")
        elif line == "/help":
            self._note(HELP)
        elif line.startswith("/"):
            self._note(f"There is no {command}; /help shows what there is.", "red")
        elif line:
            self._ask(line)

    def _ask(self, question: str) -> None:
        """The question and its answer join the conversation together, and only when the answer is complete."""
        messages = [*self._messages, {"role": "user", "content": question}]
        self._last = None
        try:
            answer, last = self._stream({"model": self._model, "messages": messages})
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            print(flush=True)
            self._note("Stopped; this question is left out of the conversation.")
            return
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        self._last = {"completion_id": last["id"], "adapter": last["model"]}
        cut = " (cut off at the token limit)" if last["choices"][0]["finish_reason"] == "length" else ""
        if self._interactive:
            self._note(f"{last['model']}{cut}")

    def _stream(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The whole answer, and the chunk that ended it."""
        pieces: list[str] = []
        last: dict[str, Any] = {}
        try:
            for chunk in self._client.chat(body):
                choice = chunk["choices"][0]
                piece = choice["delta"].get("content") or ""
                pieces.append(piece)
                print(clean(piece), end="", flush=True)
                if choice["finish_reason"] is not None:
                    last = chunk
        finally:
            if pieces:
                print(flush=True)
        return "".join(pieces), last

    def _vote(self, rating: str) -> None:
        if self._last is None:
            self._note("There is no answer to rate yet.", "red")
            return
        body = {"completion_id": self._last["completion_id"], "rating": rating}
        receipt = self._client.post("/v1/feedback", body).data
        self._note(f"voted {rating} on {receipt['adapter']}")

    def _choose(self, name: str) -> None:
        if name:
            self._model = name
            self._note(f"Talking to {name} from now on; the conversation goes on.")
        else:
            self._note("\n".join(model["id"] for model in self._client.get("/v1/models").data["data"]))

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(clean(text), style=style)
