"""`make bench`: each benchmark measures us and a peer in the same run and prints a ratio."""

from __future__ import annotations

from tests.benchmarks import dpo_step

if __name__ == "__main__":
    dpo_step.main()
