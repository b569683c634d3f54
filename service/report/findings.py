"""What is unusual about the data, in plain sentences, each with its number and its bound. Pure.

A rule looks at one thing and finds it well, worth a look, or in need of somebody before a round; where there is too
little data to tell, it says nothing. The sentence names what to do.
"""

from __future__ import annotations

from service.report import about_pairs, about_votes
from service.report.records import DataReport, Finding, Severity

_URGENT_FIRST = list(Severity)


def findings(report: DataReport) -> tuple[Finding, ...]:
    """All that the rules say, the most urgent first."""
    said = [finding for rule in about_votes.RULES + about_pairs.RULES if (finding := rule(report)) is not None]
    return tuple(sorted(said, key=lambda finding: _URGENT_FIRST.index(finding.severity)))
