"""`marl watch` films any run, and says what is missing."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from envs import Frame
from envs.frames import frame_of
from marl.data.types import Transitions
from marl.policy import Policy
from marl.reports.video import FilmOptions, film_run, load_team, play
from marl.utils import checkpoint
from marl.utils.checkpoint import load_checkpoint, read_checkpoint
from marl.utils.seeding import Seeds
from tests.command_line import QUICK, run


def trained(folder: Path, changes: Sequence[str] = ()) -> Path:
    """Return the folder of a tiny run."""
    assert run("train", *QUICK, *changes, "--run-dir", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def imap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that has learned local rewards."""
    return trained(tmp_path_factory.mktemp("watch") / "imap")


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose learned rewards are recurrent."""
    return trained(tmp_path_factory.mktemp("watch") / "gru", ["--reward.recurrence=gru"])


def test_a_run_becomes_a_film(imap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("watch", str(imap), "--width", "400") == 0
    with Image.open(imap / "episode.gif") as movie:
        assert movie.n_frames == 25
        assert movie.size == (400, 224)
        assert movie.info["duration"] == 100
    captured = capsys.readouterr()
    shown = captured.out
    assert captured.err == ""
    assert not shown.startswith("\n")
    assert "25 frames of an episode of 25 steps" in shown
    assert "learned no reward" not in shown


def test_a_film_can_be_cut_and_put_elsewhere(
    imap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "film.gif"
    options = ["--max-frames", "4", "--speed", "2", "--fps", "10", "--sampled", "--episode", "1"]
    assert run("watch", str(imap), "--out", str(output), *options) == 0
    with Image.open(output) as movie:
        assert movie.n_frames == 4
    # Two steps of .1 s at twice the speed make a frame: the fourth shows the seventh step.
    assert "it ends at step 7; --max-frames or --speed" in capsys.readouterr().out


def test_the_case_of_a_suffix_is_free(imap: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    for name, options in (("film.MP4", []), ("again.Mp4", ["--format", "mp4"]), ("a.GIF", [])):
        output = tmp_path / name
        assert run("watch", str(imap), "--out", str(output), "--max-frames", "2", *options) == 0
        head = output.read_bytes()[:12]
        assert head.startswith(b"GIF") if name == "a.GIF" else head[4:8] == b"ftyp"


def test_the_same_episode_plays_again(imap: Path) -> None:
    plays = [
        play(*load_team(imap), greedy=True, seed=seed, episode=episode)
        for seed, episode in ((1, 1), (1, 1), (1, 0), (2, 1))
    ]
    assert plays[0].frames == plays[1].frames
    assert plays[0].frames not in (plays[2].frames, plays[3].frames)
    assert plays[0].local is not None
    assert plays[1].local is not None
    np.testing.assert_array_equal(plays[0].local, plays[1].local)


@dataclass(frozen=True, kw_only=True)
class Walked:
    """An episode that was stepped through by hand, T steps of one copy."""

    frames: tuple[Frame, ...]
    paid: list[float]
    transitions: Transitions
    done: torch.Tensor


def walked(policy: Policy, seed: int, episode: int) -> Walked:
    """Return the `episode`-th episode (from 0) of the greedy team, whose steps are 25 each."""
    frames, paid, rows = [], [], []
    with policy.open_env(1) as env:
        step = env.reset(Seeds(seed).integer("evaluation environment"))
        for t in range(25 * (episode + 1)):
            actions = policy.act(step.obs, greedy=True)
            seen = {"obs": step.obs.copy(), "state": step.state.copy(), "actions": actions}
            frame = frame_of(env, 0, step, actions)
            step = env.step(actions)
            led = {"next_obs": step.final_obs, "next_state": step.final_state}
            if t >= 25 * episode:
                frames.append(frame)
                paid.append(float(env.hidden_rewards()[0]))  # type: ignore[attr-defined]  # particles
                rows.append(
                    seen | {k: v.copy() for k, v in led.items()} | {"done": step.terminated}
                )
    stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    done = stacked.pop("done")
    assert done.flatten().tolist() == [False] * 24 + [True]
    transitions = Transitions(**stacked, terminated=done)
    return Walked(frames=tuple(frames), paid=paid, transitions=transitions, done=done)


@pytest.mark.parametrize("recurrence", ["none", "gru"])
@pytest.mark.parametrize("episode", [0, 2])
def test_learned_rewards_belong_to_the_steps_shown(
    imap: Path, recurrent: Path, recurrence: str, episode: int
) -> None:
    """Those of the same steps read alone, one episode from its start; a second look is the same."""
    policy, reward = load_team(imap if recurrence == "none" else recurrent)
    assert reward is not None
    assert reward.config.recurrence == recurrence
    expected = walked(policy, 5, episode)
    learned = reward.rewards(expected.transitions, expected.done)
    assert learned.local is not None
    team, local = learned.team[:, 0], learned.local[:, 0]
    assert (team[1:] - team[:-1]).abs().max() > 1e-3  # a shift by a step would be seen
    for _ in range(2):
        shown = play(policy, reward, greedy=True, seed=5, episode=episode)
        assert shown.team is not None
        assert shown.local is not None
        assert shown.frames == expected.frames
        np.testing.assert_allclose(shown.rewards, expected.paid, atol=1e-6)
        np.testing.assert_allclose(shown.team, team, atol=1e-5)
        np.testing.assert_allclose(shown.local, local, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["sparse", "ipl"])
def test_runs_without_local_rewards_are_filmed_without(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "run", [f"--algorithm={algorithm}"])
    assert run("watch", str(folder)) == 0
    assert ("learned no reward" in capsys.readouterr().out) == (algorithm == "sparse")
    policy, reward = load_team(folder)
    shown = play(policy, reward, greedy=True, seed=0)
    assert shown.local is None
    assert (shown.team is None) == (algorithm == "sparse")


def test_what_ties_alone_have_taught_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "run", ["--preferences.margin=1e9"])
    state = load_checkpoint(folder / "checkpoints")[1]["trainer"]
    assert state["reward"]["num_fits"] > 0
    assert run("watch", str(folder), "--max-frames", "1") == 0
    assert "learned no reward so far" in capsys.readouterr().out


def test_a_film_shows_one_checkpoint(
    imap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noting(path: Path) -> tuple[int, dict[str, Any]]:
        read.append(path)
        return read_checkpoint(path)

    monkeypatch.setattr(checkpoint, "read_checkpoint", noting)
    film_run(imap, tmp_path / "episode.gif", FilmOptions(max_frames=1))
    assert len(read) == 1


def test_an_environment_without_frames_is_plotted(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", ["--env.name=probe/dying"])
    assert run("watch", str(folder), "--seed", "3") == 0
    with Image.open(folder / "episode.gif") as movie:
        assert 1 <= movie.n_frames <= 8


def test_a_wrong_request_says_what_to_do(
    imap: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(imap / "config.toml", bare)
    for arguments, message in (
        (["nowhere"], "nowhere is not a run folder"),
        ([str(bare)], "holds no checkpoint"),
        ([str(imap), "--fps", "0"], "--fps: got 0.0, expected a number from 1 to 50"),
        ([str(imap), "--out", str(imap / "config.toml" / "a.gif")], "choose another --out"),
        ([str(imap), "--out", "a.avi"], "expected .gif or .mp4"),
        ([str(imap), "--out", "a.gif", "--format", "mp4"], "does not end in .mp4"),
    ):
        assert run("watch", *arguments) == (2 if message.startswith("--fps") else 1)
        assert message in capfd.readouterr().err.replace("\n", " ")
