import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import imageio.v3 as imageio
import numpy as np
import psutil
import pytest
from mujoco.studio.web import web_server

from flexrl import viewer
from flexrl.config import UserError
from flexrl.physics import BODIES, load_model

DT = 0.015  # s, the humanoid's control step
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--use-angle=swiftshader --enable-unsafe-swiftshader --window-size=640,480 --remote-debugging-port=0"
)


@pytest.fixture(scope="module")
def model():
    return load_model(BODIES["humanoid"])


def listeners():
    """The addresses that this process listens on."""
    connections = psutil.Process().net_connections("inet")
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def test_the_page_and_the_model_are_served_on_loopback_only_and_stdout_is_left_alone(model, capsys):
    urls, found = [], []

    def steps():
        for _ in range(500):
            if found:
                return
            yield model.qpos0
            if len(get(urls[0] + "model")) > 300_000:  # before the humanoid's textures an empty scene is served
                found.extend(listeners())

    def ready(url):
        urls.append(url)
        assert b"<html" in get(url)
        assert listeners() == {"127.0.0.1"}

    viewer.web(model, steps(), DT, ready=ready)
    assert found == ["127.0.0.1"]
    assert urls[0].startswith("http://127.0.0.1:")
    assert listeners() == set()
    assert capsys.readouterr().out == ""


def test_all_interfaces_are_listened_on_only_when_asked_and_with_a_warning(model, capsys):
    found = set()
    viewer.web(model, iter([model.qpos0]), DT, public=True, ready=lambda url: found.update(listeners()))
    assert found & {"::", "0.0.0.0"}
    output = capsys.readouterr()
    assert output.out == ""
    assert "No authentication" in output.err


def test_a_mujoco_that_would_listen_publicly_is_refused(model, monkeypatch):
    def bind_anyway(host, port):
        listener = socket.socket()
        listener.bind(("0.0.0.0", 0))
        return listener

    monkeypatch.setattr(web_server, "bind_public_socket", bind_anyway)
    with pytest.raises(RuntimeError, match=r"listens on 0\.0\.0\.0, not on 127\.0\.0\.1"):
        viewer.web(model, iter([model.qpos0]), DT, ready=lambda url: pytest.fail("it was served"))
    assert "0.0.0.0" not in listeners()


def test_a_port_that_is_taken_or_none_is_refused_in_one_line(model):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port}: already in use; .*$"):
            viewer.web(model, iter([]), DT, port=port)
    with pytest.raises(UserError, match="port 70000: expected a number from 0"):
        viewer.web(model, iter([]), DT, port=70000)


def test_ctrl_c_and_the_time_limit_end_it_quietly(model):
    def interrupted():
        yield model.qpos0
        signal.raise_signal(signal.SIGINT)
        yield model.qpos0

    viewer.web(model, interrupted(), DT)
    viewer.web(model, itertools.repeat(model.qpos0), DT, seconds=0.1)
    assert listeners() == set()


def test_a_fault_of_the_simulation_is_not_swallowed(model):
    def broken():
        yield model.qpos0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        viewer.web(model, broken(), DT)
    assert listeners() == set()


@pytest.mark.parametrize("display", ["", "unix:77"])
def test_without_a_display_a_window_is_refused_in_one_line_that_names_the_other_ways(model, monkeypatch, display):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)  # none, or one where nothing answers
    with pytest.raises(UserError, match=r"^no display for a window \(.*\); use --viewer web or --video FILE$"):
        viewer.window(model, iter([model.qpos0]), DT)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.skipif("FLEXRL_TEST_BROWSER" not in os.environ, reason="takes 15 s: ask with FLEXRL_TEST_BROWSER=1")
def test_a_browser_draws_the_moving_body(model, tmp_path):
    from websockets.sync.client import connect

    def steps():
        hip = model.joint("right_hip_y").qposadr[0]
        for number in itertools.count():
            qpos = model.qpos0.copy()
            qpos[0], qpos[hip] = 0.01 * number, 0.8 * np.sin(0.2 * number)
            yield qpos
            if number % 10 == 9:
                pictures.append(screenshot())
                if len(seen()) == 2 or len(pictures) == 60:
                    return

    def screenshot():
        page.send(json.dumps({"id": 1, "method": "Page.captureScreenshot"}))
        while "result" not in (answer := json.loads(page.recv(timeout=60))):
            pass
        return imageio.imread(base64.b64decode(answer["result"]["data"]))[:, :, :3].astype(int)

    def seen():
        """The pictures with a body of its own colour in them."""
        return [picture for picture in pictures if (picture[:, :, 0] - picture[:, :, 2] > 60).sum() > 500]

    def open_page(url):
        nonlocal page
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path}", url]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cleanup.callback(browser.wait, timeout=30)
        cleanup.callback(browser.terminate)
        told = tmp_path / "DevToolsActivePort"
        for _ in range(600):
            if told.exists() and told.read_text().count("\n"):
                break
            time.sleep(0.1)
        targets = json.loads(get(f"http://127.0.0.1:{told.read_text().split()[0]}/json"))
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        page = cleanup.enter_context(connect(address, max_size=None))

    pictures, page = [], None
    with contextlib.ExitStack() as cleanup:
        viewer.web(model, steps(), DT, ready=open_page)
    assert len(seen()) == 2, f"no humanoid in {len(pictures)} pictures"
    assert np.abs(np.diff(seen(), axis=0)).max() > 60  # it moves
