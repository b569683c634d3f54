"""OpenAI's format, which Azure, Together and Fireworks take too.

    openai  {"input": {"messages": [{"role": "user", "content": "Hi"}]},
             "preferred_output": [{"role": "assistant", "content": "Hello!"}],
             "non_preferred_output": [{"role": "assistant", "content": "What?"}]}

Content may be a list of parts of text. `developer` is what newer models call the system. Azure's outputs may hold calls
of tools; those are refused, like `input.tools`.
"""

from __future__ import annotations

from training.formats.parts import (
    CHANGE_THE_PROMPT,
    CHANGED_PROMPT,
    ROLES,
    Row,
    RowError,
    Said,
    Shape,
    Spelling,
    answer,
    ending_with_user,
    messages,
    pair,
    required,
)

_OUTPUTS = ("preferred_output", "non_preferred_output")
_SPELLING = Spelling(
    roles={role: role for role in ROLES} | {"developer": "system"}, part="text", harmless=frozenset({"weight"})
)


def _said(row: Row) -> Said:
    asked = required(row, "input")
    if not isinstance(asked, dict):
        raise RowError("input", "must be an object with messages")
    for name in CHANGE_THE_PROMPT:
        if asked.get(name):
            raise RowError(f"input.{name}", CHANGED_PROMPT)
    given = messages("input.messages", asked.get("messages"), _SPELLING)
    prompt = ending_with_user(given, "input.messages")
    better, worse = (answer(name, messages(name, required(row, name), _SPELLING), prompt) for name in _OUTPUTS)
    return pair(prompt, better, worse, _OUTPUTS[1])


FORMATS = (
    Shape(
        "openai", "openai", "{input: {messages}, preferred_output, non_preferred_output}", ("input", *_OUTPUTS),
        lambda row: any(name in row for name in _OUTPUTS), _said,
    ),
)  # fmt: skip
