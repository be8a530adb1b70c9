"""Pictures as a film's file: a GIF, or an MP4 with the extra ``video``."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from marl.config import ConfigError

FORMATS = ("gif", "mp4")
_COLOURS = 64
"""Of a GIF's palette."""
_PALETTE_SAMPLES = 12
"""Pictures that the palette is made from."""


def write_movie(
    path: Path, file_format: str, pictures: Iterator[Image.Image], frame_ms: int
) -> None:
    """Write pictures of one size, each shown `frame_ms`, in one of `FORMATS`."""
    if file_format == "mp4":
        _write_mp4(path, pictures, frame_ms)
    else:
        _write_gif(path, pictures, frame_ms)


def movie_format(path: Path) -> str:
    """Return the format of a file by its suffix, if it is one that can be written here."""
    name = path.suffix.removeprefix(".").lower()
    if name not in FORMATS:
        raise ConfigError(f"{path} ends in {path.suffix!r}; expected .gif or .mp4")
    if name == "mp4":
        _av()
    return name


def _write_gif(path: Path, pictures: Iterator[Image.Image], frame_ms: int) -> None:
    """Write a GIF that loops; one palette for all pictures keeps it small and calm."""
    first = list(itertools.islice(pictures, _PALETTE_SAMPLES))
    palette = _palette(first)
    frames = (
        picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in itertools.chain(first, pictures)
    )
    opening = next(frames)
    opening.save(
        path,
        format="GIF",
        save_all=True,
        append_images=frames,
        duration=frame_ms,
        loop=0,
        optimize=False,
    )


def _palette(pictures: list[Image.Image]) -> Image.Image:
    """Return a picture whose palette serves all of these."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, height * len(pictures)))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (0, i * height))
    return sheet.quantize(_COLOURS, kmeans=1)


def _write_mp4(path: Path, pictures: Iterator[Image.Image], frame_ms: int) -> None:
    """Write H.264; players want even sizes, so an odd last row or column is cut off."""
    with _av().open(str(path), "w", format="mp4") as container:
        first = next(pictures)
        stream = container.add_stream("libx264", rate=Fraction(1000, frame_ms))
        stream.width, stream.height = (side // 2 * 2 for side in first.size)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20"}
        for picture in itertools.chain([first], pictures):
            even = picture.crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(_av().VideoFrame.from_image(even)))
        container.mux(stream.encode())


def _av() -> Any:
    """Return PyAV, or say how to get it."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "MP4 needs the extra video: pip install -c constraints.txt '.[video]'; "
            "or write a GIF with --format gif"
        ) from error
    return av
