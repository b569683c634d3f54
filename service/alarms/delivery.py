"""The postman: takes alarms out of the store and brings them to the webhooks, each at least once.

Whatever goes wrong, the alarm stays in the store and is tried again, later each time. A webhook that has taken it is
not asked again because another has not; after a crash it may be, and knows the alarm by its id.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

import httpx

from service.alarm_settings import AlarmSettings
from service.alarms.bell import Alarm
from service.alarms.letters import letter
from service.errors import Unavailable
from service.store.alarms import Due
from service.store.store import Store

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 300.0
MOST_AT_ONCE = 20  # alarms


class Postman:
    """One per service, in the Conductor. Two at once would do no harm: each alarm is claimed for a while."""

    def __init__(
        self, store: Store, settings: AlarmSettings, wait_seconds: Callable[[int], float] | None = None
    ) -> None:
        """`wait_seconds`: how long after so many attempts the next may be made."""
        self._store = store
        self._settings = settings
        self._wait_seconds = wait_seconds or retry_seconds
        self._secret = None if settings.secret is None else settings.secret.get_secret_value()
        self._webhooks = {_digest(url): url for url in (hook.get_secret_value() for hook in settings.webhooks)}

    async def run(self) -> None:
        """For ever: deliver, and rest. Without webhooks there is nothing to do, and alarms are only kept."""
        while True:
            try:
                while await self.deliver():
                    pass
            except Unavailable as error:  # what is in the store is still there when it is back
                log.warning("alarms wait: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    async def deliver(self) -> int:
        """Tries all alarms that are due; how many there were."""
        if not self._webhooks:
            return 0
        # Longer than all attempts below can take: nobody else tries the same alarms meanwhile.
        claim = timedelta(seconds=2 * self._settings.timeout_seconds * len(self._webhooks) + 30)
        oldest = timedelta(hours=self._settings.give_up_hours)
        due = await self._store.alarms.claim(MOST_AT_ONCE, within=oldest, claim=claim)
        if not due:
            return 0
        # Redirects are not followed: an alarm goes where the settings say, and nowhere else.
        async with httpx.AsyncClient(timeout=self._settings.timeout_seconds, trust_env=False) as client:
            await asyncio.gather(*(self._bring(client, one) for one in due))
        return len(due)

    async def _bring(self, client: httpx.AsyncClient, due: Due) -> None:
        missing = [digest for digest in self._webhooks if digest not in due.delivered_to]
        troubles = await asyncio.gather(*(self._post(client, self._webhooks[one], due.alarm) for one in missing))
        taken = [digest for digest, trouble in zip(missing, troubles, strict=True) if trouble is None]
        trouble = "; ".join(trouble for trouble in troubles if trouble is not None) or None
        retry = timedelta(seconds=self._wait_seconds(due.alarm.attempts))
        await self._store.alarms.tried(due.alarm.seq, taken=taken, trouble=trouble, retry=retry)
        if trouble is not None:
            log.warning("alarm %d (%s) is not delivered yet: %s", due.alarm.seq, due.alarm.kind, trouble)

    async def _post(self, client: httpx.AsyncClient, url: str, alarm: Alarm) -> str | None:
        """Why it was not taken; None: it was. Names the host only: the rest of such a URL is a secret."""
        host = urlsplit(url).hostname
        sent = letter(alarm, format=self._settings.format, secret=self._secret, now_seconds=int(time.time()))
        try:
            answer = await client.post(url, content=sent.body, headers=dict(sent.headers))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{host}: {type(error).__name__}"
        return None if answer.is_success else f"{host} answered {answer.status_code}"


def retry_seconds(attempts: int) -> float:
    """Doubles with each attempt, up to five minutes."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 30))


def _digest(url: str) -> str:
    """Stands for the webhook in the store, where its URL must not be."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]
