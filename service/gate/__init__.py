"""Numbers in, verdict out: may this candidate replace the deployed adapter? Pure.

Fifth of the seven files of a thumbs-up: `training/round.py` measured, `service/registry.py` publishes what passes.
Every check passes, fails or abstains; any failure and any needed abstention keeps the old adapter (invariant 6).
`service/judging.py` gathers the evidence.
"""

from service.gate.evidence import Evidence
from service.gate.verdict import judge, summary

__all__ = ["Evidence", "judge", "summary"]
