"""Off-screen frames, videos and contact sheets of a body, with or without a GPU or a display."""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import imageio.v3 as imageio
import mujoco
import numpy as np
from imageio_ffmpeg import count_frames_and_secs, write_frames  # type: ignore[import-untyped]
from numpy.typing import NDArray

from flexrl.config import UserError
from flexrl.looks import dress, root_body

Array = NDArray[np.float64]
Frame = NDArray[np.uint8]  # (height, width, 3)
Caption = str | Callable[[int], str] | None  # words for all frames, or a function of the state's number

PROBE_SECONDS = 60  # s: a cold software driver on a busy machine needs a few
PACKAGES = "install Debian's libegl1 and libgl1-mesa-dri, or libosmesa6 and set MUJOCO_GL=osmesa"


class RenderError(Exception):
    """No OpenGL on this machine: one line that says what was tried, what each answered, and what to install."""


# MuJoCo reads MUJOCO_GL once, when it is imported, and takes GLFW if it is unset, which needs a display. It is imported
# long before anybody asks for a frame, so the context class is taken from mujoco.<backend> instead. A driver that does
# not work may end its process without an exception: hence a child that draws one red ball.
_PROBE = """
import sys; sys.path.insert(0, sys.argv[1])
import mujoco; from flexrl.render import Stage
ball = '<mujoco><worldbody><geom type="sphere" size="1" rgba="1 0 0 1"/></worldbody></mujoco>'
with Stage(mujoco.MjModel.from_xml_string(ball), (16, 16), backend=sys.argv[2]) as stage:
    middle = stage.frame(())[8, 8]
if not middle[0] > 50 > middle[1]: raise RuntimeError(f"it drew {middle} for red")
"""


def probe(backend: str) -> str:
    """Why `backend` does not draw on this machine, in one line; empty if it does."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", _PROBE, str(Path(__file__).parents[1]), backend]
    environ = {**os.environ, "MUJOCO_GL": backend}
    try:
        child = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no frame within {PROBE_SECONDS} s"
    if child.returncode == 0:
        return ""
    # Python's last word on an exception is a line that starts with its class; a crash leaves none.
    words = [line for line in child.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return textwrap.shorten(words[-1], 120, placeholder=" ...") if words else f"its process ended with {child.returncode}"


@functools.cache
def choose_backend(wanted: str = "") -> str:
    """The name of an OpenGL backend that draws here: `glfw`, `egl`, `osmesa` (`cgl` on macOS).

    `wanted` is the user's MUJOCO_GL and then the only one tried. Otherwise a window is tried first if there is a
    display, then EGL (a GPU, or Mesa's software), then OSMesa (always software). Each is tried in a child process,
    which takes about a second; the answer is kept. Raises RenderError if none works.
    """
    wanted = wanted.lower().strip()
    if wanted in ("disable", "disabled", "off", "false", "0"):
        raise RenderError(f"MUJOCO_GL={wanted} turns rendering off; unset it to get frames")
    if wanted in ("egl", "osmesa", "glfw", "cgl"):
        candidates = [wanted]
    elif wanted:  # MuJoCo's other words (glx, wgl, on ...) all mean a window
        candidates = ["glfw"]
    elif sys.platform == "darwin":
        candidates = ["cgl", "glfw"]
    elif sys.platform == "win32":
        candidates = ["glfw"]
    else:
        window = ["glfw"] if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") else []
        candidates = [*window, "egl", "osmesa"]
    answers: list[str] = []
    for backend in candidates:
        answer = probe(backend)
        if not answer:
            if backend == "osmesa" and answers:  # a GPU that was meant to draw would be missed
                cure = "libegl1 and, in a container, NVIDIA_DRIVER_CAPABILITIES=all let a GPU draw; MUJOCO_GL=osmesa means this"
                print(f"drawing with OSMesa, in software: no frame from {', '.join(answers)}; {cure}", file=sys.stderr)
            return backend
        answers.append(f"{backend} ({answer})")
    cure = f"unset MUJOCO_GL, or {PACKAGES}" if wanted else PACKAGES
    raise RenderError(f"no OpenGL to draw with: tried {', '.join(answers)}; {cure}")


class Camera:
    """Looks at a body from the side and goes along with it, smoothly.

    distance: m, from the body's centre of mass; by default what shows the whole body with room around it (4 m for the
    humanoid). azimuth, elevation: degrees; at azimuth 90 a body that walks along +x goes to the right.
    """

    SMOOTHING = 0.4  # s: the time constant with which it follows
    JUMP = 1.0  # m in one frame: a new episode, not a movement; it is there at once

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        distance: float | None = None,
        azimuth: float = 110.0,
        elevation: float = -12.0,
    ) -> None:
        self.mjv = mujoco.MjvCamera()
        self.mjv.type = mujoco.mjtCamera.mjCAMERA_FREE
        self.mjv.distance = viewing_distance(model) if distance is None else distance
        self.mjv.azimuth, self.mjv.elevation = azimuth, elevation
        self.body = root_body(model)
        self._once = self._twice = self._target = np.full(3, np.inf)  # m: smoothed once, twice, not at all

    def follow(self, data: mujoco.MjData, seconds: float) -> mujoco.MjvCamera:
        """The camera as it stands `seconds` after the last call, for a body whose kinematics `data` holds."""
        target = data.subtree_com[self.body].copy()
        if not np.linalg.norm(target - self._target) <= self.JUMP:
            self._once = self._twice = target
        blend = -np.expm1(-seconds / self.SMOOTHING)
        self._once = self._once + blend * (target - self._once)
        self._twice = self._twice + blend * (self._once - self._twice)
        self._target = target
        # Brown's double smoothing does not lag behind steady motion: a cheetah at 10 m/s stays in the picture.
        self.mjv.lookat = 2.0 * self._once - self._twice
        return self.mjv


def viewing_distance(model: mujoco.MjModel) -> float:
    """How far, in m, a camera stands from the whole body: 2.4 times its largest side in the model's own posture."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moving = np.flatnonzero(model.geom_bodyid > 0)
    if not moving.size:
        return float(model.stat.extent)
    radius = model.geom_rbound[moving, None]
    corners = np.stack([data.geom_xpos[moving] - radius, data.geom_xpos[moving] + radius])
    return 2.4 * float(np.max(corners[1].max(axis=0) - corners[0].min(axis=0)))


