"""Learning from datasets: the models' settings, a model on its numbers, one update after the other, its state out and in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor, nn
from torch.nn import functional

from flexrl.config import Settings, UserError, choice
from flexrl.dt import ACTION, BODY, GOAL, RETURN, TARGET, DecisionTransformer, Sizes
from flexrl.learner_settings import Schedule
from flexrl.parallel import Peers
from flexrl.randomness import pack_generator, random_state, set_random_state, unpack_generator
from flexrl.windows import Windows, WindowSampler, goal_sizes

GoalPart = Literal["skill", "command", "place", "words"]
Part = Literal[GoalPart, "return"]  # of what a transformer is prompted with
Share = Annotated[float, Field(ge=0, lt=1)]


class DTSettings(Settings):
    """A Decision Transformer."""

    kind: Literal["dt"] = "dt"
    # steps that it sees
    context: int = Field(20, ge=2, le=10_000)
    layers: int = Field(3, ge=1, le=100)
    heads: int = Field(1, ge=1, le=128)
    # numbers in a token
    width: int = Field(128, ge=1, le=16_384)
    dropout: float = Field(0.1, ge=0, le=0.99)
    # actions as one of so many bins each; null: as their mean
    bins: int | None = Field(None, ge=2, le=4096)
    # a token says what the episode has still to bring
    returns: bool = True
    # a token says what was done; without it nobody can copy what he did the step before
    actions: bool = True


class CloningSettings(Settings):
    """Behaviour cloning with an MLP: bc sees the body, gcbc the goal too."""

    kind: Literal["bc", "gcbc"] = "bc"
    hidden: list[Annotated[int, Field(ge=1, le=16_384)]] = Field([256, 256], min_length=1, max_length=20)
    dropout: float = Field(0.0, ge=0, le=0.99)


ModelSettings = choice("kind", {"dt": DTSettings, "bc": CloningSettings, "gcbc": CloningSettings}, default="dt")


class Cloner(nn.Module):
    """Body, and goal where there is one -> action; one step at a time."""

    def __init__(self, body: int, goal: int, action: int, settings: CloningSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = body + goal
        for width in settings.hidden:
            layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(settings.dropout)]
            size = width
        self.network = nn.Sequential(*layers, nn.Linear(size, action), nn.Tanh())
        self.has_goal = goal > 0

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Actions (..., size) in [-1, 1]."""
        parts = [inputs[BODY], inputs[GOAL]] if self.has_goal else [inputs[BODY]]
        answer: Tensor = self.network(torch.cat(parts, dim=-1))
        return answer

    def loss(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of actions in [-1, 1]."""
        return functional.mse_loss(self(inputs)[inputs["valid"]], inputs[TARGET][inputs["valid"]])


class Numbers:
    """Between a dataset's numbers and a model's: bodies normalised, actions in [-1, 1], returns-to-go round 1."""

    def __init__(self, mean: Any, std: Any, low: Any, high: Any, return_scale: float) -> None:
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.return_scale = float(return_scale)

    @classmethod
    def of(cls, sampler: WindowSampler) -> Numbers:
        """As the statistics of the sampler's datasets have it."""
        columns = sampler.info.columns_of(is_goal=False)
        counts = np.array([dataset.info.num_steps for dataset in sampler.datasets], float)
        means, stds = (
            np.array([np.array(dataset.stats["observation"][name])[columns] for dataset in sampler.datasets])
            for name in ("mean", "std")
        )
        mean = np.average(means, axis=0, weights=counts)
        std = np.sqrt(np.average(stds**2 + (means - mean) ** 2, axis=0, weights=counts))
        scale = max(float(np.abs(dataset.episodes.episode_return).max()) for dataset in sampler.datasets)
        return cls(mean, np.maximum(std, 1e-3), sampler.info.action_low, sampler.info.action_high, scale or 1.0)

    def body(self, body: NDArray[np.floating]) -> NDArray[np.float32]:
        """Of mean 0 and standard deviation 1 over the data, within +-10."""
        return np.clip((body - self.mean) / self.std, -10, 10).astype(np.float32)

    def to_model(self, action: NDArray[np.floating]) -> NDArray[np.float32]:
        """The action space as [-1, 1]."""
        return (2 * (action - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def from_model(self, action: NDArray[np.floating]) -> NDArray[np.float32]:
        """[-1, 1] as the action space."""
        return (self.low + (np.clip(action, -1, 1) + 1) / 2 * (self.high - self.low)).astype(np.float32)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """For a snapshot."""
        return {**vars(self), "return_scale": np.array([self.return_scale], np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Numbers:
        """What `arrays` wrote."""
        scale = float(arrays["return_scale"][0])
        return cls(arrays["mean"], arrays["std"], arrays["low"], arrays["high"], scale)


def prompt_parts(model: Any, goal: Sequence[GoalPart]) -> list[Part]:
    """What a model can be prompted with or without; nothing for one that is always shown all."""
    if not isinstance(model, DTSettings):
        return []
    parts: list[Part] = list(goal)
    return [*parts, "return"] if model.returns else parts


def first_skill(goal: Sequence[GoalPart], sizes: Sequence[int]) -> int:
    """Where the skill begins among the numbers of a goal whose parts have these sizes; 0 where it is no part."""
    return sum(sizes[: goal.index("skill")]) if "skill" in goal else 0


def make_model(settings: Any, sampler: WindowSampler, max_time: int | None = None) -> DecisionTransformer | Cloner:
    """The model that the settings name, of the sampler's sizes.

    `max_time`: steps of the longest episode that it tells apart; null: of the sampler's datasets.
    """
    if isinstance(settings, CloningSettings):
        goal = sampler.goal_size if settings.kind == "gcbc" else 0
        return Cloner(sampler.body_size, goal, sampler.info.action_size, settings)
    longest = max_time or max(int(dataset.episodes.length.max()) for dataset in sampler.datasets)
    return DecisionTransformer(sizes_of(settings, sampler.body_size, goal_sizes(sampler.info, sampler.goal), sampler, longest))


def sizes_of(settings: DTSettings, body: int, goal: list[int], sampler: WindowSampler, longest: int) -> Sizes:
    """The transformer's sizes."""
    return Sizes(
        body=body,
        goal=tuple(goal),
        action=sampler.info.action_size,
        has_return=settings.returns,
        context=settings.context,
        max_time=longest,
        layers=settings.layers,
        heads=settings.heads,
        width=settings.width,
        dropout=settings.dropout,
        bins=settings.bins or 0,
        has_action=settings.actions,
    )


class OfflineLearner:
    """Takes batches of windows and makes updates; its state is everything that the next update depends on."""

    def __init__(
        self,
        model: DecisionTransformer | Cloner,
        sampler: WindowSampler,
        numbers: Numbers,
        *,
        batch_size: int,
        accumulate: int,
        learning_rate: float | Schedule,
        num_updates: int,
        warmup: int,
        weight_decay: float,
        max_grad_norm: float,
        hide: Sequence[float],
        precision: str,
        compiled: bool,
        device: torch.device,
        seed: int,
        peers: Peers,
    ) -> None:
        self.model, self.sampler, self.numbers = model.to(device), sampler, numbers
        self.num_updates, self.device = 0, device
        self._batch_size, self._accumulate, self._warmup = batch_size, accumulate, warmup
        self._rate, self._total = FloatSchedule(learning_rate), num_updates
        self._max_grad_norm, self._hide = max_grad_norm, np.array(hide)
        self._seed, self._peers = seed, peers
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 3])))
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=self._rate(1.0), weight_decay=weight_decay, fused=True)
        self._half = precision == "bfloat16"
        self._loss: Callable[[Mapping[str, Tensor]], Tensor] = torch.compile(model.loss) if compiled else model.loss

    def to_inputs(self, windows: Windows) -> dict[str, Tensor]:
        """The model's inputs, on its device."""
        arrays = {
            BODY: self.numbers.body(windows.body) * windows.valid[..., None],
            GOAL: windows.goal,
            ACTION: self.numbers.to_model(windows.action) * windows.valid[..., None],
            TARGET: self.numbers.to_model(windows.target) * windows.valid[..., None],
            RETURN: windows.returns_to_go / np.float32(self.numbers.return_scale),
            "time": windows.time,
            "valid": windows.valid,
        }
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def improve(self) -> dict[str, float]:
        """One update; its metrics."""
        begin = time.perf_counter()
        self.model.train()
        if not self._peers.leads:  # whose randomness nobody keeps: it follows from the update's number
            luck = np.random.SeedSequence([self._seed, 3, self._peers.rank, self.num_updates])
            self._rng = np.random.Generator(np.random.PCG64(luck))
            torch.manual_seed(int(self._rng.integers(2**63)))
        rate = self._rate(1 - self.num_updates / self._total) * min(1.0, (self.num_updates + 1) / max(self._warmup, 1))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        total, waited, share = 0.0, 0.0, 0.0
        is_whole = self._accumulate == 1 and self._peers.size == 1
        for _ in range(self._accumulate):
            start = time.perf_counter()
            windows = self.sampler.draw(self._batch_size, self._rng)
            inputs = self.to_inputs(windows)
            if self._hide.any():
                inputs["given"] = self._hidden(len(inputs["time"]))
            waited += time.perf_counter() - start
            # a batch counts by its steps, as in one of the whole size: windows that an episode's end cuts have fewer
            weight = 1.0 if is_whole else float(windows.valid.mean()) / self._accumulate
            with self._autocast():
                loss = self._loss(inputs) * weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            share += weight
        if not is_whole:
            total /= share
            share = self._peers.mean(share)
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= share
        self._peers.average(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self._optimiser.step()
        self.num_updates += 1
        seconds = time.perf_counter() - begin
        count = self._batch_size * self._accumulate * self._peers.size
        tokens = count * self.sampler.length * self._tokens_a_step()
        return {
            "train/loss": total,
            "train/grad_norm": float(norm),
            "train/learning_rate": rate,
            "time/updates_per_second": 1 / seconds,
            "time/tokens_per_second": tokens / seconds,
            "time/data_share": waited / seconds,
        }

    def _tokens_a_step(self) -> int:
        return len(self.model.sizes.tokens) if isinstance(self.model, DecisionTransformer) else 1

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._half else contextlib.nullcontext()

    def _hidden(self, count: int) -> Tensor:
        """Which parts of the goal, and last the return, each window shows; at least one of them, where there are any."""
        parts = len(self._hide)
        given = self._rng.random((count, parts)) >= self._hide
        if parts > 1:
            none = ~given[:, :-1].any(axis=1)
            given[none, self._rng.integers(parts - 1, size=int(none.sum()))] = True
        shown = np.repeat(given[:, None], self.sampler.length, axis=1)
        return torch.from_numpy(shown).to(self.device)

    @torch.no_grad()
    def loss_on(self, batches: Iterator[Windows]) -> float:
        """Mean loss over batches of windows, everything shown, without dropout."""
        self.model.eval()
        return float(np.mean([float(self.model.loss(self.to_inputs(windows))) for windows in batches]))

    def get_state(self) -> dict[str, Any]:
        """Everything, as a tree of plain values and arrays."""
        slots = self._optimiser.state_dict()["state"]
        return {
            "num_updates": self.num_updates,
            "num_processes": self._peers.size,
            "rng": pack_generator(self._rng),
            "random": random_state(),
            "model": {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.model.state_dict().items()},
            "optimiser": {str(i): {k: v.cpu().numpy().copy() for k, v in slot.items()} for i, slot in slots.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `get_state` was taken; UserError if another number of processes was at it."""
        num_processes = int(state.get("num_processes", 1))
        if num_processes != self._peers.size:
            how = f"as torchrun starts {num_processes} in all" if num_processes > 1 else "as python train_dt.py ... --resume"
            raise UserError(
                f"it was trained by {num_processes} process(es), not {self._peers.size}, "
                f"and goes on exactly with as many alone: {how}"
            )
        self.num_updates = int(state["num_updates"])
        unpack_generator(self._rng, state["rng"])
        set_random_state(state["random"])
        self.model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state["model"].items()})
        whole = self._optimiser.state_dict()
        slots = state["optimiser"]
        whole["state"] = {int(i): {k: torch.from_numpy(v.copy()) for k, v in slot.items()} for i, slot in slots.items()}
        self._optimiser.load_state_dict(whole)


def describe_model(model: DecisionTransformer | Cloner) -> dict[str, Any]:
    """What a snapshot must say to make the model again."""
    return asdict(model.sizes) if isinstance(model, DecisionTransformer) else {}
