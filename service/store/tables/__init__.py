"""The tables, as SQLAlchemy Core metadata. Migrations in `migrations/` create them; nothing else does.

Order is by the store's own sequences (`seq`), never by clocks: clocks of different nodes disagree.
"""

from __future__ import annotations

from service.store.tables.common import AUDIT_LOCK, CREATE_ROUND_LOCK, MATCH_LOCK, MIGRATE_LOCK, metadata
from service.store.tables.curated import (
    imported_pairs,
    preference_pairs,
    preference_state,
    quarantine,
    quarantined_votes,
    stale_prompts,
    vote_fates,
)
from service.store.tables.learning import adapter_ordinals, adapters, round_events, round_pairs, rounds
from service.store.tables.operation import adapter_leases, alarms, audit, base_model, keys, pause, route, secrets
from service.store.tables.traffic import choices, completions, feedback

__all__ = [
    "AUDIT_LOCK",
    "CREATE_ROUND_LOCK",
    "MATCH_LOCK",
    "MIGRATE_LOCK",
    "adapter_leases",
    "adapter_ordinals",
    "adapters",
    "alarms",
    "audit",
    "base_model",
    "choices",
    "completions",
    "feedback",
    "imported_pairs",
    "keys",
    "metadata",
    "pause",
    "preference_pairs",
    "preference_state",
    "quarantine",
    "quarantined_votes",
    "round_events",
    "round_pairs",
    "rounds",
    "route",
    "secrets",
    "stale_prompts",
    "vote_fates",
]
