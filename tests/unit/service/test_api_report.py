"""The data report over HTTP: as JSON, as a page, and in a round's dry run."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.report.document import POLICY
from service.report.records import DataReport
from service.store.store import Store
from service.votes import FeedbackBody, Rating
from serving.contracts import Caller
from tests.small_service import Refusal, SmallService, refusal

REPORT = "/ops/preferences/report"
HOSTILE = "<script>alert('tag')</script>"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
async def small(store: Store, tmp_path: Path) -> SmallService:
    return await SmallService.start(store, tmp_path)


@pytest.fixture
async def operator(small: SmallService) -> httpx.AsyncClient:
    return await small.operator()


async def read(operator: httpx.AsyncClient, **query: str) -> DataReport:
    answer = await operator.get(REPORT, params=query)
    assert answer.status_code == 200
    return DataReport.model_validate_json(answer.text)


async def test_an_empty_service_has_a_report_that_says_so(operator: httpx.AsyncClient) -> None:
    report = await read(operator)
    assert (report.counts.pairs, report.voters.people, report.min_pairs) == (0, 0, 2)
    assert report.findings[0].name == "amount"
    assert report.findings[0].severity == "act"


async def test_the_report_speaks_of_the_pairs_a_round_would_take(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    await small.like("first question", "second question", "third question")
    await small.thumb("a question of its own", Rating.UP)
    report = await read(operator)
    assert (report.counts.pairs, report.counts.training, report.counts.held_out) == (3, 2, 1)
    assert report.funnel.left_out == {"no_partner": 1}
    assert (report.voters.people, report.voters.unnamed.count, report.voters.unnamed.total) == (3, 1, 7)
    shop = next(part for part in report.slices if (part.kind, part.name) == ("app", "shop"))
    assert (shop.pairs, shop.votes, shop.liked.count, shop.liked.total) == (3, 7, 4, 7)
    assert sum(day.up + day.down for day in report.days) == 7
    assert sum(day.pairs for day in report.days) == 3


async def test_the_report_is_of_the_objective_that_is_asked_for(
    small: SmallService, operator: httpx.AsyncClient
) -> None:
    await small.thumb("a question of its own", Rating.UP)
    assert (await read(operator)).counts.thumbs == 0
    both = await read(operator, objective="dpo+kto")
    assert (both.objective, both.counts.thumbs) == ("dpo+kto", 1)
    refused = await operator.get(REPORT, params={"objective": "ppo"})
    assert refusal(refused) == Refusal(400, "invalid_value", "objective")


async def test_what_a_round_has_learned_is_no_news(small: SmallService, operator: httpx.AsyncClient) -> None:
    await small.like("first question", "second question")
    assert (await small.round()).state == "promoted"
    report = await read(operator)
    assert (report.counts.pairs, report.funnel.left_out) == (0, {"already_learned": 4})


@pytest.mark.parametrize(
    ("query", "accept", "html"),
    [
        ({}, "*/*", False),
        ({}, "application/json", False),
        ({}, "application/json, text/html;q=0.5", False),
        ({}, BROWSER, True),
        ({"as": "html"}, "*/*", True),
        ({"as": "json"}, BROWSER, False),
    ],
)
async def test_it_is_a_page_for_whoever_asks_for_one(
    operator: httpx.AsyncClient, query: dict[str, str], accept: str, html: bool
) -> None:
    answer = await operator.get(REPORT, params=query, headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["vary"] == "accept"
    assert answer.headers["content-type"].startswith("text/html" if html else "application/json")
    assert answer.text.startswith("<!doctype html>" if html else "{")
    assert answer.headers.get("content-security-policy") == (POLICY if html else None)


async def test_an_unknown_form_is_refused(operator: httpx.AsyncClient) -> None:
    assert refusal(await operator.get(REPORT, params={"as": "pdf"})) == Refusal(400, "invalid_value", "as")


async def test_what_voters_send_stays_text_on_the_page(small: SmallService, operator: httpx.AsyncClient) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": "a question"}]}
    id = (await small.replica.chat(body, Caller(app="shop"))).completion_id
    await small.store.feedback.put("shop", FeedbackBody(completion_id=id, rating=Rating.UP, tags=(HOSTILE,)))
    page = (await operator.get(REPORT, params={"as": "html"})).text
    assert "&lt;script&gt;alert(&#x27;tag&#x27;)&lt;/script&gt;" in page
    assert "<script" not in page


async def test_an_app_s_key_does_not_open_it(small: SmallService) -> None:
    app = await small.app()
    operations = httpx.AsyncClient(
        transport=httpx.ASGITransport(small.operations_app()), base_url="http://heliotrope", headers=app.headers
    )
    assert refusal(await operations.get(REPORT)).status == 403


async def test_a_dry_run_brings_the_report_with_its_funnel(small: SmallService, operator: httpx.AsyncClient) -> None:
    await small.like("first question", "second question")
    dry = (await operator.post("/ops/rounds", json={"dry_run": True, "min_pairs": 3, "objective": "dpo+kto"})).json()
    report = DataReport.model_validate(dry["report"])
    assert dry["funnel"] == dry["report"]["funnel"]
    assert (report.min_pairs, report.objective, dry["enough"]) == (3, "dpo+kto", False)
    assert "fewer than the 3" in report.findings[0].says
