"""Watch, measure, record or export any policy.

python play.py --model workspace/humanoid/best
python play.py --model workspace/humanoid/best --video walk.mp4
python play.py --model random --config examples/humanoid_walk_forward.yaml --episodes 3

As a run that is kept, with settings in YAML as every other (see --name evaluation_1 --help):

python play.py --name evaluation_1 --config examples/play_skills.yaml --set physics=fast
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flexrl import command_line, config, playing, render, snapshots, viewer
from flexrl.config import UserError
from flexrl.evaluation import Episode, Trail, check_trail, run_episodes, summarise
from flexrl.motor_settings import MAX_LETTERS
from flexrl.motor_world import MotorWorld
from flexrl.playing import PlaySettings
from flexrl.policies import WITHOUT_SNAPSHOT, PlayedSettings, Policy, Snapshot, export_sb3
from flexrl.tasks import TASKS
from flexrl.tour import go_through_skills

AS_A_RUN = ("--name", "--check", "--resume", "--set")  # options of an evaluation that is kept
MAX_EPISODES = 10_000
MAX_COLUMNS = 20  # episodes
LIKE = 0.45  # of a sentence and the words that it is taken for: of held-out phrases that are understood all are closer
# the settings of an evaluation that are called otherwise here
OPTIONS = {"world": "--config", "num_episodes": "--episodes"}


def read_arguments() -> argparse.Namespace:
    parser = command_line.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="a snapshot's folder, such as workspace/humanoid/best; or random, or zero"
    )
    parser.add_argument("--config", type=Path, help="the world for random and zero (default: the humanoid's walk)")
    parser.add_argument("--episodes", type=int, default=10, help="how many, side by side (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="the first episode's seed (default: 0)")
    parser.add_argument("--physics", choices=("v5", "fast"), default="v5", help="the humanoid's dynamics (default: v5)")
    parser.add_argument(
        "--task", choices=sorted({task.name for task in TASKS}), help="count this task's reward instead, such as v5"
    )
    parser.add_argument(
        *("--skill", "--goal"), help="only this skill of a policy that has several (default: all, one after the other)"
    )
    parser.add_argument(
        "--words",
        help="a sentence for a policy that reads words, such as 'go straight ahead'; played at --skill, or at the skill whose "
        "own words are closest",
    )
    parser.add_argument(
        "--target-return",
        default="auto",
        help="the return that a Decision Transformer is asked for: a number, or auto (a high one of its data)",
    )
    parser.add_argument(
        "--prompt",
        help="the parts of its goal that a Decision Transformer is shown, such as words,command "
        "(default: all, or with --words all but the skill)",
    )
    parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the likeliest")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    parser.add_argument(
        "--video",
        type=Path,
        help="record the first episode to this .mp4 or .gif, or a second of it as a row of frames to this .png; of a policy "
        "that has several skills, all of them one after the other",
    )
    parser.add_argument("--viewer", choices=("web", "window"), help="watch the first episode live")
    parser.add_argument("--port", type=int, default=0, help="the web viewer's port (default: the first free one)")
    parser.add_argument("--public", action="store_true", help="let other machines see the web viewer (it has no password)")
    parser.add_argument("--export-sb3", type=Path, metavar="ZIP", help="write the policy as a Stable-Baselines3 zip, and end")
    arguments = parser.parse_args()
    if not 1 <= arguments.episodes <= MAX_EPISODES:
        raise UserError(f"--episodes {arguments.episodes}: expected a number from 1 to {MAX_EPISODES:,}")
    if not 0 <= arguments.seed <= 2**31:
        raise UserError(f"--seed {arguments.seed}: expected a number from 0 to 2147483648")
    if arguments.words is not None and not (arguments.words.strip() and len(arguments.words) <= MAX_LETTERS):
        raise UserError(f"--words: expected a sentence of at most {MAX_LETTERS} letters")
    if arguments.viewer and (arguments.video or arguments.json):
        raise UserError("--viewer: shows episodes without end; leave --video and --json away")
    return arguments


def main() -> None:
    if any(argument.partition("=")[0] in AS_A_RUN for argument in sys.argv[1:]):
        evaluate()
        return
    arguments = read_arguments()
    if arguments.export_sb3 is not None:
        export(playing.open_model(arguments.model), arguments.export_sb3)
        return
    with named_as_options(), playing.opened(settings_of(arguments)) as (policy, world):
        if arguments.words and not arguments.skill:
            say_what_was_understood(arguments.words, world)
        if arguments.viewer:
            watch(policy, world, arguments)
            return
        trail, skills = None, playing.skills_played(world)
        if arguments.video:
            check_trail(arguments.video)
            trail = None if len(skills) > 1 else Trail(world)
        episodes = run_episodes(policy, world, arguments.seed, trail)
        if arguments.json:
            print(playing.files_of(episodes)["episodes.json"].decode())
        else:
            print_table(episodes)
            say_what_is_missing(skills, episodes)
        if arguments.video:
            record(trail, policy, world, episodes[0], arguments)


@contextlib.contextmanager
def named_as_options() -> Iterator[None]:
    """Names settings in errors as the options that they were given by: `task: ...` becomes `--task: ...`."""
    try:
        yield
    except UserError as error:
        where, colon, rest = str(error).partition(":")
        names = [name.partition(" ") for name in where.split(", ")]  # such as `skill dance`
        if not all(name in PlaySettings.model_fields for name, _, _ in names):
            raise
        given = {argument.partition("=")[0] for argument in sys.argv}
        called = OPTIONS | ({"skill": "--goal"} if "--goal" in given else {})
        options = [called.get(name, f"--{name.replace('_', '-')}") + space + value for name, space, value in names]
        raise UserError(", ".join(options) + colon + rest) from None


def settings_of(arguments: argparse.Namespace) -> PlaySettings:
    """What the command line asks for, as an evaluation's settings."""
    world = None if arguments.config is None else config.load(PlayedSettings, arguments.config).world
    prompt = None if arguments.prompt is None else [part.strip() for part in arguments.prompt.split(",")]
    return PlaySettings(
        model=arguments.model,
        world=world,
        num_episodes=arguments.episodes,
        seed=arguments.seed,
        physics=arguments.physics,
        task=arguments.task,
        skill=arguments.skill,
        words=arguments.words,
        target_return=read_target(arguments.target_return),
        prompt=prompt,
        stochastic=arguments.stochastic,
    )


