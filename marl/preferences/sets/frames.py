"""What the episodes of a preference set look like: ``frames/000003.json.gz``.

Each file holds the frames of some steps of one episode (`envs.frames`) and the numbers of those
steps, so that people can judge the episode without the environment at hand.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs import EnvError, Frame
from marl.disk import write_whole

MOST_FRAMES = 300
"""Frames kept of an episode; of a longer one, every so many-th step is shown."""


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


def thinned(frames: list[Frame], most: int = MOST_FRAMES) -> EpisodeFrames:
    """Return every so many-th of an episode's frames, at most `most`, its last one among them."""
    stride = -(-len(frames) // most)
    steps = tuple(range(len(frames) - 1, -1, -stride))[::-1]
    return EpisodeFrames(steps=steps, frames=tuple(frames[step] for step in steps))


def frames_path(folder: Path, number: int) -> Path:
    """Return where a set keeps the frames of an episode."""
    return folder / "frames" / f"{number:06d}.json.gz"


def write_frames(folder: Path, number: int, episode: EpisodeFrames) -> None:
    """Write the frames of an episode into a set, whole or not at all."""
    content = {
        "steps": list(episode.steps),
        "frames": [_short(frame.to_json()) for frame in episode.frames],
    }
    path = frames_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    write_whole(path, gzip.compress(text.encode(), mtime=0))


def read_frames(folder: Path, number: int) -> EpisodeFrames:
    """Return the frames of an episode of a set, or raise `FramesError` if there are none."""
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
    """Return the numbers of a set's episodes that have frames, in order."""
    names = (path.name.removesuffix(".json.gz") for path in folder.glob("frames/*.json.gz"))
    return sorted(int(name) for name in names if name.isdecimal())


def _short(value: Any) -> Any:
    """Return nested values with numbers of seven digits, which halves a file unseen."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value
