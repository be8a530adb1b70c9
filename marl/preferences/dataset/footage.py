"""What the episodes of a preference dataset look like: ``frames/000003.json.gz``.

Each file holds the frames of some steps of one episode (`envs.frames`) and the numbers of those
steps, so that people can judge the episode without the environment at hand.
"""

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import EnvError, Frame
from marl.utils.checkpoint import write_whole

MOST_FRAMES = 300
"""Frames kept of an episode; of a longer one every second, fourth, ... step is shown."""


class FramesError(ValueError):
    """An episode's frames are missing or damaged."""


@dataclass(frozen=True, kw_only=True)
class EpisodeFrames:
    """Some moments of one episode."""

    steps: tuple[int, ...]
    """The step, from 0, that each frame shows the beginning of."""
    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.frames) or not self.frames:
            raise FramesError(
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
        """Return one that goes on from here by itself."""
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
    """Write the frames of an episode, packed or not, into a dataset, whole or not at all."""
    path = frames_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, episode if isinstance(episode, bytes) else packed(episode))


def packed(episode: EpisodeFrames) -> bytes:
    """Return frames as they are kept in a file, the same bytes for the same frames."""
    content = {
        "steps": list(episode.steps),
        "frames": [_short(frame.to_json()) for frame in episode.frames],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def read_frames(folder: Path, number: int) -> EpisodeFrames:
    """Return the frames of an episode of a dataset, or raise `FramesError` if there are none."""
    path = frames_path(folder, number)
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        frames = tuple(map(Frame.from_json, content["frames"]))
        return EpisodeFrames(steps=tuple(map(int, content["steps"])), frames=frames)
    except FileNotFoundError:
        raise FramesError(f"{path} is missing: episode {number} was not filmed") from None
    except (OSError, EOFError, zlib.error, LookupError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, EnvError | FramesError) else type(error).__name__
        raise FramesError(
            f"{path} is damaged ({reason}); delete it, and the episode is not shown any more"
        ) from error


def filmed_episodes(folder: Path) -> list[int]:
    """Return the numbers of a dataset's episodes that have frames, in order."""
    names = (path.name.removesuffix(".json.gz") for path in folder.glob("frames/*.json.gz"))
    return sorted(int(name) for name in names if name.isdecimal())


def _short(value: Any) -> Any:
    """Return nested values with numbers of seven digits, which halves a file unseen."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value
