"""What a body's model looks like in a picture: sky, floor and light; its physics is left alone."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
from numpy.typing import NDArray

SKY_TOP = (0.36, 0.52, 0.72)
HORIZON = (0.86, 0.90, 0.94)
TILES = ((0.44, 0.50, 0.56), (0.50, 0.56, 0.62))  # the two greys of the floor
TILE_LINE = (0.60, 0.66, 0.71)
TILE_SIZE = 1.0  # m
LIGHT_OFFSET = (-1.5, -2.0, 4.5)  # m from the body's centre of mass


def dress(model: mujoco.MjModel, size: tuple[int, int] = (480, 360)) -> mujoco.MjModel:
    """A copy of `model` to be looked at: a sky, an endless tiled floor, light that follows.

    size: (width, height) of the largest frame in pixels. Nothing that the physics reads is changed but the size of
    planes, which collisions ignore.
    """
    model = copy.copy(model)
    model.vis.global_.offwidth, model.vis.global_.offheight = size
    model.vis.map.haze = 0.6
    model.vis.rgba.haze = (*HORIZON, 1.0)
    # These three are given in units of the model's extent.
    extent = model.stat.extent
    model.vis.map.znear, model.vis.map.zfar = 0.05 / extent, 60.0 / extent
    model.vis.map.shadowclip = 4.0 / extent  # below 3 m the light's own frustum leaves specks on the floor
    model.vis.quality.shadowsize = 1024  # 8 mm a pixel; software drivers feel a larger one
    model.vis.headlight.ambient = (0.38, 0.38, 0.40)
    model.vis.headlight.diffuse = (0.30, 0.30, 0.30)
    model.vis.headlight.specular = (0.05, 0.05, 0.05)
    _paint_sky(model)
    _lay_floor(model)
    root = root_body(model)
    for light in range(model.nlight):
        model.light_mode[light] = mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
        model.light_bodyid[light] = root
        model.light_poscom0[light] = LIGHT_OFFSET
        model.light_dir0[light] = -np.array(LIGHT_OFFSET) / np.linalg.norm(LIGHT_OFFSET)
        model.light_diffuse[light] = (0.62, 0.60, 0.56)
        model.light_specular[light] = (0.15, 0.15, 0.15)
        model.light_castshadow[light] = light == 0
    return model


def root_body(model: mujoco.MjModel) -> int:
    """The torso, or whatever the first body is called."""
    torso = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "torso"))
    return torso if torso >= 0 else min(1, int(model.nbody) - 1)


def _texture(model: mujoco.MjModel, texture: int) -> NDArray[np.uint8]:
    """A texture's pixels, (height, width, channels), as a view."""
    height, width = int(model.tex_height[texture]), int(model.tex_width[texture])
    channels, start = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
    data: NDArray[np.uint8] = model.tex_data
    return data[start : start + height * width * channels].reshape(height, width, channels)


def _paint_sky(model: mujoco.MjModel) -> None:
    """Overwrite a cube skybox (six square faces below each other: right, left, up, down, front, back)."""
    for texture in range(model.ntex):
        pixels = _texture(model, texture)
        height, width = pixels.shape[:2]
        if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_SKYBOX or height != 6 * width:
            continue
        steps = (np.arange(width) + 0.5) / width * 2.0 - 1.0
        across, down = np.meshgrid(steps, steps)  # (width, width), -1 ... 1
        side = -down / np.sqrt(1.0 + across**2 + down**2)  # sine of the elevation
        above = 1.0 / np.sqrt(1.0 + across**2 + down**2)
        for face, sine in enumerate((side, side, above, -above, side, side)):
            blend = np.sqrt(np.clip(sine, 0.0, 1.0))[:, :, None]
            colour = (1.0 - blend) * np.array(HORIZON) + blend * np.array(SKY_TOP)
            pixels[face * width : (face + 1) * width, :, :3] = np.rint(255.0 * colour)


def _lay_floor(model: mujoco.MjModel) -> None:
    """Make every plane endless, and its checker a calm one of TILE_SIZE."""
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE):
        model.geom_size[geom, :2] = 0.0
        material = model.geom_matid[geom]
        if material < 0:
            continue
        model.geom_rgba[geom] = 1.0
        model.mat_rgba[material] = 1.0
        model.mat_reflectance[material] = 0.0  # a mirror image costs an eighth of a frame's time
        model.mat_specular[material], model.mat_shininess[material] = 0.1, 0.3
        model.mat_texuniform[material] = True
        model.mat_texrepeat[material] = 1.0 / TILE_SIZE
        texture = model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]
        if texture < 0 or model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
            continue
        pixels = _texture(model, texture)
        rows, columns = np.indices(pixels.shape[:2]) * 2.0 / np.array(pixels.shape[:2])[:, None, None]  # in tiles
        odd = (rows.astype(int) + columns.astype(int)) % 2
        pixels[:, :, :3] = np.rint(255.0 * np.array(TILES))[odd]
        pixels[:: pixels.shape[0] // 2, :, :3] = np.rint(255.0 * np.array(TILE_LINE))
        pixels[:, :: pixels.shape[1] // 2, :3] = np.rint(255.0 * np.array(TILE_LINE))
