"""Where an environment draws itself, people see its own pictures, wherever it runs."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs import Frame, make_env
from envs.base import EnvError
from envs.frames import Picture
from envs.rng import random_actions
from marl.preferences.dataset.footage import EpisodeFrames, read_frames, write_frames
from marl.preferences.people.camera import MOST_PICTURES, Camera
from marl.reports.drawing import paint_scene


def filmed(workers: int, folder: Path) -> EpisodeFrames:
    """Return the film of the first episode of the last of three environments."""
    env: Any = make_env("tests.workshop:Workshop", 3, workers=workers)
    try:
        camera = Camera(env, 3)
        step, rng = env.reset(0), np.random.default_rng(0)
        for _ in range(4):
            actions = random_actions(env.spec, rng, step.action_mask)
            camera.before_step(step, actions)
            step = env.step(actions)
            camera.after_step(step.terminated | step.truncated)
        film = camera.film(2, 0)
    finally:
        env.close()
    assert film is not None
    write_frames(folder, 0, film)
    return read_frames(folder, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_own_pictures_are_filmed(workers: int, tmp_path: Path) -> None:
    film = filmed(workers, tmp_path)
    assert film.steps == (0, 1, 2, 3)
    for step, frame in enumerate(film.frames):
        (shape,) = frame.shapes
        assert isinstance(shape, Picture)
        assert (shape.width, shape.height) == (6, 4)
        with Image.open(io.BytesIO(base64.b64decode(shape.jpeg))) as image:
            red, green, blue = image.getpixel((3, 2))  # type: ignore[misc]  # of an RGB image
        assert abs(green - 60 * step) <= 8  # the episode's age, in green
        assert max(red, blue) <= 12
        painted = paint_scene(frame, None, 60, 40).getpixel((30, 20))
        assert np.abs(np.subtract(painted, (red, green, blue))).max() <= 8


def test_a_picture_is_a_jpeg_or_no_frame() -> None:
    shape = {"kind": "picture", "corner": [0, 0], "width": 1, "height": 1}
    for jpeg in ("", "iVBORw0KGgo=", '/9j/4AAQ"><script>', "data:image/jpeg;base64,/9j/4AAQ"):
        frame = {"shapes": [shape | {"jpeg": jpeg}], "view": [0, 0, 1, 1], "anchors": []}
        with pytest.raises(EnvError, match="jpeg"):
            Frame.from_json(frame)
    assert MOST_PICTURES < 100
