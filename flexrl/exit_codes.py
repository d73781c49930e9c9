"""What a verb's exit code says, and what whoever started it does next: one table for runs, sweeps and Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DONE = 0
FAILED = 1
USER_ERROR = 2
OUT_OF_RESOURCES = 75
INTERRUPTED = 130
KILLED = 137
NOBODY_READS = 141
PREEMPTED = 143


@dataclass(frozen=True)
class Meaning:
    """One row of the table."""

    words: str
    # done: nothing is left to do; never: it would end alike; free: again, uncounted; counted: again, up to the retries
    retry: Literal["done", "never", "free", "counted"]


MEANINGS = {
    DONE: Meaning("done", "done"),
    USER_ERROR: Meaning("bad settings", "never"),
    OUT_OF_RESOURCES: Meaning("out of resources", "counted"),
    PREEMPTED: Meaning("preempted", "free"),
}


def meaning_of(code: int) -> Meaning:
    """The table's row for this exit code; every other code is a failure that counts."""
    return MEANINGS.get(code, Meaning(f"failed with exit code {code}", "counted"))