class Stage:
    """Draws postures of one body; a context manager, for one thread.

    model: its physics is not touched, a dressed copy is drawn. size: (width, height) in pixels. backend: see
    `choose_backend`, which is asked if it is None and raises RenderError if nothing draws here.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        size: tuple[int, int] = (480, 360),
        camera: Camera | None = None,
        backend: str | None = None,
    ) -> None:
        backend = backend or choose_backend(os.environ.get("MUJOCO_GL", ""))
        self._model = dress(model, size)
        self._data = mujoco.MjData(self._model)
        self._scene = mujoco.MjvScene(self._model, maxgeom=1000 + 2 * self._model.ngeom)
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, *size)
        self.camera = camera or Camera(self._model)
        self._gl: Any = importlib.import_module(f"mujoco.{backend}").GLContext(*size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def frame(self, qpos: Array, seconds: float = np.inf, caption: str = "") -> Frame:
        """The body at `qpos` (nq,), `seconds` after the last frame: the camera follows by that much.

        caption: words in the lower left corner; a sign outside ASCII becomes '?', MuJoCo's font has no more. Raises
        ValueError if `qpos` has another shape.
        """
        if np.shape(qpos) != (self._model.nq,):
            raise ValueError(f"a state is qpos of shape ({self._model.nq},), found shape {np.shape(qpos)}")
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        camera = self.camera.follow(self._data, seconds)
        # An endless plane is laid around the camera of the scene before: without this it is missing after a jump.
        mujoco.mjv_updateCamera(self._model, self._data, camera, self._scene)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._option, None, camera, everything, self._scene)
        self._gl.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._context)
        if caption:
            place = mujoco.mjtGridPos.mjGRID_BOTTOMLEFT
            text = caption.encode("ascii", "replace").decode()  # the font's other signs are blots
            mujoco.mjr_overlay(mujoco.mjtFont.mjFONT_NORMAL, place, self._rect, text, "", self._context)
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Give the OpenGL context back; a second call does nothing."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def frames(
    model: mujoco.MjModel,
    states: Iterable[Array],
    dt: float,
    *,
    size: tuple[int, int] = (480, 360),
    fps: float = 30,
    caption: Caption = None,
) -> Iterator[Frame]:
    """The frames, (height, width, 3) each, of a film at real-time speed of `states`: qpos (nq,) every `dt` seconds.

    Each frame shows the state nearest to its time, so states may come slower or faster than frames. States are read as
    they are needed. Raises RenderError without OpenGL, ValueError for a state of another shape.
    """
    words = caption if callable(caption) else lambda _: caption or ""
    num_frames = 0
    with Stage(model, size) as stage:
        for number, qpos in enumerate(states):
            while num_frames < (number + 0.5) * dt * fps:
                yield stage.frame(qpos, 1.0 / fps, words(number))
                num_frames += 1


# One palette a frame: one for the whole film saves an eighth of its size, but FFmpeg holds all frames to find it.
_GIF_FILTER = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none"
ENCODERS: dict[str, dict[str, Any]] = {
    ".mp4": {"codec": "libx264", "pix_fmt_out": "yuv420p", "quality": 6, "output_params": ["-movflags", "+faststart"]},
    ".gif": {"codec": "gif", "pix_fmt_out": "pal8", "quality": None, "output_params": ["-vf", _GIF_FILTER]},
}


def check_video(path: Path, size: tuple[int, int] = (480, 360)) -> None:
    """Raise UserError for another suffix than .mp4 and .gif, an odd size, and a folder that cannot be written to.

    For a verb's door: `write_video` would say the same, after the simulation.
    """
    if path.suffix.lower() not in ENCODERS:
        raise UserError(f"{path}: a video ends in .mp4 or .gif, found '{path.suffix}'")
    if min(size) < 2 or size[0] % 2 or size[1] % 2:
        raise UserError(f"{path}: a video's width and height are even numbers, found {size[0]}x{size[1]}")
    _begin_file(path).unlink()


def write_video(
    path: Path,
    model: mujoco.MjModel,
    states: Iterable[Array],
    dt: float,
    *,
    size: tuple[int, int] = (480, 360),
    fps: float = 30,
    caption: Caption = None,
) -> None:
    """Write a film of `states`, qpos (nq,) every `dt` seconds, at real-time speed: H.264 in .mp4, or .gif.

    size: (width, height) in pixels, even numbers. caption: words in the lower left corner, or a function from a state's
    number to such words. The file appears at `path` whole or not at all; a folder that is not there is made.

    Raises UserError as `check_video` does, before the first state is read; RenderError without OpenGL; ValueError if
    there are no states.
    """
    path = Path(path)
    check_video(path, size)
    if fps <= 0 or dt <= 0:
        raise ValueError(f"fps and dt are above zero, found {fps} and {dt}")
    with _whole_file(path) as unfinished:
        film = frames(model, states, dt, size=size, fps=fps, caption=caption)
        first = next(film, None)
        if first is None:
            raise ValueError(f"{path}: there are no states to show")
        options = {"fps": fps, "macro_block_size": 2, "ffmpeg_log_level": "error", **ENCODERS[path.suffix.lower()]}
        encoder = write_frames(str(unfinished), size, **options)
        encoder.send(None)  # a generator: this starts FFmpeg
        num_frames = 0
        try:
            for frame in itertools.chain([first], film):
                encoder.send(frame)
                num_frames += 1
        finally:
            encoder.close()
        try:
            found, _ = count_frames_and_secs(unfinished)  # imageio-ffmpeg does not look at how FFmpeg ended
        except RuntimeError:  # it is none that FFmpeg can read
            found = 0
        if found != num_frames:
            raise OSError(f"{path}: FFmpeg wrote {found} of {num_frames} frames; is the disk full?")


def check_sheet(path: Path) -> None:
    """Raise UserError for another suffix than .png, and a folder that cannot be written to: `contact_sheet`'s door."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a contact sheet ends in .png, found '{path.suffix}'")
    _begin_file(path).unlink()


