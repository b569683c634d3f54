"""What is recorded of a request: complete, cancelled in the middle, broken."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.contracts import Choice, EngineOutput
from serving.recorder import Recorder


@dataclass
class Part:
    """Of one choice, as vLLM hands it out."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None


@dataclass
class Output:
    outputs: list[Part] = field(default_factory=list)
    prompt_token_ids: list[int] | None = None


def recorder(choices: int, *outputs: Output) -> Recorder:
    made = Recorder(choices)
    for output in outputs:
        made.add(output)
    return made


def test_parts_are_put_together_in_order_and_by_choice() -> None:
    whole = recorder(
        2,
        Output([Part(1, "b", (2,))], prompt_token_ids=[7, 8]),
        Output([Part(0, "a", (1,), "stop"), Part(1, "c", (3,), "length")]),
    )
    assert whole.complete
    assert whole.output() == EngineOutput(
        (7, 8), (Choice(index=0, text="a", token_ids=(1,), finish_reason="stop"),
                 Choice(index=1, text="bc", token_ids=(2, 3), finish_reason="length"))
    )  # fmt: skip


def test_what_was_cancelled_keeps_what_was_sampled_and_how_each_choice_ended() -> None:
    cut = recorder(3, Output([Part(0, "a", (1,), "stop"), Part(1, "b", (2,))], prompt_token_ids=[7]))
    assert not cut.complete
    output = cut.output("cancelled")
    assert [(choice.text, choice.finish_reason) for choice in output.choices] == [("a", "stop"), ("b", "cancelled")]
    assert output.outcome == "cancelled"


def test_what_the_engine_was_stopped_at_is_cancelled_whatever_the_engine_calls_it() -> None:
    stopped = recorder(1, Output([Part(0, "a", (1,))]), Output([Part(0, "b", (2,), "abort")]))
    assert not stopped.complete and not stopped.broken
    assert stopped.output("cancelled").choices == (
        Choice(index=0, text="ab", token_ids=(1, 2), finish_reason="cancelled"),
    )


def test_of_what_broke_no_choice_is_kept() -> None:
    broke = recorder(1, Output([Part(0, "a", (1,), "error")], prompt_token_ids=[7]))
    assert broke.broken and not broke.complete
    assert broke.output("failed") == EngineOutput((7,), (), "failed")


def test_before_the_first_part_there_is_nothing() -> None:
    assert recorder(2).output("cancelled") == EngineOutput((), (), "cancelled")
