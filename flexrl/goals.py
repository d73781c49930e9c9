"""What of its goal a policy sees, as blocks of its observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flexrl.observations import Block, Mirror, signs
from flexrl.text_encoders import embed, find_encoder, in_a_mirror

PLACE_SEEN = 0.5  # m


@dataclass(frozen=True)
class Wording:
    """How the goals of a world are called, and by whose vectors they are seen."""

    skills: Sequence[str]  # in the order of State.skill
    phrases: Sequence[str]  # in the order of State.phrase
    encoder: str  # as text_encoders.find_encoder knows it


def one_hot(wording: Wording) -> Block:
    """1 for the present skill, 0 for the others; in a mirror left and right skills change places."""
    skills = list(wording.skills)
    twins = [in_a_mirror(name) for name in skills]
    source = np.array([skills.index(twin) if twin in skills else i for i, twin in enumerate(twins)])
    rows = np.eye(len(skills))
    return Block("one_hot", lambda state: rows[state.skill], Mirror(source, np.ones(len(skills), np.float32)))


def command(wording: Wording) -> Block:
    """Asked forward and leftward speed (m/s) and yaw rate (rad/s)."""
    return Block("command", lambda state: state.command, signs(1, -1, -1))


def place(wording: Wording) -> Block:
    """Where the command, followed to the letter, would have brought the body: ahead and to the left, m, at most PLACE_SEEN."""
    return Block("place", lambda state: np.clip(state.place, -PLACE_SEEN, PLACE_SEEN), signs(1, -1))


def embedding(wording: Wording) -> Block:
    """The present phrase's vector and that of its mirror image ("turn left": "turn right"), which a mirror exchanges."""
    encoder = find_encoder(wording.encoder)
    rows, size = embed(wording.phrases, encoder), encoder.size
    mirror = Mirror(np.roll(np.arange(2 * size), size), np.ones(2 * size, np.float32))
    return Block("embedding", lambda state: rows[state.phrase], mirror)


GOALS: dict[str, Callable[[Wording], Block]] = {
    "one_hot": one_hot,
    "command": command,
    "place": place,
    "embedding": embedding,
}
