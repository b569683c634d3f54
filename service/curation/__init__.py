"""Which preferences count: guards on pairs, votes held in quarantine, and the report on what is there."""
