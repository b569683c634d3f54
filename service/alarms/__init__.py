"""What operators are told without being asked: rung where it happens, kept in the store, sent by webhook.

bell.py      the kinds of alarms, and `ring`
letters.py   what a webhook is sent, and how it is signed
delivery.py  the loop that sends, at least once
watch.py     the loop that rings what no single event tells: a lagging replica, no round in time, little space
"""

from __future__ import annotations

from service.alarms.bell import Alarm, AlarmKind, ring

__all__ = ["Alarm", "AlarmKind", "ring"]
