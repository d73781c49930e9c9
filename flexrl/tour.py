"""A policy for many skills, going through them one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexrl import render
from flexrl.motor_batch import MotorBatch
from flexrl.motor_settings import MotorSettings
from flexrl.motor_world import MotorWorld
from flexrl.offline_policy import TransformerPolicy
from flexrl.physics import Array
from flexrl.policies import Policy
from flexrl.randomness import forked_randomness
from flexrl.worlds import only_skill

SECONDS = 4.0  # of each skill
SHOWN = 1.2  # s of each skill on a contact sheet
SHOWS = 0.8  # of a command that is drawn: m/s and rad/s at least, as one vector, so that there is something to be seen


@dataclass
class Tour:
    """Postures (nq,), one a control step, by the words of the skill that was asked for."""

    world: MotorWorld
    parts: dict[str, list[Array]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """A video with the words in its corner, or a row of frames a skill if `path` is a .png; RenderError, UserError."""
        physics = self.world.batch.physics
        if path.suffix.lower() == ".png":
            steps = round(SHOWN / physics.dt)
            # of one that gets up its rise, of the others their end
            rising = {task.words.name for task in self.world.batch.tasks if task.name == "recover"}
            shown = {words: states[: 2 * steps] if words in rising else states[-steps:] for words, states in self.parts.items()}
            render.contact_sheet(path, physics.model, shown, physics.dt, columns=8, size=(180, 180))
            return
        states = [state for part in self.parts.values() for state in part]
        words = [words for words, part in self.parts.items() for _ in part]
        render.write_video(path, physics.model, states, physics.dt, caption=lambda number: words[number])


def go_through_skills(policy: Policy, settings: MotorSettings, seed: int) -> Tour:
    """One episode of a mixed world, SECONDS a skill; getting up comes last, from the ground."""
    settings = settings.model_copy(update={"num_envs": 1})
    tour = Tour(MotorWorld(settings))
    # not those that the data of an offline policy never showed
    skills = [name for name in tour.world.batch.skills if settings.skills.get(name, 1.0) > 0]  # type: ignore[call-overload]
    with forked_randomness(seed):
        for group in ([name for name in skills if name != "recover"], [name for name in skills if name == "recover"]):
            if group:
                _go_through(policy, MotorWorld(only_skill(settings, group[0]), seed), group, tour)
    return tour


def _go_through(policy: Policy, world: MotorWorld, skills: list[str], tour: Tour) -> None:
    batch = world.batch
    obs = world.reset()
    policy.reset(np.ones(1, bool))
    for name in skills:
        if name != skills[0]:
            obs = _ask_for(batch, name)
            if isinstance(policy, TransformerPolicy) and policy.counts_rewards:
                policy.reset(np.ones(1, bool))  # the return that it is asked for is one skill's
        words = batch.tasks[batch.asked.skill[0]].words.name
        tour.parts[words] = [batch.physics.qpos[0].copy()]
        for _ in range(round(SECONDS / batch.physics.dt)):
            batch.asked.max_steps[:] = np.iinfo(np.int64).max  # only a fall ends the episode
            action = policy.act(obs)
            obs, reward, done, _ = world.step(action)
            policy.feedback(action, reward)
            policy.reset(done)
            if done[0]:
                obs = _ask_for(batch, name)
            tour.parts[words].append(batch.physics.qpos[0].copy())


def _ask_for(batch: MotorBatch, name: str) -> NDArray[np.floating]:
    """Goes on with that skill; returns what is observed then, (1, obs_dim)."""
    batch.begin_skill(0, batch.skills.index(name))
    if batch.tasks[batch.skills.index(name)].command.every is not None:
        for _ in range(100):  # whose ranges may hold no such thing
            if np.linalg.norm(batch.asked.command[0]) >= SHOWS:
                break
            batch.asked.draw_command(0, batch.rngs[0], 0.0)
        batch.asked.command_ends[0] = np.inf
    return batch.observe(batch.previous_action)
