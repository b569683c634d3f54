"""What one request was answered with, put together from the parts in which the engine hands it out. Knows no vLLM."""

from __future__ import annotations

from typing import Any

from serving.contracts import Choice, EngineOutput, Outcome

CANCELLED = "cancelled"  # finish_reason of a choice that the engine was stopped at
_ENDED = ("stop", "length")


class Recorder:
    """Puts the parts of one request's output together."""

    def __init__(self, choices: int) -> None:
        self._expected = choices
        self._prompt: tuple[int, ...] = ()
        self._tokens: dict[int, list[int]] = {}
        self._texts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}

    def add(self, output: Any) -> None:
        """The next part, a `vllm.outputs.RequestOutput`: what is new since the one before."""
        if output.prompt_token_ids is not None:
            self._prompt = tuple(output.prompt_token_ids)
        for part in output.outputs:
            self._tokens.setdefault(part.index, []).extend(part.token_ids)
            self._texts.setdefault(part.index, []).append(part.text)
            if part.finish_reason is not None:
                self._finish[part.index] = part.finish_reason

    @property
    def complete(self) -> bool:
        """Every choice ended by itself; an aborted or broken one is never recorded as an answer."""
        return len(self._finish) == self._expected and set(self._finish.values()) <= set(_ENDED)

    @property
    def broken(self) -> bool:
        """The engine gave up on a choice."""
        return "error" in self._finish.values()

    def output(self, outcome: Outcome = "finished") -> EngineOutput:
        """Of a failed request no choices: nobody knows what they are worth."""
        assert outcome != "finished" or self.complete
        return EngineOutput(
            prompt_token_ids=self._prompt, choices=() if outcome == "failed" else self._choices(), outcome=outcome
        )

    def _choices(self) -> tuple[Choice, ...]:
        return tuple(
            Choice(
                index=i,
                text="".join(self._texts[i]),
                token_ids=tuple(self._tokens[i]),
                finish_reason=self._finish[i] if self._finish.get(i) in _ENDED else CANCELLED,
            )
            for i in sorted(self._tokens)
        )
