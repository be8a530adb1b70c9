"""Tasks on a grid as frames: JaxMARL's kitchens and coins, Jumanji's warehouse, food and wires.

Each function gets the source's environment and its state of one environment, in arrays of NumPy.
A cell is its row, from the top, and its column.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.frames import (
    FAINT,
    GROUND,
    INK,
    TARGET,
    WALL,
    Caption,
    Circle,
    Frame,
    Point,
    Polygon,
    Segment,
    Shape,
    agent_colour,
    shifted,
)

Cell = tuple[int, int]
ONION, PLATE = "#d2a01e", "#ffffff"
SECONDS = 0.2
"""A step's, for a player."""
_ON_COLOUR = "#ffffff"


class Grid:
    """Shapes on a grid, back to front."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.shapes: list[Shape] = []
        for x in range(columns + 1):
            self.line((float(x), 0.0), (float(x), float(rows)), FAINT)
        for y in range(rows + 1):
            self.line((0.0, float(y)), (float(columns), float(y)), FAINT)

    def middle(self, cell: Cell) -> Point:
        """Return the middle of a cell."""
        return cell[1] + 0.5, self.rows - cell[0] - 0.5

    def line(self, start: Point, end: Point, colour: str, width: float = 0.0) -> None:
        self.shapes.append(Segment(start=start, end=end, colour=colour, width=width))

    def square(self, cell: Cell, colour: str, size: float = 0.9) -> None:
        """Add a square in the middle of a cell, `size` cells wide."""
        half, (x, y) = size / 2, self.middle(cell)
        corners = ((-half, -half), (half, -half), (half, half), (-half, half))
        points = tuple((x + dx, y + dy) for dx, dy in corners)
        self.shapes.append(Polygon(points=points, colour=colour))

    def disc(self, centre: Point, radius: float, colour: str, *, filled: bool = True) -> None:
        self.shapes.append(Circle(centre=centre, radius=radius, colour=colour, filled=filled))

    def text(self, cell: Cell, text: str, colour: str = INK) -> None:
        self.shapes.append(Caption(position=self.middle(cell), text=text, colour=colour))

    def agent(self, agent: int, cell: Cell, text: str = "") -> None:
        """Add an agent's disc, with a text on it."""
        self.disc(self.middle(cell), 0.38, agent_colour(agent))
        if text:
            self.text(cell, text, _ON_COLOUR)

    def frame(self, agents: Sequence[Cell]) -> Frame:
        """Return the frame, with the agents' rewards beside their cells."""
        anchors = tuple(shifted(self.middle(cell), (0.3, 0.3)) for cell in agents)
        view = (0.0, 0.0, float(self.columns), float(self.rows))
        return Frame(
            shapes=tuple(self.shapes), view=view, anchors=anchors, seconds_per_step=SECONDS
        )


_ITEMS = {3: "onion", 5: "plate", 9: "soup"}
"""What lies on a counter or is carried, by JaxMARL's number."""
_PLACES = {4: "onions", 6: "plates", 7: "serve"}
_COUNTER, _POT = 2, 8
_FULL = 20
"""Status of a pot with three onions, which then counts down to 0; one with fewer is above."""
_FACING: tuple[Point, ...] = ((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0))
"""North, south, east, west, with y up."""


def kitchen_frame(source: Any, state: Any) -> Frame:
    """Return Overcooked: counters, what lies on them, pots, and agents with what they carry."""
    height, width = source.height, source.width
    margin = (len(state.maze_map) - height) // 2
    cells = np.asarray(state.maze_map)[margin : margin + height, margin : margin + width]
    grid = Grid(height, width)
    for row, column in np.ndindex(height, width):
        cell, kind = (row, column), int(cells[row, column, 0])
        if kind in (_COUNTER, _POT, *_ITEMS, *_PLACES):
            grid.square(cell, WALL, 1.0)
        if kind in _PLACES:
            grid.text(cell, _PLACES[kind])
        elif kind == _POT:
            grid.square(cell, FAINT)
            grid.text(cell, _pot(int(cells[row, column, 2])))
        elif kind in _ITEMS:
            _item(grid, grid.middle(cell), _ITEMS[kind])
    places = [(int(y), int(x)) for x, y in state.agent_pos]
    for agent, cell in enumerate(places):
        grid.agent(agent, cell)
        dx, dy = _FACING[int(state.agent_dir_idx[agent])]
        hand = shifted(grid.middle(cell), (0.3 * dx, 0.3 * dy))
        grid.line(grid.middle(cell), hand, _ON_COLOUR, 0.06)
        if (held := int(state.agent_inv[agent])) in _ITEMS:
            _item(grid, hand, _ITEMS[held])
    return grid.frame(places)


