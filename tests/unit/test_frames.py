"""Frames as data: they survive JSON, move as one, and refuse what cannot be drawn."""

import json
import math

import pytest

from envs import EnvError, Frame
from envs.frames import Caption, Circle, HealthBar, Polygon, Segment, Shape, agent_colour, moved

SHAPES: tuple[Shape, ...] = (
    Segment(start=(0.0, 1.0), end=(2.0, 3.0), colour="#010203", width=0.5),
    Circle(centre=(1.0, 1.0), radius=0.25, colour="#aabbcc", filled=False),
    Polygon(points=((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), colour="#aabbcc"),
    Caption(position=(0.1, 0.2), text='3 "m"', colour="#000000"),
    HealthBar(position=(0.0, 2.0), width=1.0, share=0.4, colour="#00ff00"),
)


def frame(**changes: object) -> Frame:
    """Return a frame with every kind of shape, and one agent that is nowhere."""
    values = {"shapes": SHAPES, "view": (-1.0, -2.0, 3.0, 4.0), "anchors": ((1.0, 1.5), None)}
    return Frame(**(values | {"seconds_per_step": 0.05} | changes))  # type: ignore[arg-type]


def test_a_frame_survives_a_file_of_json() -> None:
    text = json.dumps(frame().to_json(), allow_nan=False)
    assert Frame.from_json(json.loads(text)) == frame()


def test_json_names_the_kind_of_each_shape() -> None:
    kinds = [shape["kind"] for shape in frame().to_json()["shapes"]]
    assert kinds == ["segment", "circle", "polygon", "caption", "health_bar"]


def test_an_unknown_kind_of_shape_is_named() -> None:
    data = frame().to_json() | {"shapes": [{"kind": "star", "colour": "#000000"}]}
    with pytest.raises(EnvError, match=r"kind 'star'; expected one of \['segment'"):
        Frame.from_json(data)


def test_shapes_move_as_one() -> None:
    by = (10.0, -1.0)
    assert [moved(shape, by) for shape in SHAPES] == [
        Segment(start=(10.0, 0.0), end=(12.0, 2.0), colour="#010203", width=0.5),
        Circle(centre=(11.0, 0.0), radius=0.25, colour="#aabbcc", filled=False),
        Polygon(points=((10.0, -1.0), (11.0, -1.0), (10.0, 0.0)), colour="#aabbcc"),
        Caption(position=(10.1, -0.8), text='3 "m"', colour="#000000"),
        HealthBar(position=(10.0, 1.0), width=1.0, share=0.4, colour="#00ff00"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": (0.0, 0.0, 0.0, 1.0)}, "left < right"),
        ({"view": (0.0, 0.0, math.nan, 1.0)}, "left < right"),
        ({"seconds_per_step": 0.0}, "seconds_per_step is 0.0; expected more than 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        frame(**changes)


def test_colours_of_a_large_team_repeat() -> None:
    assert len({agent_colour(agent) for agent in range(12)}) == 12
    assert agent_colour(12) == agent_colour(0)
