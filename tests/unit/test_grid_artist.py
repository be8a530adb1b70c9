"""What a frame of a grid shows: each test builds a state as its source has it."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from envs.frames import TARGET, WALL, Caption, Circle, Frame, Polygon, Segment, agent_colour
from envs.grid_artist import (
    ONION,
    coins_frame,
    connector_frame,
    foraging_frame,
    kitchen_frame,
    warehouse_frame,
)


def texts(frame: Frame) -> list[str]:
    return [shape.text for shape in frame.shapes if isinstance(shape, Caption)]


def discs(frame: Frame, colour: str) -> list[tuple[float, float]]:
    return [s.centre for s in frame.shapes if isinstance(s, Circle) and s.colour == colour]


def squares(frame: Frame, colour: str) -> list[tuple[float, float]]:
    """Return the middles of squares of a colour."""
    found = [s.points for s in frame.shapes if isinstance(s, Polygon) and s.colour == colour]
    return [tuple(np.mean(points, axis=0).round(6).tolist()) for points in found]


def test_a_kitchen() -> None:
    """Two rows and three columns in a margin of 2: a pot, onions, an onion that lies, two cooks."""
    cells = np.zeros((6, 7, 3), np.uint8)
    cells[..., 0] = 2
    cells[2:4, 2:5] = [[[8, 0, 21], [4, 0, 0], [3, 0, 0]], [[10, 0, 0], [1, 0, 0], [10, 2, 0]]]
    state = SimpleNamespace(
        maze_map=cells,
        agent_pos=np.array([[0, 1], [2, 1]]),
        agent_dir_idx=np.array([0, 3]),
        agent_inv=np.array([1, 9]),
    )
    frame = kitchen_frame(SimpleNamespace(height=2, width=3), state)
    assert frame.view == (0, 0, 3, 2)
    assert texts(frame) == ["2 of 3", "onions"]
    assert squares(frame, WALL) == [(0.5, 1.5), (1.5, 1.5), (2.5, 1.5)]
    # One lies on the counter; the second cook, who faces west, carries one in its soup.
    np.testing.assert_allclose(discs(frame, ONION), [(2.5, 1.5), (2.2, 0.5)])
    assert discs(frame, agent_colour(1)) == [(2.5, 0.5)]
    assert frame.anchors == ((0.8, 0.8), (2.8, 0.8))
    for status, said in ((0, "soup"), (7, "cooks 7"), (20, "3 of 3"), (23, "0 of 3")):
        cells[2, 2, 2] = status
        frame = kitchen_frame(SimpleNamespace(height=2, width=3), state)
        assert texts(frame)[0] == said


def test_a_warehouse() -> None:
    def at(*cells: tuple[int, int]) -> Any:
        rows, columns = np.array(cells).T
        return SimpleNamespace(x=rows, y=columns)

    state = SimpleNamespace(
        grid=np.zeros((2, 4, 3)),
        shelves=SimpleNamespace(position=at((1, 0), (1, 2)), is_requested=np.array([False, True])),
        agents=SimpleNamespace(
            position=at((0, 1), (1, 2)), direction=np.array([1, 2]), is_carrying=np.array([0, 1])
        ),
    )
    frame = warehouse_frame(SimpleNamespace(goals=np.array([[1, 3]])), state)
    assert squares(frame, WALL) == [(0.5, 2.5)]
    assert squares(frame, TARGET) == [(2.5, 2.5)]
    looks = [s.end for s in frame.shapes if isinstance(s, Segment) and s.width > 0]
    np.testing.assert_allclose(looks, [(1.88, 3.5), (2.5, 2.12)])  # to the right, and down


def test_food() -> None:
    state = SimpleNamespace(
        agents=SimpleNamespace(
            position=np.array([[0, 0], [1, 1]]), level=np.array([1, 2]), loading=np.array([0, 1])
        ),
        food_items=SimpleNamespace(
            position=np.array([[0, 1], [2, 2]]), level=np.array([3, 2]), eaten=np.array([0, 1])
        ),
    )
    frame = foraging_frame(SimpleNamespace(grid_size=3), state)
    assert texts(frame) == ["3", "1", "2"]
    assert squares(frame, TARGET) == [(1.5, 2.5)]  # what is eaten is gone
    assert discs(frame, agent_colour(0)) == [(0.5, 2.5)]


def test_wires_and_coins() -> None:
    grid = np.array([[1, 1, 2], [0, 6, 3], [5, 4, 0]])
    agents = SimpleNamespace(position=np.array([[0, 2], [2, 0]]))
    frame = connector_frame(None, SimpleNamespace(grid=grid, agents=agents))
    assert squares(frame, agent_colour(0)) == [(0.5, 2.5), (1.5, 2.5)]
    assert discs(frame, agent_colour(0)) == [(2.5, 2.5), (2.5, 1.5)]  # its head and its target
    assert frame.anchors == ((2.8, 2.8), (0.8, 0.8))
    places = {
        "red_pos": [0, 0],
        "blue_pos": [2, 2],
        "red_coin_pos": [1, 1],
        "blue_coin_pos": [0, 2],
    }
    frame = coins_frame(None, SimpleNamespace(**places))
    assert discs(frame, agent_colour(1)) == [(2.5, 2.5), (2.5, 0.5)]
