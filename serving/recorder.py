"""What one request was answered with, put together from the parts in which the engine hands it out. Knows no vLLM."""

from __future__ import annotations

from typing import Any

from serving.contracts import Choice, EngineOutput


class Recorder:
    """Puts the parts of one request's output together: deltas when it streams, whole answers when not."""

    def __init__(self, choices: int) -> None:
        self._expected = choices
        self._prompt: tuple[int, ...] = ()
        self._tokens: dict[int, list[int]] = {}
        self._texts: dict[int, list[str]] = {}
        self._finish: dict[int, str] = {}

    def add(self, output: Any) -> None:
        """The next part, a `vllm.outputs.RequestOutput`."""
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
        return len(self._finish) == self._expected and set(self._finish.values()) <= {"stop", "length"}

    def output(self) -> EngineOutput:
        return EngineOutput(
            prompt_token_ids=self._prompt,
            choices=tuple(
                Choice(
                    index=i,
                    text="".join(self._texts[i]),
                    token_ids=tuple(self._tokens[i]),
                    finish_reason=self._finish[i],
                )
                for i in sorted(self._tokens)
            ),
        )
