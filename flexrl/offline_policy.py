"""A model that learned from a dataset, as a policy that acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flexrl.dt import BODY, GOAL, RETURN, Context, DecisionTransformer
from flexrl.offline import Cloner, Numbers


class ClonedPolicy:
    """Behaviour cloning: what was done where the body, and the goal, were like this."""

    def __init__(self, model: Cloner, numbers: Numbers, body: NDArray[np.intp], goal: NDArray[np.intp]) -> None:
        self._model, self._numbers, self._body, self._goal = model.eval(), numbers, body, goal

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Nothing is remembered."""

    @torch.no_grad()
    def act(self, obs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Actions (num_envs, action_dim)."""
        inputs = {BODY: self._numbers.body(obs[:, self._body]), GOAL: obs[:, self._goal].astype(np.float32)}
        device = next(self._model.parameters()).device
        answer = self._model({name: torch.from_numpy(array).to(device) for name, array in inputs.items()})
        return self._numbers.from_model(answer.cpu().numpy())

    def feedback(self, action: NDArray[Any], reward: NDArray[np.floating]) -> None:
        """Nothing is remembered."""

    def get_state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


class TransformerPolicy:
    """A Decision Transformer over the last steps of each simulation.

    `targets`: the return that an episode is to bring, by the index of its first skill (the last entry: where there is none),
    whose numbers begin at `first_skill` of the goal.
    `shown`: which parts of the goal it is shown, and last whether the return; null: all.
    """

    def __init__(
        self,
        model: DecisionTransformer,
        numbers: Numbers,
        body: NDArray[np.intp],
        goal: NDArray[np.intp],
        targets: Sequence[float],
        first_skill: int = 0,
        shown: Sequence[bool] | None = None,
    ) -> None:
        self._shown = None if shown is None or all(shown) else np.array(shown)
        self._model, self._numbers, self._body, self._goal = model.eval(), numbers, body, goal
        self._device = next(model.parameters()).device
        self._targets = np.asarray(targets, np.float32)
        self._skill = slice(first_skill, first_skill + len(targets) - 1)
        self._context: Context | None = None
        self._to_go = np.zeros(0, np.float32)
        self._time = np.zeros(0, np.int64)
        self._begins = np.ones(0, bool)

    @property
    def counts_rewards(self) -> bool:
        """Whether it sees what is left of the return that it is asked for."""
        return self._model.sizes.has_return

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Episodes begin where `mask` (num_envs,) is true: what was before is not seen any more."""
        if len(self._time) != len(mask):
            self._context = Context(self._model, len(mask))
            self._to_go, self._time = np.zeros(len(mask), np.float32), np.zeros(len(mask), np.int64)
            self._begins = np.ones(len(mask), bool)
        assert self._context is not None
        self._context.begin(self._tensor(np.asarray(mask, bool)))
        self._begins |= mask
        self._time[mask] = 0

    def act(self, obs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Actions (num_envs, action_dim)."""
        if len(self._time) != len(obs):
            self.reset(np.ones(len(obs), bool))
        assert self._context is not None
        goal = obs[:, self._goal].astype(np.float32)
        if self._begins.any():
            self._to_go[self._begins] = self._first_target(goal[self._begins])
            self._begins[:] = False
        arrays = {
            BODY: self._numbers.body(obs[:, self._body]),
            GOAL: goal,
            RETURN: self._to_go / np.float32(self._numbers.return_scale),
            "time": self._time,
        }
        if self._shown is not None:
            arrays["given"] = np.tile(self._shown, (len(obs), 1))
        answer = self._context.act({name: self._tensor(array)[:, None] for name, array in arrays.items()})
        action = self._numbers.from_model(answer.cpu().numpy())
        self._context.took(self._tensor(self._numbers.to_model(action)))
        self._time += 1
        return action

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array.copy()).to(self._device)

    def _first_target(self, goal: NDArray[np.float32]) -> NDArray[np.float32]:
        """The return asked of episodes that begin with these goals (n, goal_dim)."""
        skills = goal[:, self._skill]
        return np.asarray(self._targets[skills.argmax(axis=1)] if skills.shape[1] else np.full(len(goal), self._targets[-1]))

    def feedback(self, action: NDArray[Any], reward: NDArray[np.floating]) -> None:
        """What was really done in the last step (num_envs, action_dim), and what it brought (num_envs,)."""
        assert self._context is not None
        self._context.took(self._tensor(self._numbers.to_model(np.asarray(action))))
        self._to_go -= reward.astype(np.float32)

    def get_state(self) -> dict[str, Any]:
        """What has been seen."""
        context = {} if self._context is None else self._context.get_state()
        return {"context": context, "to_go": self._to_go.copy(), "time": self._time.copy(), "begins": self._begins.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Sees that again."""
        self._to_go, self._time = state["to_go"].copy(), state["time"].copy()
        self._begins = state["begins"].astype(bool)
        self._context = Context(self._model, len(self._time))
        if state["context"]:
            self._context.set_state(state["context"])
