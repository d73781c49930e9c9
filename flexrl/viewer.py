"""Watch a simulation live, in the browser (`web`, needs no display here) or in a window (`window`)."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from flexrl import looks, render
from flexrl.config import UserError

Array = NDArray[np.float64]

LOOPBACK = "127.0.0.1"
START_SECONDS = 20.0  # s: the viewer's server is up within one, on an idle machine
MAX_LAG = 0.25  # s: a simulation that is further behind real time does not try to make up for it


def web(
    model: mujoco.MjModel,
    steps: Iterator[Array],
    dt: float,
    *,
    port: int = 0,
    public: bool = False,
    ready: Callable[[str], None] | None = None,
    seconds: float | None = None,
) -> None:
    """Show `steps`, qpos (nq,) every `dt` seconds, in real time in MuJoCo Studio's web viewer.

    Returns when the steps end, on Ctrl-C, or after `seconds`; a browser may come, go and come again. `ready` is called
    once with the page's address, when the page can be opened. port: 0 takes the first free one from 8080 on.

    The page is drawn by the browser and has no password: whoever reaches the port sees the simulation. So it listens on
    this machine's loopback only, unless `public` asks for all interfaces. Browsers draw it only from localhost or over
    HTTPS (it needs SharedArrayBuffer): from another machine, use `ssh -L 8080:localhost:8080` and leave `public` off;
    `public` is for a container's published port, and for a proxy that brings HTTPS and a password.

    Raises UserError if the port is taken or none, RuntimeError if the installed MuJoCo would listen elsewhere.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port {port}: expected a number from 0 (the first free one) to 65535")
    from mujoco.studio import launch_thread

    model = looks.dress(model)
    data = mujoco.MjData(model)
    started: list[int] = []  # the port, from the viewer's thread

    def run_viewer(endpoint: Any) -> None:
        _run_web_viewer(endpoint, model, port, public, started)

    with _stdout_kept_clean(silent=not public), launch_thread.launch_thread(run_viewer) as handle:
        _wait_until_served(handle, started, port)
        handle.set_model(model, data=data)
        if ready is not None:
            ready(f"http://{LOOPBACK}:{started[0]}/")
        end = np.inf if seconds is None else time.monotonic() + seconds
        try:
            for qpos in _in_real_time(steps, dt):
                if not handle.is_running() or time.monotonic() > end:
                    break
                data.qpos[:] = qpos
                data.time += dt
                mujoco.mj_forward(model, data)
                handle.sync()
        except KeyboardInterrupt:
            pass


def window(model: mujoco.MjModel, steps: Iterator[Array], dt: float) -> None:
    """Show `steps`, qpos (nq,) every `dt` seconds, in real time in MuJoCo's own window.

    Returns when the steps end, the window is closed, or on Ctrl-C. Raises UserError if there is no display that
    OpenGL draws on.
    """
    # MuJoCo's launch_passive waits for ever if its window cannot be opened, so a child process opens one first.
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        answer = "neither DISPLAY nor WAYLAND_DISPLAY is set"
    else:
        answer = render.probe("glfw")
    if answer:
        raise UserError(f"no display for a window ({answer}); use --viewer web or --video FILE")
    from mujoco import viewer

    model = looks.dress(model)
    data = mujoco.MjData(model)
    with viewer.launch_passive(model, data, show_left_ui=False, show_right_ui=False) as handle:
        _place_camera(handle.cam, model)
        try:
            for qpos in _in_real_time(steps, dt):
                if not handle.is_running():
                    break
                with handle.lock():
                    data.qpos[:] = qpos
                    data.time += dt
                    mujoco.mj_forward(model, data)
                handle.sync()
        except KeyboardInterrupt:
            pass


def _in_real_time(steps: Iterator[Array], dt: float) -> Iterator[Array]:
    """`steps`, each `dt` seconds after the one before as long as they come fast enough."""
    due = time.monotonic()
    for qpos in steps:
        now = time.monotonic()
        if due > now:
            time.sleep(due - now)
        elif now - due > MAX_LAG:
            due = now
        yield qpos
        due += dt


