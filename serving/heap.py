"""The memory of a process that answers people, as Python's garbage collector sees it."""

from __future__ import annotations

import gc


def freeze() -> None:
    """To be called when all is loaded: what is there by now stays, and no collection looks at it again.

    With torch, Ray and vLLM loaded it is 800,000 objects, and whoever is being answered waits for half a second and more
    while all of them are looked through.
    """
    gc.collect()
    gc.freeze()