def evaluate() -> None:
    """An evaluation as a run: its settings from YAML, its episodes and their means in the workspace."""
    settings, run = command_line.begin(PlaySettings, __doc__, playing.rehearse)
    if not snapshots.exists(run.latest) and settings.model not in WITHOUT_SNAPSHOT:
        run.add_parent(settings.model, Path(settings.model))
    with run:
        if snapshots.exists(run.latest):
            run.resumed_from(settings.num_episodes)
            print(f"{run.folder} is finished", file=sys.stderr)
        else:
            episodes, metrics = playing.judge(settings)
            run.confirm_parents()
            run.log(settings.num_episodes, metrics)
            run.remember(settings.num_episodes, lambda: playing.files_of(episodes))
            print_table(episodes)


def say_what_was_understood(words: str, world: MotorWorld) -> None:
    """Names, on stderr, the skill that a sentence is played at."""
    found = playing.understand(words, world.batch.settings)
    guess = "" if found.likeness >= LIKE else ", which is a guess"
    print(f"{words!r}: {found.skill}{guess} (its closest words: {found.phrase!r}, {found.likeness:.2f} of 1)", file=sys.stderr)


def say_what_is_missing(skills: list[str], episodes: list[Episode]) -> None:
    """Names, on stderr, the skills that too few episodes left out."""
    shown = {episode.skill for episode in episodes}
    missing = [skill for skill in skills if skill not in shown]
    if len(skills) > 1 and missing:
        print(f"not played: {', '.join(missing)}; --episodes {len(skills)} plays each once", file=sys.stderr)


def read_target(text: str) -> float | None:
    """The number, null for auto; UserError for anything else."""
    try:
        target = None if text == "auto" else float(text)
    except ValueError:
        target = math.nan
    if target is not None and not math.isfinite(target):
        raise UserError(f"--target-return {text}: expected a number, such as 5000, or auto")
    return target


def export(snapshot: Snapshot | None, path: Path) -> None:
    """Writes the SB3 zip and says what was written."""
    if snapshot is None:
        raise UserError("--export-sb3: only a snapshot can be exported; name one with --model")
    for file in export_sb3(snapshot, path):
        print(f"wrote {file}")


