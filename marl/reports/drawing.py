"""A frame as a picture, with a bar of the local reward beside each agent.

Edges are smooth: everything is drawn twice as large and then averaged. Axes: N agents.
"""

import base64
import io
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from envs.frames import (
    Caption,
    Circle,
    Frame,
    HealthBar,
    Picture,
    Point,
    Polygon,
    Segment,
    Shape,
    agent_colour,
)

SCALE = 2
BACKGROUND = "#fbfaf7"
Box = tuple[float, float, float, float]
_METER_WIDTH, _METER_HEIGHT = 10.0, 48.0
_OFFSET_X, _OFFSET_Y = 26.0, -34.0
"""From an agent to the middle of its bar, in pixels."""
_EDGE = "#a9a59b"


class Canvas:
    """A picture of width x height pixels; coordinates are pixels from its top left."""

    def __init__(self, width: int, height: int, colour: str = BACKGROUND) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), colour)
        self._draw = ImageDraw.Draw(self._image)

    def image(self) -> Image.Image:
        """Return the picture at its own size."""
        return self._image.reduce(SCALE)

    def line(self, points: list[Point], colour: str, width: float = 1.0) -> None:
        """Draw a line through points."""
        thickness = max(1, round(width * SCALE))
        self._draw.line(_scaled(points), fill=colour, width=thickness, joint="curve")

    def capsule(self, start: Point, end: Point, colour: str, width: float) -> None:
        """Draw a thick line with round ends."""
        self.line([start, end], colour, width)
        for centre in (start, end):
            self.disc(centre, width / 2.0, colour)

    def disc(self, centre: Point, radius: float, colour: str) -> None:
        """Draw a filled circle."""
        self._draw.ellipse(_scaled_box(_around(centre, radius)), fill=colour)

    def ring(self, centre: Point, radius: float, colour: str, width: float = 2.0) -> None:
        """Draw a circle."""
        box = _scaled_box(_around(centre, radius))
        self._draw.ellipse(box, outline=colour, width=round(width * SCALE))

    def polygon(self, points: list[Point], colour: str) -> None:
        """Draw a filled polygon."""
        if len(points) > 1:
            self._draw.polygon(_scaled(points), fill=colour)

    def panel(self, box: Box, colour: str, outline: str | None = None, radius: float = 2.0) -> None:
        """Draw a rectangle with round corners; the box is left, top, right, bottom."""
        if box[2] <= box[0] or box[3] <= box[1]:
            return
        self._draw.rounded_rectangle(
            _scaled_box(box), radius * SCALE, fill=colour, outline=outline, width=SCALE
        )

    def picture(self, content: bytes, corner: Point, size: Point) -> None:
        """Paste an encoded picture; the corner is its top left, the size width and height."""
        width, height = (max(1, round(side * SCALE)) for side in size)
        with Image.open(io.BytesIO(content)) as image:
            pasted = image.convert("RGB").resize((width, height))
        x, y = corner
        self._image.paste(pasted, (round(x * SCALE), round(y * SCALE)))

    def text(
        self,
        at: Point,
        text: str,
        colour: str,
        size: int = 11,
        anchor: str = "la",
        bold: bool = False,
    ) -> None:
        """Write text; `anchor` is Pillow's, e.g. ``la``: left and top, ``mm``: the middle."""
        x, y = at
        font = _font(size * SCALE, bold)
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=font, anchor=anchor)


def text_width(text: str, size: int, bold: bool = False) -> float:
    """Return the pixels that a text is wide."""
    return _font(size * SCALE, bold).getlength(text) / SCALE


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """Return the typeface that comes with matplotlib, so that films look alike everywhere."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _around(centre: Point, radius: float) -> Box:
    x, y = centre
    return x - radius, y - radius, x + radius, y + radius


def _scaled(points: list[Point]) -> list[Point]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def _scaled_box(box: Box) -> Box:
    left, top, right, bottom = box
    return left * SCALE, top * SCALE, right * SCALE, bottom * SCALE


class Projection:
    """World coordinates to pixels: the view fits in whole, and is centred."""

    def __init__(self, view: tuple[float, float, float, float], width: int, height: int) -> None:
        left, bottom, right, top = view
        self.scale = min(width / (right - left), height / (top - bottom))
        """Pixels in a world unit."""
        self._x = width / 2.0 - self.scale * (left + right) / 2.0
        self._y = height / 2.0 + self.scale * (bottom + top) / 2.0

    def __call__(self, point: Point) -> Point:
        """Return the pixel of a point."""
        return self._x + self.scale * point[0], self._y - self.scale * point[1]


def paint_scene(
    frame: Frame, local: Sequence[float] | None, width: int, height: int
) -> Image.Image:
    """Return a frame's picture; `local` are (N,) rewards from -1 (bar down) to 1 (bar up)."""
    canvas = Canvas(width, height)
    to_pixels = Projection(frame.view, width, height)
    for shape in frame.shapes:
        _paint(canvas, shape, to_pixels)
    if local is not None:
        _paint_meters(canvas, frame, local, to_pixels)
    return canvas.image()


