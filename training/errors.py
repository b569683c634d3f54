"""Why a round cannot go on.

TrainingError
├── SnapshotInvalid      the pairs are not those the round was told to learn from
├── FingerprintMismatch  the base model or its chat template is not the server's
├── ReferenceViolated    at step 0 the policy is not its own reference
├── NotFinite            a loss, gradient or weight is NaN or infinite
└── AdapterInvalid       the adapter directory breaks its contract
"""

from __future__ import annotations


class TrainingError(Exception):
    """The round fails with this message as its reason; the deployed adapter stays."""


class SnapshotInvalid(TrainingError): ...


class FingerprintMismatch(TrainingError): ...


class ReferenceViolated(TrainingError): ...


class NotFinite(TrainingError): ...


class AdapterInvalid(TrainingError): ...


class Interrupted(TrainingError): ...
