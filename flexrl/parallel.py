"""Several processes that train one model, as torchrun starts them: gradients averaged, the first one keeps the run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from flexrl.config import UserError

PATIENCE = timedelta(days=1)  # that the others wait for the leader, who evaluates alone


@dataclass(frozen=True)
class Peers:
    """Who trains together; the default is one process alone, for which all this does nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU
    local_size: int = 1  # processes on this machine

    @property
    def leads(self) -> bool:
        """Whether this process keeps the run, evaluates and writes; the others compute gradients alone."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this process: with several, and auto or cuda asked for, a GPU of its own.

        UserError if several are to share one.
        """
        if asked == "auto":
            if self.size > 1 and torch.cuda.is_available() and not self.has_gpus:
                found = f"{self.local_size} processes find {torch.cuda.device_count()} GPU(s)"
                raise UserError(f"device: {found}; start as many as there are, or write cpu")
            asked = "cuda" if self.has_gpus else "cpu"
        if self.size == 1 or asked == "cpu":
            return asked
        if asked != "cuda" or not self.has_gpus:
            raise UserError(f"device: {self.local_size} processes cannot share {asked}; write auto, and start one for each GPU")
        return f"cuda:{self.local_rank}"

    @property
    def has_gpus(self) -> bool:
        """Whether there is one for each process of this machine."""
        return torch.cuda.is_available() and torch.cuda.device_count() >= self.local_size

    @contextmanager
    def opening(self) -> Iterator[None]:
        """What the leader does before it first tells the others anything; if that fails, they are told None."""
        try:
            yield
        except BaseException:
            self.agree(None)
            raise

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces each gradient by its mean over all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.size == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64, device="cuda" if self.has_gpus else "cpu")
        distributed.all_reduce(numbers)
        return float(numbers) / self.size

    def agree(self, value: Any) -> Any:
        """The leader's plain value, in all processes."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def leave(self) -> None:
        """The end of it."""
        if self.size > 1:
            distributed.destroy_process_group()


def join() -> Peers:
    """Meets the processes that torchrun started with this one; alone without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Peers()
    try:
        rank, *local = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    except KeyError as error:
        raise UserError(
            f"WORLD_SIZE is {size}, but {error.args[0]} is not set; start it by torchrun, or unset WORLD_SIZE"
        ) from None
    peers = Peers(rank, size, *local)
    if peers.has_gpus:
        torch.cuda.set_device(peers.local_rank)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if peers.has_gpus else "gloo", timeout=PATIENCE)
    return peers