def _paint(canvas: Canvas, shape: Shape, to_pixels: Projection) -> None:
    match shape:
        case Segment(width=0.0):
            canvas.line([to_pixels(shape.start), to_pixels(shape.end)], shape.colour)
        case Segment():
            width = shape.width * to_pixels.scale
            canvas.capsule(to_pixels(shape.start), to_pixels(shape.end), shape.colour, width)
        case Circle(filled=True):
            radius = shape.radius * to_pixels.scale
            canvas.disc(to_pixels(shape.centre), radius, shape.colour)
        case Circle():
            radius = shape.radius * to_pixels.scale
            canvas.ring(to_pixels(shape.centre), radius, shape.colour)
        case Polygon():
            canvas.polygon(list(map(to_pixels, shape.points)), shape.colour)
        case Caption():
            canvas.text(to_pixels(shape.position), shape.text, shape.colour, 10, "mm")
        case Picture():
            canvas.picture(
                base64.b64decode(shape.jpeg),
                to_pixels((shape.corner[0], shape.corner[1] + shape.height)),
                (shape.width * to_pixels.scale, shape.height * to_pixels.scale),
            )
        case HealthBar():
            _paint_health(canvas, shape, to_pixels)


def _paint_health(canvas: Canvas, bar: HealthBar, to_pixels: Projection) -> None:
    """Draw a bar 4 pixels high; its left share has the colour."""
    x, y = to_pixels(bar.position)
    half = bar.width * to_pixels.scale / 2.0
    filled = min(max(bar.share, 0.0), 1.0)
    canvas.panel((x - half, y - 2, x + half, y + 2), "#d9d5cc", radius=1)
    canvas.panel((x - half, y - 2, x - half + 2 * half * filled, y + 2), bar.colour, radius=1)


def _paint_meters(
    canvas: Canvas, frame: Frame, local: Sequence[float], to_pixels: Projection
) -> None:
    """Draw the agents' bars, each tied to its agent by a thin line."""
    ties = {i: to_pixels(at) for i, at in enumerate(frame.anchors) if at is not None}
    if frame.reward_places:
        places = {i: to_pixels(frame.reward_places[i]) for i in ties}
    else:
        places = {i: (x + _OFFSET_X, y + _OFFSET_Y) for i, (x, y) in ties.items()}
    height = _METER_HEIGHT
    if places == ties:  # rows: the bars lie on the anchors and must fit between each other
        rows = sorted({y for _, y in ties.values()})
        height = min([height, *(0.85 * (low - high) for high, low in itertools.pairwise(rows))])
    else:
        spread = spread_out(list(places.values()), canvas.width, canvas.height)
        places = dict(zip(ties, spread, strict=True))
        for agent, (x, y) in places.items():
            tie = ties[agent]
            is_below = tie[1] > y + height / 2.0 and abs(tie[0] - x) < height
            end = (x, y + height / 2.0) if is_below else (x - _METER_WIDTH / 2.0, y)
            canvas.line([tie, end], _EDGE)
            canvas.disc(tie, 2.5, "#ffffff")
    for agent, place in places.items():
        _paint_meter(canvas, place, height, local[agent], agent_colour(agent))


def _paint_meter(canvas: Canvas, at: Point, height: float, value: float, colour: str) -> None:
    """Draw a bar up or down from the middle of its case."""
    (x, y), half_width, half_height = at, _METER_WIDTH / 2.0, height / 2.0
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    canvas.panel(box, "#ffffff", _EDGE)
    level = y - min(max(value, -1.0), 1.0) * (half_height - 1.0)
    filled = (x - half_width + 1.5, min(y, level), x + half_width - 1.5, max(y, level))
    canvas.panel(filled, colour, radius=0)
    canvas.line([(x - half_width - 2, y), (x + half_width + 2, y)], "#6d7077")


def spread_out(places: list[Point], width: float, height: float) -> list[Point]:
    """Return places for bars near the given ones: inside the picture, pushed apart sideways."""
    apart_x, apart_y = _METER_WIDTH + 6.0, _METER_HEIGHT + 4.0
    half = _METER_HEIGHT / 2.0 + 2.0
    xs = [x for x, _ in places]
    ys = [min(max(y, half), height - half) for _, y in places]
    order = sorted(range(len(places)), key=lambda i: xs[i])
    for _ in range(12):
        for k, i in enumerate(order):
            for j in order[k + 1 :]:
                gap = apart_x - (xs[j] - xs[i])
                if gap > 0 and abs(ys[i] - ys[j]) < apart_y:
                    xs[i], xs[j] = xs[i] - gap / 2.0, xs[j] + gap / 2.0
    inside = [min(max(x, _METER_WIDTH), width - _METER_WIDTH) for x in xs]
    return list(zip(inside, ys, strict=True))