def contact_sheet(
    path: Path,
    model: mujoco.MjModel,
    states: Iterable[Array] | Mapping[str, Iterable[Array]],
    dt: float,
    *,
    columns: int = 8,
    size: tuple[int, int] = (240, 240),
) -> None:
    """Write a PNG of `columns` frames side by side, evenly from the first of `states` to the last, with their times.

    states: qpos (nq,) every `dt` seconds; all are held. Several of them by name make a row each, the name in its first
    frame. size: (width, height) of one frame in pixels. Fewer states than columns give as many frames as there are states.
    The file appears whole or not at all.

    Raises UserError as `check_sheet` does; RenderError without OpenGL; ValueError if there are no states.
    """
    path = Path(path)
    check_sheet(path)
    named = states if isinstance(states, Mapping) else {"": states}
    # copies: a state may be a live view of a simulation
    rows = {name: [np.array(qpos) for qpos in row] for name, row in named.items()}
    shortest = min((len(row) for row in rows.values()), default=0)
    if shortest == 0 or columns < 1:
        raise ValueError(f"{path}: {shortest} states in {columns} columns leave nothing to show")
    with _whole_file(path) as unfinished:
        sheet = [_strip(model, name, row, dt, min(columns, shortest), size) for name, row in rows.items()]
        imageio.imwrite(unfinished, np.concatenate(sheet))


def _strip(model: mujoco.MjModel, name: str, states: list[Array], dt: float, columns: int, size: tuple[int, int]) -> Frame:
    """`columns` frames side by side."""
    picked = np.unique(np.linspace(0, len(states) - 1, columns).round().astype(int))
    closeness = 0.7 / min(size[0] / size[1], 1.0)  # nearer than in a video: frames are small
    camera = Camera(model, distance=viewing_distance(model) * min(closeness, 1.0))
    with Stage(model, size, camera) as stage:
        captions = [name if name and k == 0 else f"{number * dt:.2f} s" for k, number in enumerate(picked)]
        frames = [stage.frame(states[number], caption=caption) for number, caption in zip(picked, captions, strict=True)]
    return np.concatenate(frames, axis=1)


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A file next to `path` to write to; it takes `path`'s name if the block ends well, and is removed if not."""
    unfinished = _begin_file(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _begin_file(path: Path) -> Path:
    """An empty hidden file next to `path`; UserError if the folder cannot be made or written to, or `path` is one."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("is a folder")
        unfinished.touch()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    return unfinished