def _place_camera(camera: mujoco.MjvCamera, model: mujoco.MjModel) -> None:
    """Let the viewer's own camera go along with the body, from where videos look at it."""
    own = render.Camera(model)
    camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    camera.trackbodyid = own.body
    camera.distance, camera.azimuth, camera.elevation = own.mjv.distance, own.mjv.azimuth, own.mjv.elevation


def _run_web_viewer(endpoint: Any, model: mujoco.MjModel, port: int, public: bool, started: list[int]) -> None:
    """Be the viewer's thread: bind, put the port into `started`, serve until the other side ends it.

    MuJoCo 4.0's WebViewer sets its host to '::' (all interfaces) and has no setting for it. So the attribute is turned
    into what it should be on its way in, and the bound socket is looked at before anything listens on it.
    """
    from mujoco.studio import viewer_protocol, web_viewer

    class LoopbackWebViewer(web_viewer.WebViewer):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_host":
                value = LOOPBACK
            elif name == "_http_sock":
                _refuse_public(value)
            super().__setattr__(name, value)

    camera = mujoco.MjvCamera()
    _place_camera(camera, model)
    config = viewer_protocol.ViewerConfig(title="flex-rl", gfx="web", http_port=port)
    viewer = (web_viewer.WebViewer if public else LoopbackWebViewer)(config, endpoint, camera=camera)
    try:
        if not public:
            _refuse_public(viewer._http_sock)  # again: a MuJoCo that names it otherwise stops here
        started.append(viewer._http_sock.getsockname()[1])
        viewer_protocol.run_viewer_loop(viewer)
    finally:
        viewer.close()
        # The viewer is part of a reference cycle. Were this left to the garbage collector, it would take ImGui's
        # context, one a process, from the next viewer: a crash.
        del viewer._headless_ui


def _refuse_public(listener: socket.socket) -> None:
    """Close `listener` and raise RuntimeError if it can be reached from another machine."""
    host = listener.getsockname()[0]
    if host != LOOPBACK:
        listener.close()
        raise RuntimeError(
            f"the web viewer of MuJoCo {mujoco.__version__} listens on {host}, not on {LOOPBACK}: flexrl/viewer.py was "
            "written for 4.0.0; nothing is served"
        )


@contextmanager
def _stdout_kept_clean(silent: bool) -> Iterator[None]:
    """Send what MuJoCo's viewer prints and logs to stderr instead of stdout, where verbs print results.

    silent: drop its banner, which `ready` replaces.
    """
    from mujoco.studio import web_viewer
    from mujoco.studio.web import web_server

    def say(*words: object, **_: object) -> None:
        if not silent:
            print(*words, file=sys.stderr)

    logs = [handler for handler in web_server.logger.handlers if isinstance(handler, logging.StreamHandler)]
    before = [handler.setStream(sys.stderr) for handler in logs]
    web_viewer.print = say  # hides the builtin from that module only
    try:
        yield
    finally:
        del web_viewer.print
        for handler, stream in zip(logs, before, strict=True):
            handler.setStream(stream or sys.stdout)


def _wait_until_served(handle: Any, started: list[int], port: int) -> None:
    """Return when the page answers; raises UserError if `port` is taken, what ended the viewer if it ended."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            handle.is_running()  # raises what ended the viewer's thread
        except RuntimeError as error:
            if "in use" in str(error):
                raise UserError(f"port {port}: already in use; name another one, or 0 for the first free one") from None
            raise
        if started:
            try:
                socket.create_connection((LOOPBACK, started[0]), timeout=1.0).close()
                return
            except ConnectionRefusedError:
                pass
        time.sleep(0.02)
    raise RuntimeError(f"the web viewer did not answer within {START_SECONDS:.0f} s")
