"""The chat endpoint as an application's backend uses it: through the openai client, on real vLLM under Ray Serve."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.conftest import Service
from training.corpus import held_out, is_correct

QUESTION = held_out()[0]
MESSAGES = [{"role": "user", "content": QUESTION.prompt}]


def ask(service: Service, **body: Any) -> Any:
    return service.openai.chat.completions.create(**{"model": "policy", "messages": MESSAGES, **body})


def test_a_question_is_answered_with_usage_and_the_adapter_that_wrote_it(service: Service) -> None:
    reply = ask(service, temperature=0, max_tokens=64)
    assert is_correct(QUESTION, reply.choices[0].message.content)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.model == service.operator.get("/ops/status").json()["route"]["stable"]


def test_the_header_names_the_version_too(service: Service) -> None:
    reply = service.app.post("/v1/chat/completions", json={"model": "policy", "messages": MESSAGES})
    assert reply.headers["x-policy-version"] == reply.json()["model"]
    assert reply.headers["x-completion-id"] == reply.json()["id"]


def test_a_stream_carries_one_id_and_one_model_in_every_chunk(service: Service) -> None:
    chunks = list(ask(service, stream=True, temperature=0, max_tokens=64, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert len({chunk.model for chunk in chunks}) == 1
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert is_correct(QUESTION, text)
    assert chunks[-1].usage.completion_tokens > 0


def test_an_answer_can_be_rated_the_moment_its_last_byte_is_there(service: Service) -> None:
    for stream in (True, False) * 10:
        reply = ask(service, stream=stream, max_tokens=32)
        completion_id = list(reply)[-1].id if stream else reply.id
        vote = service.app.post("/v1/feedback", json={"completion_id": completion_id, "rating": "up"})
        assert vote.status_code == 201, vote.text


def test_each_of_n_choices_can_be_rated(service: Service) -> None:
    reply = ask(service, n=3, max_tokens=32)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for index, expected in ((0, 201), (2, 201), (3, 404)):
        body = {"completion_id": reply.id, "choice_index": index, "rating": "down"}
        assert service.app.post("/v1/feedback", json=body).status_code == expected


def test_a_seed_repeats_an_answer(service: Service) -> None:
    first, second = (ask(service, seed=5, temperature=1, max_tokens=32) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.id != second.id


def test_stop_ends_an_answer(service: Service) -> None:
    whole = ask(service, temperature=0, max_tokens=32).choices[0].message.content
    stop = whole[len(whole) // 2]
    cut = ask(service, temperature=0, max_tokens=32, stop=[stop]).choices[0]
    assert cut.message.content == whole.split(stop)[0]
    assert cut.finish_reason == "stop"


def test_logprobs_come_with_alternatives(service: Service) -> None:
    content = ask(service, logprobs=True, top_logprobs=2, max_tokens=4).choices[0].logprobs.content
    assert all(len(token.top_logprobs) >= 2 and token.logprob <= 0 for token in content)


def test_response_format_forces_json(service: Service) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}  # fmt: skip
    # JSON allows any white space, and so small a model likes it: repeating it must cost something.
    reply = ask(
        service, max_tokens=256, temperature=0, frequency_penalty=2,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )  # fmt: skip
    assert set(json.loads(reply.choices[0].message.content)) == {"yes"}


@pytest.mark.parametrize(
    ("body", "error", "param", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
        ({"model": "policy@candidate"}, openai.NotFoundError, "model", "model_not_found"),
        ({"model": "policy-0009-deadbeef"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": " "}]}, openai.BadRequestError, "messages.0.content", "empty_prompt"),
        ({"messages": [{"role": "user", "content": "why " * 4000}]}, openai.BadRequestError, "messages",
         "context_length_exceeded"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens", "invalid_value"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"extra_body": {"chat_template": "x"}}, openai.BadRequestError, "chat_template", "unsupported_parameter"),
        ({"extra_body": {"ignore_eos": True}}, openai.BadRequestError, "ignore_eos", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_by_name(service: Service, body, error, param, code) -> None:
    with pytest.raises(error) as refused:
        ask(service, **body)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.message


def test_an_over_long_prompt_is_told_the_limit(service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match="512"):
        ask(service, messages=[{"role": "user", "content": "why " * 4000}])


def test_nonsense_in_the_body_has_the_contracts_error_shape(service: Service) -> None:
    for content in (b"{", b"[1]", b'"x"', b"", b'{"model": "policy", "messages": NaN}', b"\xff\xfe"):
        reply = service.app.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 400, content
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_keys_open_only_their_own_doors(service: Service) -> None:
    import httpx

    assert httpx.get(f"{service.url}/v1/models").status_code == 401
    assert httpx.get(f"{service.url}/ops/status", headers={"authorization": "Bearer nonsense"}).status_code == 401
    assert service.app.get("/ops/status").status_code == 403
    assert service.operator.get("/v1/models").status_code == 403
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert httpx.get(f"{service.url}/readyz").json()["ready"] is True


def test_the_engines_own_routes_are_not_reachable(service: Service) -> None:
    for path in ("/v1/load_lora_adapter", "/invocations", "/tokenize", "/metrics", "/docs", "/openapi.json"):
        assert service.app.post(path, json={}).status_code in (404, 405), path


def test_the_sockets_that_engines_leave_lie_in_a_folder_that_goes_with_the_service(service: Service) -> None:
    folder = (service.state / "short").readlink()
    assert any(each.is_socket() for each in folder.iterdir())
