"""The log of answered requests: what was asked, which adapter answered, and the token ids of both.

The last byte of every answer waits for its record (invariant 4). So the records of all requests that end at the same
time go in one statement, which is one transaction, one round trip and one wait for the disk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from service.keeping.redaction import KEEP_ALL, Redactor
from service.postgres.group_commit import GroupCommit
from service.postgres.sessions import Sessions
from service.store.completion_rows import completion_row, prompt_digest
from serving.contracts import Completion

__all__ = ["Completions", "prompt_digest"]

MOST_AT_ONCE = 64  # records in a statement

_RECORD = """
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(%(rows)s AS json)) AS given (
        id text, app text, adapter text, model text, "user" text, metadata jsonb, messages jsonb, sampling jsonb,
        tokenizer_fingerprint text, prompt_digest text, prompt_token_ids integer[], single_turn boolean,
        redacted boolean, outcome text, first_token_seconds float8, seconds float8, created_at timestamptz, choices json)
), recorded AS (
    INSERT INTO completions (
        id, app, adapter, model, "user", metadata, messages, sampling, tokenizer_fingerprint, prompt_digest,
        prompt_token_ids, single_turn, redacted, outcome, first_token_seconds, seconds, created_at)
    SELECT
        id, app, adapter, model, "user", metadata, messages, sampling, tokenizer_fingerprint,
        prompt_digest, prompt_token_ids, single_turn, redacted, outcome, first_token_seconds, seconds, created_at
    FROM given
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
INSERT INTO choices (completion_id, choice_index, text, token_ids, finish_reason, tokens)
SELECT recorded.id, choice.choice_index, choice.text, choice.token_ids, choice.finish_reason, choice.tokens
FROM recorded JOIN given USING (id), json_to_recordset(given.choices) AS choice (
    choice_index integer, text text, token_ids integer[], finish_reason text, tokens integer)
"""


class Completions:
    def __init__(self, sessions: Sessions, redact: Redactor = KEEP_ALL) -> None:
        self._line = sessions.line()
        self._redact = redact
        self._records: GroupCommit[dict[str, Any], None] = GroupCommit(self._write, most=MOST_AT_ONCE)

    async def record(self, completion: Completion) -> None:
        """Durable when it returns. `store=False` keeps the messages, the texts and the token ids out.

        Recording the same id again changes nothing, so a caller that lost the connection may simply retry. Raises
        `Unavailable` when it may not be kept; that it was kept all the same can then not be ruled out.
        """
        if self._redact is KEEP_ALL:
            row = completion_row(completion, self._redact)
        else:  # a hook may take its time, and tokens of other requests are due
            row = await asyncio.to_thread(completion_row, completion, self._redact)
        await self._records.submit(row)

    async def close(self) -> None:
        await self._records.close()
        await self._line.close()

    async def _write(self, rows: Sequence[dict[str, Any]]) -> Sequence[None]:
        await self._line.execute(_RECORD, {"rows": json.dumps(rows)})
        return [None] * len(rows)
