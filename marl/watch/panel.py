"""The column beside the scene: time, return so far, and traces of the rewards.

Axes: T steps of the episode, R rows (the team's reward and each agent's).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from envs.frames import INK, agent_colour
from marl.watch.canvas import Canvas, text_width
from marl.watch.play import Array, Play

WIDTH = 190
_WINDOW = 100
"""Steps a trace shows; longer episodes move through."""
_MARGIN, _TOP, _BOTTOM = 14, 92, 12
_ROW_HEIGHT, _MOST_ROW_HEIGHT = 17, 58
_PAPER, _RULE, _QUIET = "#f3f1ec", "#d3cfc5", "#7d8087"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trace."""

    name: str
    colour: str
    values: Array
    """(T,) in [-1, 1]."""


def panel_height(num_rows: int) -> int:
    """Return the pixels that a panel of so many rows needs at least."""
    return _TOP + _BOTTOM + num_rows * _ROW_HEIGHT


def reward_rows(play: Play) -> tuple[Row, ...]:
    """Return the learned rewards, each kind on one scale; where there are none, the task's own."""
    if play.team is None:
        return (Row(name="task", colour=INK, values=scaled(play.rewards)),)
    team = Row(name="team", colour=INK, values=scaled(play.team))
    if play.local is None:
        return (team,)
    local = scaled(play.local)
    agents = (
        Row(name=name, colour=agent_colour(i), values=local[:, i])
        for i, name in enumerate(play.agents)
    )
    return (team, *agents)


def scaled(values: Array) -> Array:
    """Return values so that the 98th percentile of their size is 1, cut to [-1, 1]."""
    most = float(np.quantile(np.abs(values), 0.98)) or float(np.abs(values).max()) or 1.0
    clipped: Array = np.clip(values / most, -1.0, 1.0)
    return clipped


class Panel:
    """Draws the column of a play."""

    def __init__(self, play: Play, rows: tuple[Row, ...], title: str, detail: str) -> None:
        self._play, self._rows = play, rows
        self._title, self._detail = title, detail
        self._returns = play.rewards.cumsum()
        self._kind = "task rewards" if play.team is None else "learned rewards"

    def paint(self, step: int, height: int) -> Image.Image:
        """Return the column at a step, from 0."""
        canvas = Canvas(WIDTH, height, _PAPER)
        canvas.line([(0, 0), (0, height)], _RULE)
        room = WIDTH - 2 * _MARGIN
        canvas.text(
            (_MARGIN, 12), self._title, INK, fitting(self._title, 11, room, True), bold=True
        )
        canvas.text((_MARGIN, 28), self._detail, _QUIET, fitting(self._detail, 9, room))
        seconds = step * self._play.frames[0].seconds_per_step
        right = WIDTH - _MARGIN
        for y, name, value in (
            (46, "time", f"{seconds:.1f} s   step {step + 1}"),
            (60, "return so far", f"{self._returns[step]:,.1f}"),
        ):
            canvas.text((_MARGIN, y), name, _QUIET, 10)
            canvas.text((right, y), value, INK, 10, "ra")
        canvas.text((_MARGIN, 78), self._kind, _QUIET, 9)
        pitch = min((height - _TOP - _BOTTOM) / len(self._rows), _MOST_ROW_HEIGHT)
        for i, row in enumerate(self._rows):
            self._paint_row(canvas, row, step, _TOP + i * pitch, pitch)
        return canvas.image()

    def _paint_row(self, canvas: Canvas, row: Row, step: int, top: float, pitch: float) -> None:
        """Draw one trace up to a step, with its name at the left."""
        left, right = _MARGIN + 56.0, WIDTH - _MARGIN
        middle, half = top + pitch / 2.0, pitch / 2.0 - 2.0
        canvas.disc((_MARGIN + 4.0, middle), 4.0, row.colour)
        canvas.text((_MARGIN + 13.0, middle), row.name, INK, fitting(row.name, 9, 42), "lm")
        canvas.line([(left, middle), (right, middle)], _RULE)
        length = min(_WINDOW, len(row.values))
        first = max(0, step + 1 - length)
        shown = row.values[first : step + 1].tolist()
        pixels = (right - left) / length
        line = [(left + (i + 0.5) * pixels, middle - half * v) for i, v in enumerate(shown)]
        area = [(line[0][0], middle), *line, (line[-1][0], middle)]
        canvas.polygon(area, tint(row.colour))
        if len(line) > 1:
            canvas.line(line, row.colour, 1.5)
        canvas.disc(line[-1], 2.5, row.colour)


def fitting(text: str, size: int, room: float, bold: bool = False) -> int:
    """Return the largest size, at most the given one and at least 5, at which a text fits."""
    while size > 5 and text_width(text, size, bold) > room:
        size -= 1
    return size


def tint(colour: str) -> str:
    """Return a colour mixed with three parts of the panel's paper."""
    parts = [(int(colour[i : i + 2], 16) + 3 * int(_PAPER[i : i + 2], 16)) // 4 for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)
