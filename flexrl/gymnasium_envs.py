"""The motor worlds as registered Gymnasium environments; importing this module registers them.

import gymnasium, flexrl.gymnasium_envs
env = gymnasium.make("flexrl/Humanoid-v0", task="walk_forward", physics="v5")
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from flexrl import render
from flexrl.motor_batch import MotorBatch
from flexrl.motor_settings import MotorSettings


class MotorEnv(gymnasium.Env):
    """One simulation of a `MotorBatch`: the code that trains is the code that is stepped here.

    Keyword arguments are those of `MotorSettings` (task, physics, observation, action, tasks). `info` carries each reward
    term as `reward/<term>`, the present `skill` and `command` (3,) (m/s forward, m/s leftward, rad/s), whether skill or command
    changed with this step (`goal_changed`), a `switch` of the skill (motor_batch.Switch), and whether the physics `diverged`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 67}  # the humanoid's control step is 15 ms

    def __init__(self, body: str, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected rgb_array or None, found {render_mode!r}")
        for key in {"num_envs", "num_threads"} & set(settings):
            raise ValueError(f"{key}: a Gymnasium environment is one simulation on one thread; leave it away")
        self.render_mode = render_mode
        self.batch = MotorBatch(MotorSettings(body=body, num_envs=1, num_threads=1, **settings))  # type: ignore[arg-type]
        self.observation_space, self.action_space = self.batch.observation_space, self.batch.action_space
        self.metadata = {**self.metadata, "render_fps": round(1 / self.batch.physics.dt)}
        self._stage: render.Stage | None = None
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.floating], dict[str, Any]]:
        """Start an episode; `seed` makes its start the one that the v5 env of that seed has.

        Where bodies begin lying each new seed drops a bank of postures anew, which takes seconds: give one seed, then none.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed(seed)
        elif not self._seeded:
            self.batch.seed(int(self.np_random.integers(2**31)))
        self._seeded = True
        return self.batch.reset(np.arange(1))[0], self._asked()

    def _asked(self) -> dict[str, Any]:
        """What is asked for at present."""
        asked = self.batch.asked
        return {"skill": self.batch.skills[asked.skill[0]], "command": asked.command[0].copy()}

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.floating], float, bool, bool, dict[str, Any]]:
        """One control step with `action` (num_motors,)."""
        result = self.batch.step(np.asarray(action)[None])
        terms = zip(self.batch.term_names, result.terms[:, 0], strict=True)
        info: dict[str, Any] = {f"reward/{name}": float(value) for name, value in terms}
        info |= {**self._asked(), "goal_changed": 0 in result.unchanged}
        info["diverged"] = bool(result.diverged[0])
        if 0 in result.switches:
            info["switch"] = result.switches[0]
        ended = bool(result.terminated[0]), bool(result.truncated[0])
        if any(ended):
            self.batch.ended(0, bool(self.batch.success(result.terminated)[0]))
        return result.obs[0], float(result.reward[0]), ended[0], ended[1], info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The body from the side, (360, 480, 3); RenderError if this machine cannot draw."""
        if self.render_mode is None:
            return None
        if self._stage is None:
            self._stage = render.Stage(self.batch.physics.model)
        return self._stage.frame(self.batch.physics.qpos[0], self.batch.physics.dt)

    def close(self) -> None:
        """Frees the renderer."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None


SKILLS = {"task": "mixed", "sampling": "weighted", "goal": ["one_hot", "command"]}

# The batch truncates by itself (a task's max_steps), so Gymnasium's time limit is left away.
gymnasium.register("flexrl/Humanoid-v0", entry_point=MotorEnv, kwargs={"body": "humanoid"})
gymnasium.register("flexrl/HumanoidSkills-v0", entry_point=MotorEnv, kwargs={"body": "humanoid", **SKILLS})
gymnasium.register("flexrl/HalfCheetahSkills-v0", entry_point=MotorEnv, kwargs={"body": "half_cheetah", **SKILLS})
gymnasium.register("flexrl/HalfCheetah-v0", entry_point=MotorEnv, kwargs={"body": "half_cheetah", "task": "v5"})
