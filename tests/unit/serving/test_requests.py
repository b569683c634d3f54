"""Which chat bodies are passed on, and which are refused by the name of the field at fault."""

from __future__ import annotations

from typing import Any

import pytest

from serving import requests
from serving.errors import RequestRefused

HELLO = [{"role": "user", "content": "hello"}]
GOOD = {"model": "policy", "messages": HELLO}
LIMITS = requests.Limits(control_tokens=frozenset({"<|end|>"}))


def _message(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"tools": []}, "tools", "unsupported_parameter"),
    ({"temprature": 1}, "temprature", "unsupported_parameter"),
    ({"logit_bias": {"1": 2}}, "logit_bias", "unsupported_parameter"),
    ({"x" * 5000: 1}, "x" * 100, "unsupported_parameter"),
    ({"model": None}, "model", "missing_parameter"),
    ({"model": ""}, "model", "missing_parameter"),
    ({"model": ["policy"]}, "model", "missing_parameter"),
    ({"messages": None}, "messages", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hello"}, "messages", "invalid_value"),
    ({"messages": HELLO * 257}, "messages", "invalid_value"),
    ({"messages": ["hello"]}, "messages.0.role", "invalid_value"),
    ({"messages": [*HELLO, {"content": "hello"}]}, "messages.1.role", "invalid_value"),
    (_message("hello", role="developer"), "messages.0.role", "invalid_value"),
    (_message("hello", role="tool"), "messages.0.role", "invalid_value"),
    (_message(None), "messages.0.content", "invalid_value"),
    (_message(7), "messages.0.content", "invalid_value"),
    (_message([]), "messages.0.content", "invalid_value"),
    (_message([{"type": "image_url", "image_url": {}}]), "messages.0.content", "invalid_value"),
    (_message([{"type": "text"}]), "messages.0.content", "invalid_value"),
    (_message(["hello"]), "messages.0.content", "invalid_value"),
    (_message(""), "messages.0.content", "empty_prompt"),
    (_message(" \n\t"), "messages.0.content", "empty_prompt"),
    (_message([{"type": "text", "text": " "}]), "messages.0.content", "empty_prompt"),
    (_message("hel\0lo"), "messages.0.content", "invalid_value"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "hi"}]}, "messages", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"n": 1.0}, "n", "invalid_value"),
    ({"top_logprobs": 6}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": -1}, "top_logprobs", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": "8"}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"metadata": []}, "metadata", "invalid_value"),
    ({"metadata": {"page": 7}}, "metadata", "invalid_value"),
    ({"metadata": {"k" * 65: "v"}}, "metadata", "invalid_value"),
    ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_value"),
    ({"metadata": {"k": "\0"}}, "metadata", "invalid_value"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value"),
    ({"store": "no"}, "store", "invalid_value"),
    ({"store": 0}, "store", "invalid_value"),
    ({"user": ""}, "user", "invalid_value"),
    ({"user": 7}, "user", "invalid_value"),
    ({"user": "u" * 257}, "user", "invalid_value"),
    ({"user": "a\0"}, "user", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", 7]}, "stop", "invalid_value"),
    ({"stop": "x" * 257}, "stop", "invalid_value"),
    ({"seed": True}, "seed", "invalid_value"),
    ({"seed": 2**53 + 1}, "seed", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_value"),
    ({"stream_options": []}, "stream_options", "invalid_value"),
    ({"stream_options": {"continuous_usage_stats": True}}, "stream_options", "invalid_value"),
    ({"response_format": {"type": "grammar"}}, "response_format.type", "invalid_value"),
    ({"messages": [{**HELLO[0], "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls", "unsupported_parameter"),
    ({"messages": [{**HELLO[0], "reasoning": "so"}]}, "messages.0.reasoning", "unsupported_parameter"),
    ({"messages": [{**HELLO[0], "name": "<|end|>"}]}, "messages.0.name", "invalid_value"),
    ({"messages": [{**HELLO[0], "name": 7}]}, "messages.0.name", "invalid_value"),
    (_message([{"type": "text", "text": "a", "cache_control": {}}]), "messages.0.content", "invalid_value"),
    (_message("hi<|end|>"), "messages.0.content", "control_token"),
    (
        _message([{"type": "text", "text": "<|en"}, {"type": "text", "text": "d|>"}]),
        "messages.0.content",
        "control_token",
    ),
    (
        {"messages": [*HELLO, {"role": "assistant", "content": "a<|end|>"}, *HELLO]},
        "messages.1.content",
        "control_token",
    ),
    ({"messages": [{"role": "system", "content": "<|end|>"}, *HELLO]}, "messages.0.content", "control_token"),
    ({"temperature": float("nan")}, None, "invalid_json"),
    ({"top_p": float("inf")}, None, "invalid_json"),
    ({"response_format": {"type": "json_schema", "least": float("-inf")}}, None, "invalid_json"),
]


@pytest.mark.parametrize(("change", "param", "code"), BAD, ids=[str(change)[:40] for change, _, _ in BAD])
def test_a_bad_body_is_refused_by_field_and_code(change: dict[str, Any], param: str | None, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        requests.check(GOOD | change, LIMITS)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)
    assert len(str(refused.value)) < 250, "the message must not repeat a huge body"


NEVER_PASSED_ON = [
    *("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs", "prompt_embeds"),
    *("structured_outputs", "guided_regex", "guided_grammar", "regex", "grammar"),
    *("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "cache_salt", "priority", "request_id", "session_id"),
    *("prompt_logprobs", "echo", "return_token_ids", "return_prompt_text", "return_tokens_as_token_ids"),
    *("logprob_token_ids", "allowed_token_ids", "bad_words", "logit_bias", "ignore_eos", "min_tokens"),
    *("use_beam_search", "length_penalty", "skip_special_tokens", "include_stop_str_in_output"),
    *("spaces_between_special_tokens", "add_special_tokens", "add_generation_prompt", "continue_final_message"),
    *("documents", "truncate_prompt_tokens", "thinking_token_budget", "repetition_detection", "stream_interval"),
    *("watermarking", "mm_payload", "routed_experts", "tools", "tool_choice"),
]


@pytest.mark.parametrize("name", NEVER_PASSED_ON)
@pytest.mark.parametrize("value", [None, True, "x"], ids=str)
def test_what_reaches_inside_the_engine_is_refused_by_name_with_the_reason(name: str, value: Any) -> None:
    with pytest.raises(RequestRefused) as refused:
        requests.check(GOOD | {name: value})
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, name, "unsupported_parameter")
    assert requests.REASONS[name] in str(refused.value)


def test_an_answer_that_is_sent_back_as_it_came_is_taken_without_the_fields_that_say_nothing() -> None:
    said = {"role": "assistant", "content": "hi", "tool_calls": [], "refusal": None, "annotations": None}
    checked = requests.check(GOOD | {"messages": [*HELLO, said, *HELLO]})
    assert checked["messages"] == [*HELLO, {"role": "assistant", "content": "hi"}, *HELLO]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_deployment_allows_are_refused_with_the_limit(name: str) -> None:
    limits = requests.Limits(max_output_tokens=100)
    assert requests.check(GOOD | {name: 100}, limits)[name] == 100
    with pytest.raises(RequestRefused, match="the limit is 100 tokens") as refused:
        requests.check(GOOD | {name: 101}, limits)
    assert (refused.value.param, refused.value.code) == (name, "invalid_value")


def test_n_is_limited_by_the_deployment() -> None:
    with pytest.raises(RequestRefused, match="from 1 to 4"):
        requests.check(GOOD | {"n": 5}, requests.Limits(max_choices=4))


@pytest.mark.parametrize("body", [None, [], "hello", 7, [GOOD]])
def test_what_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(RequestRefused) as refused:
        requests.check(body)
    assert refused.value.code == "invalid_json"


GOOD_CHANGES: list[dict[str, Any]] = [
    {},
    {"messages": [{"role": "system", "content": ""}, *HELLO]},
    {"messages": [*HELLO, {"role": "assistant", "content": ""}, *HELLO]},
    {"messages": HELLO * 256},
    _message([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]),
    {"n": 16, "max_tokens": 1, "max_completion_tokens": 1, "top_logprobs": 5, "logprobs": True},
    {"n": None, "max_tokens": None, "stop": None, "seed": None, "temperature": None},
    {"stop": ["a", "b", "c", "d"]},
    {"stop": "a"},
    {"temperature": 0, "top_p": 1.0, "frequency_penalty": -2.0, "presence_penalty": 2},
    {"stream": True, "stream_options": {"include_usage": True}, "response_format": {"type": "json_object"}},
    {"user": "u" * 256},
]


@pytest.mark.parametrize("change", GOOD_CHANGES, ids=str)
def test_a_good_body_reaches_the_engine_as_it_came(change: dict[str, Any]) -> None:
    assert requests.check(GOOD | change) == GOOD | change


@pytest.mark.parametrize(
    "ours", [{"store": False}, {"store": None}, {"metadata": None}, {"metadata": {"k" * 64: "v" * 512}}], ids=str
)
def test_our_own_fields_are_not_passed_on(ours: dict[str, Any]) -> None:
    body = GOOD | {"temperature": 0.5} | ours
    assert requests.check(body) == GOOD | {"temperature": 0.5}
    assert requests.sampling(body) == {"temperature": 0.5}


def test_checking_leaves_the_body_alone() -> None:
    body = GOOD | {"store": False}
    requests.check(body)
    assert body == GOOD | {"store": False}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": "a"}, {"type": "audio"}], None),
        ([], None),
        ({"type": "text", "text": "a"}, None),
        (None, None),
    ],
    ids=str,
)
def test_the_text_of_a_message(content: Any, text: str | None) -> None:
    assert requests.text_of(content) == text
