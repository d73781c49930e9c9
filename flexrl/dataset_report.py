"""What is in a dataset: counts by skill and policy, returns as histograms, a few episodes as rows of frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flexrl import render
from flexrl.config import UserError
from flexrl.dataset import Dataset, EpisodeTable
from flexrl.motor_settings import MotorSettings
from flexrl.physics import BODIES, Array, load_model
from flexrl.plots import COLOURS
from flexrl.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 8  # episodes on a contact sheet
SHOWN = 1.2  # s of each


@dataclass(frozen=True)
class Group:
    """The episodes of one skill and one policy."""

    skill: str
    policy: str
    num_episodes: int
    num_steps: int
    mean_return: float
    std_return: float
    mean_length: float
    success: float | None  # share of those that can be judged; null if none can
    fallen: float | None  # share of those that were not cut; null if all were
    noise: tuple[float, float]  # least and most


def skill_names(dataset: Dataset) -> list[str]:
    """What each episode was for at its end, (num_episodes,)."""
    skills = dataset.info.skills
    return [skills[skill] if skill >= 0 and skills else "-" for skill in dataset.episodes.skill]


def policy_names(dataset: Dataset) -> list[str]:
    """What acted in each episode, in the fewest words that tell them apart, (num_episodes,)."""
    paths = [policy.path for policy in dataset.info.policies]
    for parts in range(1, 10):
        names = ["/".join(path.split("/")[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    if len(set(names)) < len(names):  # one snapshot that acts in several ways
        names = [f"{name} #{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return [names[policy] for policy in dataset.episodes.policy]


def groups_of(dataset: Dataset) -> list[Group]:
    """One for each skill and policy that there are episodes of, in the dataset's order."""
    table = dataset.episodes
    keys = list(zip(skill_names(dataset), policy_names(dataset), strict=True))
    skills = {skill: i for i, skill in enumerate(dataset.info.skills)}
    policies = {name: int(policy) for (_, name), policy in zip(keys, table.policy, strict=True)}
    order = {key: i for i, key in enumerate(sorted(set(keys), key=lambda key: (skills.get(key[0], 0), policies[key[1]])))}
    index = np.array([order[key] for key in keys])
    return [_group(*key, table.select(index == i)) for key, i in order.items()]


def _group(skill: str, policy: str, table: EpisodeTable) -> Group:
    judged, whole = table.success[np.isfinite(table.success)], ~table.cut
    return Group(
        skill=skill,
        policy=policy,
        num_episodes=len(table),
        num_steps=int(table.length.sum()),
        mean_return=float(table.episode_return.mean()),
        std_return=float(table.episode_return.std()),
        mean_length=float(table.length.mean()),
        success=float(judged.mean()) if len(judged) else None,
        fallen=float(table.terminated[whole].mean()) if whole.any() else None,
        noise=(float(table.noise.min()), float(table.noise.max())),
    )


def draw_histograms(dataset: Dataset, path: Path) -> None:
    """Returns by skill, that of the end where it changes, a colour a policy, as a PNG (or SVG, PDF).

    UserError if it cannot be written.
    """
    # imported here because the tables need none of it, and it takes half a second
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    skills, policies = np.array(skill_names(dataset)), np.array(policy_names(dataset))
    shown = [skill for skill in (*dataset.info.skills, "-") if skill in skills]
    names = list(dict.fromkeys(policies.tolist()))
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows + 0.6), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    for number, skill in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        parts = [dataset.episodes.episode_return[(skills == skill) & (policies == name)] for name in names]
        changed = (dataset.episodes.num_switches[skills == skill] > 0).any()  # a return is of a whole episode
        title = f"{skill} at the end" if changed else skill
        _histogram(axes, title if skill != "-" else str(dataset.info.world.get("id", "")), parts)
        if number % columns == 0:
            axes.set_ylabel("episodes")
    if len(names) > 1:
        handles = [_patch(COLOURS[i % len(COLOURS)], name) for i, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(names)), frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from None


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label, alpha=0.8)


def _histogram(axes: Axes, title: str, parts: list[Array]) -> None:
    from matplotlib.ticker import MaxNLocator

    every = np.concatenate(parts)
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1.0, 31)
    axes.hist(
        parts,
        [float(edge) for edge in edges],
        stacked=True,
        color=[COLOURS[i % len(COLOURS)] for i in range(len(parts))],
        alpha=0.8,
    )
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("return", fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, position: short(value))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def draw_episodes(dataset: Dataset, path: Path) -> None:
    """Of an episode of each skill a second and a bit, as rows of frames, from the recorded states.

    UserError for a dataset without states; RenderError if this machine cannot draw.
    """
    info = dataset.info
    if info.body is None or info.state_size == 0 or info.seconds_per_step is None:
        raise UserError(f"{dataset.folder}: its world has no bodies to draw")
    body = BODIES[info.body]
    world = MotorSettings.model_validate(info.world)
    model = load_model(body, world.physics, world.action == "servo")
    num = max(2, round(SHOWN / info.seconds_per_step))
    names = np.array(skill_names(dataset))
    first = np.array([int(dataset.episode(i, ["skill"])["skill"][0]) for i in range(len(names))])
    rows: dict[str, list[Array]] = {}
    for index, name in enumerate(info.skills):
        # of one that gets up its rise from the ground, of the others their end
        rises = name == "recover"
        mine = np.flatnonzero(first == index if rises and (first == index).any() else names == name)
        if len(mine) and len(rows) < ROWS:
            states = dataset.episode(int(mine[np.argmax(dataset.episodes.length[mine])]), ["state"])["state"]
            rows[name] = [np.array(state[1 : 1 + model.nq]) for state in (states[: 2 * num] if rises else states[-num:])]
    render.contact_sheet(path, model, rows, info.seconds_per_step, columns=8, size=(180, 180))
