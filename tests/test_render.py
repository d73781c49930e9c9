import functools
import sys
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import mujoco
import numpy as np
import pytest

from flexrl import looks, render
from flexrl.config import UserError
from flexrl.physics import BODIES, load_model

DT = 0.015  # s, the humanoid's control step
SIZE = (64, 48)


@functools.cache
def humanoid():
    return load_model(BODIES["humanoid"])


def walk(num_states, speed=1.0):
    """Postures (nq,) of a stiff humanoid that glides along x at `speed` m/s."""
    states = np.repeat(humanoid().qpos0[None], num_states, axis=0)
    states[:, 0] += speed * DT * np.arange(num_states)
    return states


@pytest.fixture
def environ(monkeypatch):
    """No display, no wish; the choice of other tests is not seen."""
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    render.choose_backend.cache_clear()
    yield monkeypatch
    render.choose_backend.cache_clear()


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
@pytest.mark.skipif(sys.platform != "linux", reason="EGL and OSMesa are Linux's")
def test_both_headless_backends_draw_on_this_machine(environ, backend):
    answer = render.probe(backend)
    assert not answer, f"{answer}; {render.PACKAGES}"


def test_a_fall_back_to_software_is_one_line(environ, capsys):
    environ.setattr(sys, "platform", "linux")
    environ.setattr(render, "probe", lambda backend: "OpenGLError: no device" if backend == "egl" else "")
    assert [render.choose_backend(), render.choose_backend("osmesa")] == ["osmesa", "osmesa"]
    out, told = capsys.readouterr()
    assert not out
    assert told.startswith("drawing with OSMesa, in software: no frame from egl (OpenGLError: no device); libegl1 and, ")
    assert told.count("\n") == 1
    render.choose_backend.cache_clear()
    environ.setattr(render, "probe", lambda backend: "")
    assert render.choose_backend() == "egl"
    assert capsys.readouterr().err == ""


def test_the_first_backend_that_draws_is_taken(environ):
    tried = []
    environ.setattr(render, "probe", lambda backend: tried.append(backend) or ("no" if backend != "osmesa" else ""))
    environ.setattr(sys, "platform", "linux")
    assert render.choose_backend() == "osmesa"
    assert tried == ["egl", "osmesa"]  # no display: no window
    tried.clear()
    environ.setenv("DISPLAY", ":0")
    render.choose_backend.cache_clear()
    assert render.choose_backend() == "osmesa"
    assert tried == ["glfw", "egl", "osmesa"]


def test_a_wish_is_not_replaced_by_what_would_work(environ):
    with pytest.raises(render.RenderError, match=r"^no OpenGL .* glfw \(.*\); unset MUJOCO_GL, or install .*libegl1") as one:
        render.choose_backend("glfw")  # needs the display that is not there
    assert "\n" not in str(one.value)
    with pytest.raises(render.RenderError, match="MUJOCO_GL=off turns rendering off"):
        render.choose_backend("off")


def test_without_any_opengl_one_line_says_what_was_tried_and_what_to_install(environ, tmp_path):
    environ.setenv("__EGL_VENDOR_LIBRARY_DIRS", str(tmp_path))  # EGL finds no driver in an empty folder
    environ.setenv("PYOPENGL_PLATFORM", "egl")  # and OSMesa is forbidden
    with pytest.raises(render.RenderError, match=r"^no OpenGL .* egl \(\w+.*\), osmesa \(\w+.*\); install .*libosmesa6") as one:
        render.choose_backend()
    assert "\n" not in str(one.value)


def test_dressing_changes_neither_the_model_nor_its_physics():
    model = humanoid()
    before, after = np.empty(mujoco.mj_sizeModel(model), np.uint8), np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, before)
    dressed = looks.dress(model, SIZE)
    mujoco.mj_saveModel(model, None, after)
    np.testing.assert_array_equal(before, after)
    states = []
    for one in (model, dressed):
        data = mujoco.MjData(one)
        data.ctrl[:] = 0.4
        mujoco.mj_step(one, data, nstep=100)  # 0.3 s: it has touched the floor
        states.append(data.qpos.copy())
    np.testing.assert_array_equal(*states)


def test_a_frame_shows_the_body_on_a_grey_floor_under_a_blue_sky_wherever_it_is():
    with render.Stage(humanoid(), (160, 120)) as stage:
        here, far = (stage.frame(state).astype(int) for state in (walk(1)[0], walk(1)[0] + np.eye(24)[0] * 1000.0))
    assert here.shape == (120, 160, 3)
    orange = here[:, :, 0] - here[:, :, 2] > 40
    rows, columns = np.nonzero(orange)
    assert 20 < np.ptp(rows) < 100
    assert abs(columns.mean() - 80) < 15
    assert here[0, 0, 2] - here[0, 0, 0] > 30
    assert np.ptp(here[-1, -1]) < 30
    assert np.abs(here - far).mean() < 0.1  # the floor and the light go along; 1000 m is a whole number of tiles


