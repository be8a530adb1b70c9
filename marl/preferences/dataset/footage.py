"""What the episodes of a preference dataset look like: ``frames/000003.json.gz``.

Each file holds the frames of some steps of one episode (`envs.frames`) and the numbers of those
steps, so that people can judge the episode without the environment at hand.
"""

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import Frame
from marl.preferences.dataset.untrusted import (
    REMEDY,
    DatasetError,
    inflated,
    numbers_in,
    read_file,
)
from marl.utils.files import atomic_write, make_folder
from marl.utils.text import one_line

MOST_FRAMES = 300
"""Frames kept of an episode; of a longer one every second, fourth, ... step is shown."""
MAX_BYTES = 32 * 2**20
"""Of a file of frames, as JSON."""


@dataclass(frozen=True, kw_only=True)
class EpisodeFrames:
    """Some moments of one episode."""

    steps: tuple[int, ...]
    """The step, from 0, that each frame shows the beginning of."""
    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.frames) or not self.frames:
            raise DatasetError(
                f"an episode has {len(self.frames)} frames of {len(self.steps)} steps; expected "
                "one frame for each step, and at least one"
            )


class Footage:
    """Collects the frames of a running episode; of a longer one it keeps fewer of the steps."""

    def __init__(self, most: int = MOST_FRAMES) -> None:
        self._most = most
        self._kept: list[tuple[int, Frame]] = []
        self._stride = 1
        self._step = 0

    def take(self, look: Callable[[], Frame]) -> None:
        """Count a step, and look at it if its frame is to be kept."""
        if self._step % self._stride == 0:
            self._kept.append((self._step, look()))
            if len(self._kept) > self._most:
                self._kept = self._kept[::2]
                self._stride *= 2
        self._step += 1

    def copy(self) -> "Footage":
        """Return an independent copy."""
        footage = Footage(self._most)
        footage._kept, footage._stride, footage._step = self._kept.copy(), self._stride, self._step
        return footage

    def episode(self) -> EpisodeFrames:
        """Return what was kept."""
        steps, frames = zip(*self._kept, strict=True)
        return EpisodeFrames(steps=steps, frames=frames)

    def state_dict(self) -> dict[str, Any]:
        """Return the frames as JSON text, and the counts."""
        kept = [[step, frame.to_json()] for step, frame in self._kept]
        return {"kept": json.dumps(kept), "stride": self._stride, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        kept = json.loads(state["kept"])
        self._kept = [(step, Frame.from_json(frame)) for step, frame in kept]
        self._stride, self._step = state["stride"], state["step"]


def frames_path(folder: Path, number: int) -> Path:
    """Return where a dataset keeps the frames of an episode."""
    return folder / "frames" / f"{number:06d}.json.gz"


def write_frames(folder: Path, number: int, episode: EpisodeFrames | bytes) -> None:
    """Write the frames of an episode, packed or not, into a dataset atomically."""
    path = frames_path(folder, number)
    make_folder(path.parent)
    atomic_write(path, episode if isinstance(episode, bytes) else packed(episode))


def packed(episode: EpisodeFrames) -> bytes:
    """Return frames as they are kept in a file, the same bytes for the same frames.

    Where they would take more than `MAX_BYTES`, every second one is left out.
    """
    content = {
        "steps": list(episode.steps),
        "frames": [_short(frame.to_json()) for frame in episode.frames],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_BYTES and len(episode.steps) > 1:
        return packed(EpisodeFrames(steps=episode.steps[::2], frames=episode.frames[::2]))
    return gzip.compress(text, compresslevel=6, mtime=0)


def read_frames(folder: Path, number: int) -> EpisodeFrames:
    """Return the frames of an episode of a dataset; `DatasetError` if missing or damaged."""
    path = frames_path(folder, number)
    if not path.exists():
        raise DatasetError(f"{path} is missing: episode {number} was not filmed")
    content = read_file(path, MAX_BYTES)
    try:
        data = json.loads(
            inflated(content, MAX_BYTES),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_finite_int,
        )
        frames = tuple(map(Frame.from_json, data["frames"]))
        return EpisodeFrames(steps=tuple(map(int, data["steps"])), frames=frames)
    except (LookupError, TypeError, ValueError, RecursionError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
    raise DatasetError(f"{path} is damaged ({one_line(reason, 200)}); {REMEDY}")


def filmed_episodes(folder: Path, *, skip_damaged: bool = False) -> list[int]:
    """Return the numbers of a dataset's episodes that have frames, in order."""
    return numbers_in(folder / "frames", ".json.gz", skip_damaged=skip_damaged)


def _finite(text: str) -> float:
    """Return a number in JSON, or raise `ValueError` if a browser could not count with it."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {one_line(text)}")
    return value


def _finite_int(text: str) -> int:
    return int(_finite(text))


def _short(value: Any) -> Any:
    """Return nested values with numbers of seven digits, which halves a file unseen."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value