def _pot(status: int) -> str:
    """Return what is in a pot."""
    if status == 0:
        return "soup"
    if status < _FULL:
        return f"cooks {status}"
    return f"{_FULL + 3 - status} of 3"


def _item(grid: Grid, place: Point, item: str) -> None:
    if item in ("plate", "soup"):
        grid.disc(place, 0.19, INK)
        grid.disc(place, 0.17, PLATE)
    if item in ("onion", "soup"):
        grid.disc(place, 0.12, ONION)


def coins_frame(source: Any, state: Any) -> Frame:
    """Return the coin game: two agents and a coin of each one's colour."""
    grid, places = Grid(3, 3), (_cell(state.red_pos), _cell(state.blue_pos))
    for agent, coin in enumerate((state.red_coin_pos, state.blue_coin_pos)):
        grid.disc(grid.middle(_cell(coin)), 0.2, agent_colour(agent))
    for agent, cell in enumerate(places):
        grid.disc(grid.middle(cell), 0.38, agent_colour(agent), filled=False)
    return grid.frame(places)


def warehouse_frame(source: Any, state: Any) -> Frame:
    """Return the warehouse: goals, shelves (green: requested), and robots, ringed with a shelf."""
    grid = Grid(*state.grid.shape[1:])
    for x, y in np.asarray(source.goals).tolist():
        grid.square((y, x), GROUND, 1.0)
    shelves, robots = state.shelves, state.agents
    for cell, is_requested in zip(_cells(shelves.position), shelves.is_requested, strict=True):
        grid.square(cell, TARGET if is_requested else WALL)
    places = _cells(robots.position)
    facing = (_FACING[0], _FACING[2], _FACING[1], _FACING[3])  # up, right, down, left
    for agent, cell in enumerate(places):
        if robots.is_carrying[agent]:
            grid.disc(grid.middle(cell), 0.46, INK)
        grid.agent(agent, cell)
        dx, dy = facing[int(robots.direction[agent])]
        front = shifted(grid.middle(cell), (0.38 * dx, 0.38 * dy))
        grid.line(grid.middle(cell), front, _ON_COLOUR, 0.08)
    return grid.frame(places)


def foraging_frame(source: Any, state: Any) -> Frame:
    """Return foraging: food and agents with their levels, an agent that loads ringed."""
    size = int(source.grid_size)
    grid, food, agents = Grid(size, size), state.food_items, state.agents
    for position, level, eaten in zip(food.position, food.level, food.eaten, strict=True):
        if not eaten:
            grid.square(_cell(position), TARGET, 0.7)
            grid.text(_cell(position), str(int(level)), _ON_COLOUR)
    places = [_cell(position) for position in agents.position]
    for agent, cell in enumerate(places):
        if agents.loading[agent]:
            grid.disc(grid.middle(cell), 0.46, INK)
        grid.agent(agent, cell, str(int(agents.level[agent])))
    return grid.frame(places)


def connector_frame(source: Any, state: Any) -> Frame:
    """Return the connector: each agent's wire, its head (a disc) and its target (a ring)."""
    grid = Grid(*state.grid.shape)
    for row, column in np.argwhere(state.grid > 0).tolist():
        # An agent i writes 3 i + 1 for its path, 3 i + 2 for its head and 3 i + 3 for its target.
        agent, kind = divmod(int(state.grid[row, column]) - 1, 3)
        if kind == 0:
            grid.square((row, column), agent_colour(agent), 0.5)
        elif kind == 1:
            grid.agent(agent, (row, column))
        else:
            grid.disc(grid.middle((row, column)), 0.35, agent_colour(agent), filled=False)
    return grid.frame([_cell(position) for position in state.agents.position])


def _cell(position: Any) -> Cell:
    return int(position[0]), int(position[1])


def _cells(position: Any) -> list[Cell]:
    """Return the cells of Jumanji's positions, whose x are rows."""
    return [(int(x), int(y)) for x, y in zip(position.x, position.y, strict=True)]
