"""The state of random generators, out and in: the ambient ones that SB3 draws from, and a simulation's own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def random_state() -> dict[str, Any]:
    """The ambient generators that SB3 draws from: Python's, NumPy's and torch's."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {
            "key": numpy_state["state"]["key"].copy(),
            "pos": numpy_state["state"]["pos"],
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        },
        "torch": torch.get_rng_state().numpy().copy(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [part.numpy().copy() for part in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state().numpy().copy()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the ambient generators where `random_state` read them."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(word) for word in python["words"]), python["gauss"]))
    words = {"key": numpy_state["key"], "pos": numpy_state["pos"]}
    gauss = {"has_gauss": numpy_state["has_gauss"], "gauss": numpy_state["gauss"]}
    np.random.set_state({"bit_generator": "MT19937", "state": words, **gauss})
    torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all([torch.from_numpy(part.copy()) for part in state["cuda"][: torch.cuda.device_count()]])
    if torch.backends.mps.is_available() and "mps" in state:
        torch.mps.set_rng_state(torch.from_numpy(state["mps"].copy()))


@contextlib.contextmanager
def forked_randomness(seed: int) -> Iterator[None]:
    """Ambient generators seeded for a while, and put back as they were: an evaluation must not move the training."""
    before = random_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before)


def pack_generator(rng: np.random.Generator) -> NDArray[np.uint64]:
    """A PCG64 generator's whole state as six 64-bit words."""
    state: dict[str, Any] = dict(rng.bit_generator.state)
    words = [state["state"]["state"], state["state"]["inc"]]
    mask = (1 << 64) - 1
    return np.array(
        [part for word in words for part in (word >> 64, word & mask)] + [state["has_uint32"], state["uinteger"]],
        dtype=np.uint64,
    )


def unpack_generator(rng: np.random.Generator, row: NDArray[np.uint64]) -> None:
    """Puts `rng` into the state that `pack_generator` read."""
    high, low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in row)
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
