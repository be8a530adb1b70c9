"""Drawing with smooth edges: everything is drawn twice as large and then averaged."""

from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from envs.frames import Point

SCALE = 2
BACKGROUND = "#fbfaf7"
Box = tuple[float, float, float, float]


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
