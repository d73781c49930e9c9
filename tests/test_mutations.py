"""The example YAMLs, damaged 300 times at random: always two steps that work, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexrl import config
from flexrl.config import UserError
from flexrl.learners import make_learner
from flexrl.training import TrainSettings, rehearse
from flexrl.worlds import evaluation_settings, make_world, normalise

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))
EXAMPLES = [path for path in EXAMPLES if "# python train.py" in path.read_text(encoding="utf-8")]
VALUES = [
    *("yes", "no", "null", "''", "3e-4", "1e400", "-1", "0", "0.5", "1", "2", "64", "1_000", "010", "12:30", "nan", ".inf"),
    *("text", "[1, 2]", "{a: 1}", "{}", "[]", "humanoid", "half_cheetah", "v5", "ppo", "sac", "MirroredPolicy", "tanh"),
    *("'", '"', "&a", "*a", "!!python/name:os.system", "2024-01-01", "9" * 40, "../x", "{start: 1, end: 0}", "{start: x}"),
]
KEYS = ["num_steps", "seed", "world", "learner", "base", "task", "body", "policy_kwargs", "unknown", "evaluation", "1", "- x"]


def mutate(text: str, rng: random.Random) -> str:
    """One damage of the kinds that hands and editors make."""
    lines = text.splitlines()
    i = rng.randrange(len(lines))
    key, colon, _ = lines[i].partition(":")
    kind = rng.randrange(9)
    if kind <= 2 and colon:
        lines[i] = f"{key}: {rng.choice(VALUES)}"
    elif kind == 3 and colon:
        lines[i] = lines[i].replace(key.strip(), rng.choice(KEYS), 1)
    elif kind == 4:
        del lines[i]
    elif kind == 5:
        lines.insert(i, lines[i])
    elif kind == 6:
        lines[i] = rng.choice(["  ", "\t", " "]) + lines[i]
    elif kind == 7 and lines[i]:
        j = rng.randrange(len(lines[i]))
        lines[i] = lines[i][:j] + chr(rng.choice([*range(32, 127), 0, 9, 0x2028, 0xE9])) + lines[i][j + rng.randrange(2) :]
    else:
        lines.insert(i, f"{rng.choice(KEYS)}: {rng.choice(VALUES)}")
    return "\n".join(lines) + "\n"


def two_steps(chosen: TrainSettings) -> None:
    """A learner of these settings collects two steps of two simulations of its world, and learns from them."""
    world = normalise(make_world(evaluation_settings(chosen.world, 2)), chosen.normalize_observations, True, 0.99)
    off_policy = hasattr(chosen.learner, "buffer_size")
    small: dict[str, Any] = {"buffer_size": 100, "learning_starts": 0} if off_policy else {"n_steps": 2}
    small |= {"batch_size": 4} if hasattr(chosen.learner, "batch_size") else {}
    small |= {"chunk_length": 2} if hasattr(chosen.learner, "chunk_length") else {}
    with contextlib.closing(world):
        learner = make_learner(chosen.learner.model_copy(update=small), world, num_steps=4, seed=0, device="cpu")
        while learner.num_steps < 4:
            assert all(np.isfinite(value) for value in learner.improve().values())
        assert all(np.isfinite(array).all() for array in learner.policy_arrays().values())


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(EXAMPLES), seed=st.integers(0, 2**32), times=st.integers(1, 3))
def test_damaged_examples_work_or_are_refused_in_one_line(path: Path, seed: int, times: int) -> None:
    rng, text = random.Random(seed), path.read_text(encoding="utf-8")
    for _ in range(times):
        text = mutate(text, rng)
    with tempfile.TemporaryDirectory() as folder:
        for example in EXAMPLES:  # so that `base:` is found
            (Path(folder) / example.name).write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
        damaged = Path(folder) / path.name
        damaged.write_text(text, encoding="utf-8")
        try:
            chosen = config.load(TrainSettings, damaged)
            rehearse(chosen, False)
        except UserError as error:
            message = str(error)
            assert "\n" not in message
            assert message.startswith((folder, "world: ", "learner: ", "device: ", "normalize_observations: ")), message
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            two_steps(chosen)
