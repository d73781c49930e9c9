"""What of its goal a policy sees, as blocks of its observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flexrl.observations import Block, Mirror, signs

PLACE_SEEN = 0.5  # m


def one_hot(skills: Sequence[str]) -> Block:
    """1 for the present skill, 0 for the others; in a mirror left and right skills change places."""
    twins = [name.replace("_left", "\0").replace("_right", "_left").replace("\0", "_right") for name in skills]
    source = np.array([skills.index(twin) if twin in skills else i for i, twin in enumerate(twins)])
    rows = np.eye(len(skills))
    return Block("one_hot", lambda state: rows[state.skill], Mirror(source, np.ones(len(skills), np.float32)))


def command(skills: Sequence[str]) -> Block:
    """Asked forward and leftward speed (m/s) and yaw rate (rad/s)."""
    return Block("command", lambda state: state.command, signs(1, -1, -1))


def place(skills: Sequence[str]) -> Block:
    """Where the command, followed to the letter, would have brought the body: ahead and to the left, m, at most PLACE_SEEN."""
    return Block("place", lambda state: np.clip(state.place, -PLACE_SEEN, PLACE_SEEN), signs(1, -1))


GOALS: dict[str, Callable[[Sequence[str]], Block]] = {"one_hot": one_hot, "command": command, "place": place}
