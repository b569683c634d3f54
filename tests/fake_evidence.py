"""A round as evidence, with something in every part of it, as tests of its page, its notes and the command line need it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from service.contracts import Adapter, AuditEntry, Check, Round, RoundEvent, RoundState, Slice, Verdict
from service.dry_run import DryRun
from service.estimates import Estimate
from service.evidence import environment
from service.evidence.records import RoundEvidence, Sample
from service.pairs import Funnel
from service.settings import TrainingSettings
from service.store.audit_chain import GENESIS, entry_digest
from service.tracing import Step, Trace
from tests.data_pairs import a_data_report
from tests.fake_trainer import report, step

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BEFORE, AFTER = "policy-0001-aaaaaaaa", "policy-0002-bbbbbbbb"

PASSED = Verdict(
    promote=True,
    checks=(
        Check(name="integrity", outcome="pass", why="every file hashes to its manifest"),
        Check(name="held_out", outcome="pass", value=0.875, bound=0.5, why="accuracy on 24 held-out pairs",
              slices=(Slice(name="newest", outcome="pass", count=9, value=0.9, bound=0.5),)),
        Check(name="win_rate", outcome="abstain", needed=False, why="no judge is set (gate.judge)"),
    ),
)  # fmt: skip


def a_log(entries: int) -> list[AuditEntry]:
    """A chained one."""
    log: list[AuditEntry] = []
    for n in range(1, entries + 1):
        said: dict[str, Any] = {
            "at": NOW + timedelta(seconds=n), "who": "tess", "action": "promote", "subject": f"policy-{n:04d}",
            "detail": {"reason": f"ünïcode {n}", "share": 0.05},
        }  # fmt: skip
        log.append(AuditEntry(seq=2 * n, digest=entry_digest(log[-1].digest if log else GENESIS, **said), **said))
    return log


def a_trace() -> Trace:
    """Of round 2: two votes, a pair, an adapter, and thousands of answers."""
    votes = tuple(
        {"id": n, "kind": "rating", "rating": "up", "app": "shop", "user": "ada", "created_at": NOW} for n in (8, 7)
    )
    return Trace(
        kind="round", id="2", found=({"id": 2, "state": "promoted", "parent": BEFORE},),
        comes_from=(
            Step(kind="pair", total=1, shown=({"id": "d" * 64, "source": "siblings", "round": 2, "split": "train"},)),
            Step(kind="vote", total=2, shown=votes),
            Step(kind="completion", total=1, shown=({"id": "chatcmpl-1", "adapter": BEFORE},)),
            Step(kind="adapter", total=1, shown=({"id": BEFORE, "parent": "base"},)),
        ),
        leads_to=(
            Step(kind="adapter", total=1, shown=({"id": AFTER, "parent": BEFORE},)),
            Step(kind="completion", total=4321, shown=({"id": "chatcmpl-9", "adapter": AFTER},)),
            Step(kind="vote", total=0, shown=()),
            Step(kind="pair", total=0, shown=()),
        ),
    )  # fmt: skip


def a_whole_round(text: str = "harmless", **fields: Any) -> Round:
    """`text` stands wherever people or models may have written something."""
    behaviour = {
        "current": {"mean_tokens": 31.5, "refuses": 0.1}, "candidate": {"mean_tokens": 28.0, "refuses": 0.1},
        "win_rate": {"prompts": 40, "win_rate": {"mean": 0.65, "low": 0.52, "high": 0.78}, "ties": 0.1},
        "suites": {text: {"right": 9, "of": 10}}, "samples": [],
    }  # fmt: skip
    funnel = Funnel(votes=30, votes_in_pairs=20, left_out={"no_partner": 10}, pairs_from_votes=10, pairs_imported=0)
    given: dict[str, Any] = {
        "n": 2, "state": RoundState.PROMOTED, "reason": f"passed 2 checks {text}", "note": text, "requested_by": "tess",
        "settings": {"objective": "dpo", "beta": 0.1, "epochs": 2}, "parent": BEFORE, "attempt": 1, "adapter": AFTER,
        "pair_digest": "d" * 64, "pairs": 36, "funnel": funnel.model_dump(mode="json"), "verdict": PASSED,
        "report": report(steps=tuple(step(n, loss=0.7 / n) for n in range(1, 9)), adapter_name=AFTER).model_dump(mode="json"),
        "behaviour": behaviour, "canary": {"steps": [{"share": 0.05, "why": text}, {"share": 1.0, "why": None}]},
        "environment": environment(TrainingSettings()), "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    return Round.model_validate(given | fields)


def an_evidence(text: str = "harmless", **fields: Any) -> RoundEvidence:
    adapter = Adapter(
        name=AFTER, ordinal=2, parent=BEFORE, round=2, weights_sha256="b" * 64, manifest_sha256="c" * 64,
        directory="/adapters/2", pair_digest="d" * 64, verdict=PASSED, created_at=NOW,
    )  # fmt: skip
    given: dict[str, Any] = {
        "made_at": NOW, "round": a_whole_round(text), "stable": AFTER, "adapter": adapter,
        "recipe": {"seed": 0, "threads": 1, "objective": "dpo", "held_out": {"accuracy": 1}},
        "timeline": tuple(
            RoundEvent(seq=n, at=NOW, kind="state", data={"state": state, "reason": text})
            for n, state in enumerate(("queued", "training", "judging", "promoted"), start=1)
        ),
        "samples": (
            Sample(prompt=f"say {text}", before=f"so {text}", after=f"thus {text}"),
            Sample(prompt="and?", before="the same", after="the same"),
        ),
        "lineage": a_trace(), "audit": tuple(a_log(2)),
    }  # fmt: skip
    return RoundEvidence.model_validate(given | fields)


def a_dry_run(funnel: Funnel, tags: tuple[str, ...], needed: int, **estimate: Any) -> DryRun:
    lacking = None if funnel.pairs >= needed else f"{funnel.pairs} new pairs, {needed} are needed (min_pairs)"
    by_rounds: dict[str, Any] = {
        "basis": "rounds", "rounds": 3, "tokens": 90_000, "seconds": 61.0, "seconds_low": 55.0, "seconds_high": 70.0,
        "training_seconds": 40.0, "memory_bytes": 3 << 29,
    }  # fmt: skip
    return DryRun(
        enough=lacking is None, missing=lacking, objective="dpo", min_pairs=needed,
        settings={"objective": "dpo", "epochs": 3}, people=12, apps=2, training=54, thumbs=0, replayed=6, held_out=10,
        estimate=Estimate.model_validate(by_rounds | estimate), canary=None, funnel=funnel,
        report=a_data_report(funnel, tags, needed),
    )  # fmt: skip


def answered(path: list[str], query: dict[str, str], body: Any, log: list[AuditEntry]) -> Any:
    """What the routes of `service/api/{evidence,lineage,audit}.py` answer; None: the path is none of theirs."""
    match path:
        case ["ops", "rounds", "2", "report"]:
            return an_evidence().model_dump(mode="json")
        case ["ops", "rounds", "2", "report.html"]:
            from service.evidence.page import page

            return page(an_evidence())
        case ["ops", "rounds", n, "pairs"]:
            return {"round": int(n), "fate": body["fate"], "pairs": 36}
        case ["ops", "adapters", "policy-0002-bbbbbbbb", "notes"]:
            from service.evidence.notes import notes

            return notes(an_evidence())
        case ["ops", "lineage", "round", "2"]:
            return a_trace().model_dump(mode="json")
        case ["ops", "audit", "verify"]:
            faulty = query.get("kept") == "f" * 64
            return {"entries": 3, "digest": "a" * 64, "fault": "entry 8 does not follow" if faulty else None}
        case ["ops", "audit", "export"]:
            return "".join(f"{entry.model_dump_json()}\n" for entry in log)
    return None
