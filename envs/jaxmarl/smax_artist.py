"""SMAX battles as frames: units are discs with the letter of their type and a bar of their health.

Axes: U units, allies first; 2 plane coordinates.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from envs.base import BoolArray, FloatArray
from envs.frames import (
    FAINT,
    INK,
    WALL,
    Caption,
    Circle,
    Frame,
    HealthBar,
    Point,
    Segment,
    Shape,
    agent_colour,
    shifted,
)

ENEMY, ENEMY_HEALTH = INK, "#b8433c"
"""Colours of the enemies and, with their attacks, of their health."""
_ON_UNIT = "#ffffff"
_GRID = 4.0
_MARGIN = 2.5
_LEAST_WIDTH, _LEAST_HEIGHT = 17.5, 14.0
_EDGE = 0.06
_BAR_ABOVE = 0.3
_REWARD_AWAY = np.array((1.1, 1.9))
"""From a unit's edge to the middle of its reward, sideways and up or down."""


class BattleArtist:
    """Draws one battle of a scenario."""

    def __init__(self, source: Any) -> None:
        """`source` is JaxMARL's environment, whose unit types it draws."""
        self.num_allies = int(source.num_allies)
        self.seconds_per_step = float(source.time_per_step * source.world_steps_per_env_step)
        self._size = float(source.map_width), float(source.map_height)
        self._radiuses = np.asarray(source.unit_type_radiuses, np.float64)
        self._full_health = np.asarray(source.unit_type_health, np.float64)
        self._letters = list(source.unit_type_shorthands)
        self._first_attack = int(source.num_movement_actions)

    def frame(self, units: Any) -> Frame:
        """Return a battle: the dead are faint, lines lead to whom the last step attacked.

        `units` is the source's state of this battle, its arrays (U, ...) of NumPy. The view holds
        all living units and moves with them over a grid; walls stand where the map ends.
        """
        positions = np.asarray(units.unit_positions, np.float64)
        places = [(float(x), float(y)) for x, y in positions]
        alive = np.asarray(units.unit_alive, np.bool_)
        order = range(len(places))
        shapes = [*self._ground()]
        shapes += [shape for u in order if not alive[u] for shape in self._fallen(units, u)]
        shapes += self._attacks(units, places)
        shapes += [shape for u in order if alive[u] for shape in self._standing(units, u)]
        shapes += [self._health(units, u) for u in order if alive[u]]
        allies, edges = range(self.num_allies), self._radiuses[units.unit_types]
        return Frame(
            shapes=tuple(shapes),
            view=self._view(positions[alive]),
            anchors=tuple(
                shifted(places[u], (0.7 * edges[u], 0.7 * edges[u])) if alive[u] else None
                for u in allies
            ),
            reward_places=self._reward_places(positions, alive, edges),
            seconds_per_step=self.seconds_per_step,
        )

    def colour(self, unit: int) -> str:
        """Return the agent's colour of an ally, or that of all enemies."""
        return agent_colour(unit) if unit < self.num_allies else ENEMY

    def _view(self, living: FloatArray) -> tuple[float, float, float, float]:
        """Return a box around the (U, 2) living units; the whole map if there are none."""
        width, height = self._size
        if not len(living):
            return 0.0, 0.0, width, height
        low, high = living.min(axis=0) - _MARGIN, living.max(axis=0) + _MARGIN
        middle = (low + high) / 2.0
        half = np.maximum(high - low, (_LEAST_WIDTH, _LEAST_HEIGHT)) / 2.0
        (left, bottom), (right, top) = (middle - half).tolist(), (middle + half).tolist()
        return left, bottom, right, top

    def _ground(self) -> Iterator[Shape]:
        """Yield a grid and the walls around the map, which kill."""
        width, height = self._size
        for x in np.arange(_GRID, width, _GRID).tolist():
            yield Segment(start=(x, 0.0), end=(x, height), colour=FAINT)
        for y in np.arange(_GRID, height, _GRID).tolist():
            yield Segment(start=(0.0, y), end=(width, y), colour=FAINT)
        corners = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
        for start, end in zip(corners, (*corners[1:], corners[0]), strict=True):
            yield Segment(start=start, end=end, colour=WALL, width=0.2)

    def _attacks(self, units: Any, places: list[Point]) -> Iterator[Shape]:
        """Yield a line from each living attacker to its target in the last step.

        The source numbers an ally's targets upwards from the first enemy, an enemy's downwards
        from the last ally.
        """
        for unit, action in enumerate(np.asarray(units.prev_attack_actions).tolist()):
            choice = action - self._first_attack
            if choice < 0 or not units.unit_alive[unit]:
                continue
            is_ally = unit < self.num_allies
            target = self.num_allies + choice if is_ally else self.num_allies - 1 - choice
            colour = agent_colour(unit) if is_ally else ENEMY_HEALTH
            yield Segment(start=places[unit], end=places[target], colour=colour, width=0.1)

    def _fallen(self, units: Any, unit: int) -> Iterator[Shape]:
        """Yield a dead unit's ring and letter, both faint."""
        place, radius, letter = self._look(units, unit)
        yield Circle(centre=place, radius=radius, colour=FAINT, filled=False)
        yield Caption(position=place, text=letter, colour=WALL)

    def _standing(self, units: Any, unit: int) -> Iterator[Shape]:
        """Yield a living unit's disc, with a pale edge, and its letter."""
        place, radius, letter = self._look(units, unit)
        yield Circle(centre=place, radius=radius + _EDGE, colour=_ON_UNIT)
        yield Circle(centre=place, radius=radius - _EDGE, colour=self.colour(unit))
        yield Caption(position=place, text=letter, colour=_ON_UNIT)

    def _health(self, units: Any, unit: int) -> HealthBar:
        """Return the bar above a living unit."""
        place, radius, _ = self._look(units, unit)
        full = float(self._full_health[units.unit_types[unit]])
        return HealthBar(
            position=shifted(place, (0.0, radius + _BAR_ABOVE)),
            width=2.2 * radius,
            share=float(units.unit_health[unit]) / full,
            colour=self.colour(unit) if unit < self.num_allies else ENEMY_HEALTH,
        )

    def _look(self, units: Any, unit: int) -> tuple[Point, float, str]:
        """Return a unit's place, radius and letter."""
        (x, y), kind = units.unit_positions[unit], int(units.unit_types[unit])
        return (float(x), float(y)), float(self._radiuses[kind]), self._letters[kind]

    def _reward_places(
        self, positions: FloatArray, alive: BoolArray, edges: FloatArray
    ) -> tuple[Point, ...]:
        """Return places beside the allies, on the side away from the enemies."""
        allies, enemies = positions[: self.num_allies], positions[self.num_allies :]
        facing = enemies[alive[self.num_allies :]]
        towards = facing.mean(axis=0) if len(facing) else allies.mean(axis=0)
        away = allies - towards
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
        places = allies + away * (edges[: self.num_allies, None] + _REWARD_AWAY)
        return tuple((float(x), float(y)) for x, y in places)
