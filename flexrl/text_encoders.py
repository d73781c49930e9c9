"""Phrases as vectors: what a policy sees of a goal that is given in words."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from flexrl.physics import Array

NUM_FEATURES = 32


def hashed_ngrams(phrase: str) -> Array:
    """A unit vector (NUM_FEATURES,) of the phrase's words and of their three-letter pieces; needs no weights.

    Each piece adds 1 or -1 at a place that its checksum says (Weinberger et al. 2009, "Feature hashing for large scale
    multitask learning"); phrases that share words or stems lie close together.
    """
    vector = np.zeros(NUM_FEATURES)
    for word in phrase.lower().split():
        marked = f"<{word}>"
        for piece in {marked, *(marked[i : i + 3] for i in range(len(marked) - 2))}:
            checksum = zlib.crc32(piece.encode())
            vector[checksum % NUM_FEATURES] += 1.0 if checksum & 0x80000000 else -1.0
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


ENCODERS: dict[str, Callable[[str], Array]] = {"hashed_ngrams": hashed_ngrams}


def in_a_mirror(phrase: str) -> str:
    """The phrase with left and right exchanged."""
    return phrase.replace("left", "\0").replace("right", "left").replace("\0", "right")