@pytest.mark.parametrize(("fps", "shown"), [(30, [0, 2, 4, 7, 9]), (200, [0, 0, 1, 1, 1, 2, 2, 2])])
def test_each_frame_shows_the_state_nearest_to_its_time(fps, shown):
    # at 30 frames a second a frame lasts 2.22 control steps, at 200 a third of one
    numbers = []
    states = walk(10 if fps == 30 else 3)
    film = render.frames(humanoid(), states, DT, size=(16, 16), fps=fps, caption=lambda n: numbers.append(n) or "")
    assert len(list(film)) == len(shown)
    assert numbers == shown


def test_the_camera_does_not_lag_behind_steady_motion_and_jumps_with_a_reset():
    model = humanoid()
    camera, data = render.Camera(model), mujoco.MjData(model)
    assert 3.5 < camera.mjv.distance < 4.5

    def follow(qpos):
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        return camera.follow(data, DT).lookat - data.subtree_com[1]

    offsets = [follow(state) for state in walk(300, speed=10.0)]
    np.testing.assert_array_equal(offsets[0], 0.0)
    assert 0.1 < np.linalg.norm(offsets, axis=1).max() < 1.6  # m: smooth, and yet in the picture
    assert np.linalg.norm(offsets[-1]) < 0.01
    np.testing.assert_array_equal(follow(walk(1)[0]), 0.0)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_is_read_back_as_it_was_meant(tmp_path, suffix):
    path = tmp_path / "videos" / f"walk{suffix}"
    render.write_video(path, humanoid(), walk(19), DT, size=SIZE, fps=20, caption="walk forward")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found, _ = imageio_ffmpeg.count_frames_and_secs(path)
    assert found == 6  # 18.5 steps of 15 ms hold 5.55 frames of 50 ms after the first
    if suffix == ".mp4":
        reader = imageio_ffmpeg.read_frames(path)
        about = next(reader)
        reader.close()
        assert (about["codec"], about["size"], about["fps"]) == ("h264", SIZE, 20.0)
        assert about["pix_fmt"].startswith("yuv420p")
    else:
        assert imageio.immeta(path, index=0)["duration"] == 50  # ms
        assert imageio.improps(path, index=...).shape == (6, SIZE[1], SIZE[0], 3)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("walk.avi", SIZE, r"ends in \.mp4 or \.gif, found '\.avi'"),
        ("walk", SIZE, "found ''"),
        ("walk.mp4", (65, 48), "even numbers, found 65x48"),
        ("file/walk.mp4", SIZE, "cannot be written"),
        ("folder.mp4", SIZE, "is a folder"),
    ],
)
def test_a_wrong_path_or_size_is_refused_before_any_state_is_read(tmp_path, name, size, says):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())

    def states():
        raise AssertionError("a state was asked for")
        yield

    for refusing in (
        lambda: render.write_video(tmp_path / name, humanoid(), states(), DT, size=size),
        lambda: render.check_video(tmp_path / name, size),
    ):
        with pytest.raises(UserError, match=says) as refusal:
            refusing()
        assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before


def test_what_breaks_on_the_way_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "walk.mp4"
    path.write_text("the film of before")

    def states():
        yield from walk(7)
        yield np.zeros(3)  # frame 3 of 30 a second shows state 7

    with pytest.raises(ValueError, match=r"qpos of shape \(24,\), found shape \(3,\)"):
        render.write_video(path, humanoid(), states(), DT, size=SIZE)
    with pytest.raises(ValueError, match="no states"):
        render.write_video(path, humanoid(), [], DT, size=SIZE)
    assert path.read_text() == "the film of before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_contact_sheet_holds_frames_of_the_whole_time_side_by_side(tmp_path):
    path = tmp_path / "sheet.png"
    view = np.empty(24)  # one array for all states, as a live view of a simulation is

    def states():
        for number, state in enumerate(walk(21)):
            view[:] = state
            view[2] += 0.05 * number  # it rises by 1 m; the camera goes along, the horizon sinks
            yield view

    render.contact_sheet(path, humanoid(), states(), DT, columns=3, size=SIZE)
    sheet = imageio.imread(path)
    assert sheet.shape == (48, 3 * 64, 3)
    first, middle, last = np.split(sheet.astype(int), 3, axis=1)
    assert np.abs(first - middle).mean() > 1.0
    assert np.abs(middle - last).mean() > 1.0
    render.contact_sheet(path, humanoid(), {"walk": states(), "again": walk(21)}, DT, columns=3, size=SIZE)
    assert imageio.imread(path).shape == (2 * 48, 3 * 64, 3)
    with pytest.raises(UserError, match=r"ends in \.png"):
        render.contact_sheet(Path("sheet.jpg"), humanoid(), walk(3), DT)
