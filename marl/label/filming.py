"""Episodes of a trained team for people to compare."""

from pathlib import Path

from marl.policy import Policy
from marl.preferences.sets.frames import Footage, filmed_episodes, write_frames
from marl.watch.play import play


def missing_episodes(folder: Path, count: int) -> list[int]:
    """Return the numbers of those of the first `count` episodes that a set has no frames of."""
    return sorted(set(range(count)) - set(filmed_episodes(folder)))


def film_episode(policy: Policy, folder: Path, number: int) -> None:
    """Play an episode by sampled actions into a set.

    Its number is its seed: the same policy always plays the same episode.
    """
    footage = Footage()
    for frame in play(policy, None, greedy=False, seed=number).frames:
        footage.take(lambda frame=frame: frame)  # type: ignore[misc]  # called before the next
    write_frames(folder, number, footage.episode())
