"""Phrases as vectors: what a policy sees of a goal that is given in words."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from flexrl.config import text
from flexrl.physics import Array

NUM_FEATURES = 128
TRANSFORMER = "transformer:"
MAX_TOKENS = 64
EncoderName = Annotated[str, text(r"hashed_ngrams|transformer:.+", "hashed_ngrams, or transformer: and a folder")]


@dataclass(frozen=True)
class Encoder:
    """A function of a phrase: its unit vector, (size,)."""

    size: int
    encode: Callable[[str], Array]


def find_encoder(name: str) -> Encoder:
    """`hashed_ngrams`, or `transformer:FOLDER`; ValueError with a sentence if that folder holds none."""
    if name.startswith(TRANSFORMER):
        return _transformer(name.removeprefix(TRANSFORMER))
    return {"hashed_ngrams": Encoder(NUM_FEATURES, hashed_ngrams)}[name]


def hashed_ngrams(phrase: str) -> Array:
    """A unit vector (NUM_FEATURES,) of the phrase's words and of their three-letter pieces; needs no weights.

    Each piece adds 1 or -1 at a place that its checksum says (Weinberger et al. 2009, "Feature hashing for large scale
    multitask learning"); phrases that share words or stems lie close together.
    """
    vector = np.zeros(NUM_FEATURES)
    for word in phrase.lower().replace(",", " ").split():
        marked = f"<{word}>"
        for piece in {marked, *(marked[i : i + 3] for i in range(len(marked) - 2))}:
            checksum = zlib.crc32(piece.encode())
            vector[checksum % NUM_FEATURES] += 1.0 if checksum & 0x80000000 else -1.0
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


@cache
def _transformer(folder: str) -> Encoder:
    """The mean of an encoder's last layer over the phrase's tokens, as sentence encoders are trained to be read.

    Everything is read from the folder (safetensors, no code of its own); nothing is fetched.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"world.encoder: {folder} holds no encoder (it has no config.json); write hashed_ngrams")
    try:
        import transformers
    except ImportError:
        raise ValueError("world.encoder: needs the package transformers; python -m pip install transformers") from None
    import torch

    try:
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **options).eval()
    except Exception as error:  # noqa: BLE001 - what reads weights and tokenizers raises errors of no narrower class
        raise ValueError(f"world.encoder: {folder} cannot be read: {' '.join(str(error).split())}") from None

    @cache  # the same phrases are asked for by every world and sampler that is made
    @torch.no_grad()
    def encode(phrase: str) -> Array:
        tokens = tokenizer([phrase], return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
        mean = model(**tokens).last_hidden_state[0].mean(dim=0)
        return np.asarray(mean / mean.norm().clamp(min=1e-9), dtype=float)

    return Encoder(int(model.config.hidden_size), encode)


def embed(phrases: Sequence[str], encoder: Encoder) -> Array:
    """The vector of each phrase and of its mirror image ("turn left": "turn right"), (num_phrases, 2 * size)."""
    return np.array([np.concatenate([encoder.encode(phrase), encoder.encode(in_a_mirror(phrase))]) for phrase in phrases])


def closest(phrase: str, phrases: Sequence[str], encoder: Encoder) -> tuple[int, float]:
    """Which of `phrases` lies closest to a phrase, and how close: the cosine of their vectors, 1 for the same."""
    likeness = np.array([encoder.encode(other) for other in phrases]) @ encoder.encode(phrase)
    best = int(likeness.argmax())
    return best, float(likeness[best])


def in_a_mirror(phrase: str) -> str:
    """The phrase with left and right exchanged."""
    return phrase.replace("left", "\0").replace("right", "left").replace("\0", "right")
