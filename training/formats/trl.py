"""TRL's formats. SageMaker, OpenRLHF and NeMo-RL's BinaryPreference have the same.

    trl           {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
                  {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
    trl_implicit  {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [{"role": "user", ...}, ...]}
                  {"chosen": "The sky is blue.", "rejected": "The sky is red."}
    kto           {"prompt": "Hi", "completion": "Hello!", "label": true}

A string is the user's question where it is a prompt and the assistant's answer where it is one. Pairs and thumbs may
stand in one file.
"""

from __future__ import annotations

from training.formats.parts import (
    Message,
    Row,
    RowError,
    Said,
    Shape,
    answer,
    ending_with_user,
    liked,
    messages,
    pair,
    shared,
    text,
    thumb,
)

PAIRED, UNPAIRED = ("chosen", "rejected"), ("completion", "label")


def one_of(row: Row, names: tuple[str, ...]) -> bool:
    return any(name in row for name in names)


def pair_of(row: Row) -> Said:
    if "prompt" not in row and all(isinstance(row.get(name), str) for name in PAIRED):
        row = _split(text("chosen", row["chosen"]), text("rejected", row["rejected"]))
    chosen, rejected = (_messages(row, name, "assistant") for name in PAIRED)
    if chosen == rejected:
        raise RowError("rejected", "the same as chosen")
    prompt = _prompt(row, chosen, rejected)
    return pair(prompt, answer("chosen", chosen, prompt), answer("rejected", rejected, prompt))


def _implicit(row: Row) -> Said:
    return pair_of({name: value for name, value in row.items() if name != "prompt"})


def _thumb(row: Row) -> Said:
    if one_of(row, PAIRED):
        names = ", ".join(name for name in ("prompt", *PAIRED, *UNPAIRED) if name in row)
        raise RowError(None, f"both a pair and a thumb: it has {names}; make it two rows")
    up = liked(row, "label")
    prompt = ending_with_user(_messages(row, "prompt", "user"))
    return thumb(prompt, answer("completion", _messages(row, "completion", "assistant"), prompt), up=up)


def _split(chosen: str, rejected: str) -> dict[str, str]:
    """Two texts that begin with the prompt: it is all that they share, and a space before the answers is theirs.

    As TRL's `extract_prompt`, save where that goes wrong by a character: texts of which one begins with all of the
    other, and texts that share nothing.
    """
    if chosen == rejected:
        raise RowError("rejected", "the same as chosen")
    prompt = chosen[: shared(chosen, rejected)].removesuffix(" ")
    if not prompt.strip():
        raise RowError("prompt", "missing, and chosen and rejected do not begin with the same text")
    answers = {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    for name, rest in answers.items():
        if not rest.strip():
            raise RowError(name, "nothing but what both begin with, which is the prompt; give the prompt as a field")
    return {"prompt": prompt, **answers}


def _prompt(row: Row, chosen: list[Message], rejected: list[Message]) -> list[Message]:
    common = chosen[: shared(chosen, rejected)]
    if "prompt" not in row:
        if not common:
            raise RowError("prompt", "missing, and chosen and rejected do not begin with the same messages")
        return ending_with_user(common)
    prompt = _messages(row, "prompt", "user")
    if isinstance(row["prompt"], str) and common[-1:] == prompt:
        return common  # whole conversations, of which the string is the last question only
    return ending_with_user(prompt)


def _messages(row: Row, name: str, text_role: str) -> list[Message]:
    if name not in row:
        raise RowError(name, "missing")
    return messages(name, row[name], text_role=text_role)


FORMATS = (
    Shape("kto", "trl", "{prompt, completion, label}", ("prompt", *UNPAIRED), lambda row: one_of(row, UNPAIRED), _thumb),
    Shape(
        "trl", "trl", "{prompt, chosen, rejected} of strings or lists of messages", ("prompt", *PAIRED),
        lambda row: "prompt" in row and one_of(row, PAIRED), pair_of,
    ),
    Shape(
        "trl_implicit", "trl", "{chosen, rejected} that begin with the prompt", PAIRED,
        lambda row: one_of(row, PAIRED), _implicit,
    ),
)  # fmt: skip
