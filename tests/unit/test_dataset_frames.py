"""Frames of a preference dataset's episodes."""

import gzip
import json
from pathlib import Path

import pytest

from envs import Frame, make_env
from envs.frames import Circle
from marl.preferences.dataset.footage import (
    EpisodeFrames,
    Footage,
    filmed_episodes,
    frames_path,
    read_frames,
    write_frames,
)
from marl.preferences.dataset.untrusted import DatasetError


def frames(count: int) -> list[Frame]:
    """Return frames that tell their number by a circle's radius."""
    return [
        Frame(
            shapes=(Circle(centre=(0.1, 1 / 3), radius=float(n), colour="#000000"),),
            view=(0.0, 0.0, 1.0, 1.0),
            anchors=(None,),
        )
        for n in range(count)
    ]


def filmed(count: int) -> EpisodeFrames:
    """Return what is kept of an episode of so many frames."""
    footage = Footage()
    for frame in frames(count):
        footage.take(lambda frame=frame: frame)  # type: ignore[misc]  # bound in the loop
    return footage.episode()


def test_frames_survive_the_trip_to_the_disk_at_seven_digits(tmp_path: Path) -> None:
    write_frames(tmp_path, 3, filmed(2))
    assert (tmp_path / "frames" / "000003.json.gz").exists()
    back = read_frames(tmp_path, 3)
    assert back.steps == (0, 1)
    assert back.frames[1].shapes == (Circle(centre=(0.1, 0.3333333), radius=1.0, colour="#000000"),)


def test_frames_of_a_shipped_environment_come_back(tmp_path: Path) -> None:
    env = make_env("particles/nav_6", 1)
    env.reset(0)
    frame = env.frame(0)  # type: ignore[attr-defined]  # particles can be seen
    write_frames(tmp_path, 0, EpisodeFrames(steps=(0,), frames=(frame,)))
    (back,) = read_frames(tmp_path, 0).frames
    assert len(back.shapes) == len(frame.shapes)
    assert back.view == pytest.approx(frame.view)


def test_a_long_episode_keeps_every_so_many_th_step() -> None:
    # 301 frames are one too many: every second stays; the same happens at step 600 of those.
    kept = filmed(1000)
    assert kept.steps == tuple(range(0, 1000, 4))
    assert [int(frame.shapes[0].radius) for frame in kept.frames] == list(kept.steps)  # type: ignore[union-attr]  # circles


def test_an_episode_of_300_frames_is_kept_whole() -> None:
    assert filmed(300).steps == tuple(range(300))


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 13])
def test_footage_continues_from_its_state(cut: int) -> None:
    whole, before, after = Footage(most=5), Footage(most=5), Footage(most=5)
    for step, frame in enumerate(frames(20)):
        if step == cut:
            after.load_state_dict(before.state_dict())
        for footage in (whole, before if step < cut else after):
            footage.take(lambda frame=frame: frame)  # type: ignore[misc]  # bound in the loop
    assert after.episode() == whole.episode()


def test_unwanted_frames_are_never_looked_at() -> None:
    looked = 0

    def look() -> Frame:
        nonlocal looked
        looked += 1
        return frames(1)[0]

    footage = Footage(most=10)
    for _ in range(1000):
        footage.take(look)
    # 11 frames to step 10, then five more and one too many for each of seven strides.
    assert looked < 60


def test_filmed_episodes_are_listed_in_order(tmp_path: Path) -> None:
    assert filmed_episodes(tmp_path) == []
    for number in (20, 3, 1_000_000):
        write_frames(tmp_path, number, filmed(1))
    (tmp_path / "frames" / "notes.json.gz").write_bytes(b"")
    assert filmed_episodes(tmp_path) == [3, 20, 1_000_000]


def test_missing_and_damaged_frames_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="episode 4 was not filmed"):
        read_frames(tmp_path, 4)
    write_frames(tmp_path, 4, filmed(3))
    path = frames_path(tmp_path, 4)
    whole = path.read_bytes()
    content = json.loads(gzip.decompress(whole))
    damaged = [whole[:40], b"", b"plain", gzip.compress(b"[]"), gzip.compress(b"{}")]
    fewer = json.dumps(content | {"steps": [0]}).encode()
    for bad in [*damaged, gzip.compress(fewer)]:
        path.write_bytes(bad)
        with pytest.raises(DatasetError, match=r"000004\.json\.gz is damaged"):
            read_frames(tmp_path, 4)


def test_nothing_is_left_of_a_write(tmp_path: Path) -> None:
    write_frames(tmp_path, 1, filmed(3))
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["000001.json.gz"]
