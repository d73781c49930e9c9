"""What of its goal a policy sees, as blocks of its observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flexrl.observations import Block, Mirror, signs


def one_hot(skills: Sequence[str]) -> Block:
    """1 for the present skill, 0 for the others; in a mirror left and right skills change places."""
    twins = [name.replace("_left", "\0").replace("_right", "_left").replace("\0", "_right") for name in skills]
    source = np.array([skills.index(twin) if twin in skills else i for i, twin in enumerate(twins)])
    rows = np.eye(len(skills))
    return Block("one_hot", lambda state: rows[state.skill], Mirror(source, np.ones(len(skills), np.float32)))


def command(skills: Sequence[str]) -> Block:
    """Asked forward and leftward speed (m/s) and yaw rate (rad/s)."""
    return Block("command", lambda state: state.command, signs(1, -1, -1))


GOALS: dict[str, Callable[[Sequence[str]], Block]] = {"one_hot": one_hot, "command": command}
