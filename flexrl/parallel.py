"""Several processes that train one model, as torchrun starts them: gradients averaged, the first one keeps the run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Peers:
    """Who trains together; the default is one process alone, for which all this does nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU

    @property
    def leads(self) -> bool:
        """Whether this process keeps the run, evaluates and writes; the others compute gradients alone."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this process: with several, and auto or cuda asked for, a GPU of its own."""
        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{self.local_rank}" if asked == "cuda" and self.size > 1 else asked

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
    peers = Peers(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    use_gpus = torch.cuda.is_available() and torch.cuda.device_count() > peers.local_rank
    if use_gpus:
        torch.cuda.set_device(peers.local_rank)
    distributed.init_process_group("nccl" if use_gpus else "gloo")
    return peers