def record(trail: Trail | None, policy: Policy, world: Any, episode: Episode, arguments: argparse.Namespace) -> None:
    """The first episode as a video; without a trail, a tour of all skills."""
    path = arguments.video
    print(f"drawing {path} ...", file=sys.stderr)
    try:
        if trail is None:
            go_through_skills(policy, world.batch.settings, arguments.seed).write(path)
        else:
            trail.write(path, episode.length)
    except (render.RenderError, OSError) as error:
        raise UserError(f"--video {path}: {error}") from None
    print(f"wrote {path}", file=sys.stderr)


def watch(policy: Policy, world: Any, arguments: argparse.Namespace) -> None:
    """Episodes of the first simulation, live, until the viewer is closed."""
    physics = Trail(world).physics
    if arguments.viewer == "window":
        viewer.window(physics.model, play_forever(policy, world), physics.dt)
        return
    viewer.web(
        physics.model,
        play_forever(policy, world),
        physics.dt,
        port=arguments.port,
        public=arguments.public,
        ready=lambda url: print(f"watch it at {url} (Ctrl-C ends)", file=sys.stderr),
    )


def play_forever(policy: Policy, world: MotorWorld) -> Any:
    """Postures (nq,) of the first simulation, one a control step, without end."""
    obs = world.reset()
    while True:
        yield world.batch.physics.qpos[0].copy()
        action = policy.act(obs)
        obs, reward, done, _ = world.step(action)
        policy.feedback(action, reward)
        policy.reset(done)


def print_table(episodes: list[Episode]) -> None:
    """A column an episode (a row, if they do not fit), then means with 95 % intervals; reward terms a step."""
    summary = summarise(episodes)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    several = len({e.skill for e in episodes}) > 1
    width = 2 + max([6, *(len(str(e.skill)) for e in episodes if several)])
    upright = len(episodes) <= MAX_COLUMNS and 24 + width * len(episodes) <= console.width
    rows: dict[str, list[str]] = {
        "seed": [str(e.seed) for e in episodes],
        "return": [f"{e.episode_return:,.0f}" for e in episodes],
        "length": [str(e.length) for e in episodes],
        "ended by": [("end" if e.skill is None else "fall") if e.terminated else "time" for e in episodes],
    }
    if several:
        rows["skill"] = [str(e.skill) for e in episodes]
    if any(e.success is not None for e in episodes):
        rows["success"] = [{True: "yes", False: "no", None: ""}[e.success] for e in episodes]
    if "mean_speed" in summary:
        rows["speed (m/s)"] = [f"{e.mean_speed:z.2f}" for e in episodes]
    if upright and not several:
        for name in episodes[0].rewards:
            rows[f"{name} / step"] = [f"{e.rewards[name] / e.length:z.2f}" for e in episodes]
    table = Table(box=None, show_header=False, pad_edge=False)
    lines = rows.items() if upright else zip(*([name, *cells] for name, cells in rows.items()), strict=True)
    for line in lines:
        table.add_row(*([line[0], *line[1]] if isinstance(line[1], list) else line))
    for column in table.columns[1 if upright else 0 :]:
        column.justify = "right"
    console.print(table)
    for name, digits in (("return", 0), ("length", 0), ("mean_speed", 2)):
        if name in summary:
            mean, (low, high) = summary[name]["mean"], summary[name]["interval"]
            unit = " m/s" if name == "mean_speed" else ""
            label = name.removeprefix("mean_")
            print(f"mean {label} {mean:z,.{digits}f}{unit}  (95 % interval {low:,.{digits}f} to {high:,.{digits}f})")
    for name in [name for name in summary if name.startswith("success")]:
        mean, (low, high) = summary[name]["mean"], summary[name]["interval"]
        print(f"{name.replace('/', ' of ')}: {mean:.0%}  (95 % interval {low:.0%} to {high:.0%})")
    if not upright and not several and episodes[0].rewards:
        steps = sum(e.length for e in episodes)
        terms = (f"{name} {sum(e.rewards[name] for e in episodes) / steps:.2f}" for name in episodes[0].rewards)
        print(f"reward a step: {', '.join(terms)}")
    whole = len(episodes) - summary["num_terminated"]
    print(f"{whole} of {len(episodes)} episodes lasted to the end")


if __name__ == "__main__":
    command_line.verb(main)
