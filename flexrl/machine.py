"""What a process may use of the machine: its cores, whoever limited them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import psutil

from flexrl.config import UserError, text

# what torch computes on
Device = Annotated[str, text(r"auto|cpu|cuda(:\d+)?|mps", "auto, cpu, cuda, mps, or cuda:1 of several")]


def check_device(device: str) -> None:
    """UserError if torch has no such device here."""
    import torch  # imported here because what asks for cores alone should not wait for it

    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: there is no {device} among {torch.cuda.device_count()} GPUs here; write auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: there is no mps here, which Apple's machines have; write auto")


def num_threads(with_openmp: bool = True) -> int:
    """Logical cores for threads that wait for memory as much as they compute: physics.

    Without `with_openmp`, OMP_NUM_THREADS does not count: to share the cores among processes that each have their own.
    """
    return min(os.cpu_count() or 1, *_limits(with_openmp))


def num_cores(num_processes: int = 1) -> int:
    """Physical cores for threads that compute all the time, torch's; each one's, if torchrun started so many processes."""
    cores = min(psutil.cpu_count(logical=False) or 1, *_limits(with_openmp=num_processes == 1))  # torchrun sets it to 1
    return max(cores // num_processes, 1)


def _limits(with_openmp: bool = True) -> list[int]:
    """OMP_NUM_THREADS, which whoever runs several processes sets; the affinity; the quota of a container."""
    limits = [len(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else []
    given = os.environ.get("OMP_NUM_THREADS", "") if with_openmp else ""
    if given.isdecimal() and int(given) > 0:
        limits.append(int(given))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text(encoding="utf-8").partition(" ")
        if limit != "max":
            limits.append(max(math.ceil(int(limit) / int(period)), 1))
    return limits or [1 << 16]
