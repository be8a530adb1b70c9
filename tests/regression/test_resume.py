"""A run that was stopped or killed continues to the same metrics, bit for bit."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.trials import differences
from envs import EnvError, EnvStep
from envs.sparse import SparseRewards
from marl import ConfigError, EpisodePairs, Trainer, preferences, train
from marl.config import Config
from marl.config.io import load_config
from marl.nn.layers import NonFiniteError
from marl.reports.recorded import read_run
from marl.utils.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from marl.utils.metrics import read_metrics
from marl.utils.plugins import PluginError
from tests.learners import mappo_of
from tests.small_runs import SMALL, small


def stopped_and_resumed(folder: Path, config: Config, stops: tuple[int, ...]) -> None:
    """Train in `folder`, closing the run after each number of iterations."""
    for index, stop in enumerate(stops):
        run = train(config, folder, resume=index > 0)
        for _ in range(stop):
            next(run)
        run.close()
    for _ in train(config, folder, resume=True):
        pass


class Forgetful:
    """A labeller whose answers depend on what it was asked before, and on a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.asked = 0

    def __call__(self, pairs: EpisodePairs) -> torch.Tensor:
        self.asked += len(pairs)
        labels = torch.rand(len(pairs), generator=self.generator)
        labels[self.asked % 3 :: 3] = torch.nan
        return labels

    def metrics(self) -> dict[str, float]:
        return {"asked": self.asked}

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def test_a_labeller_with_state_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preferences, "Forgetful", Forgetful, raising=False)
    config = small(**{"preferences.labeller": "marl.preferences:Forgetful"})
    for row in train(config, tmp_path / "alone"):
        last = row
    stopped_and_resumed(tmp_path / "stopped", config, (2, 5))
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    assert last["labeller/asked"] > 100


def test_a_labeller_that_raises_stops_the_run_with_its_state_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def tired(pairs: EpisodePairs) -> torch.Tensor:
        calls.append(len(pairs))
        if len(calls) > 4:
            raise RuntimeError("no more")
        return torch.ones(len(pairs))

    monkeypatch.setattr(preferences, "tired", tired, raising=False)
    run = train(small(**{"preferences.labeller": "marl.preferences:tired"}), tmp_path)
    with pytest.raises(PluginError, match=r"marl\.preferences:tired raised RuntimeError: no more"):
        for _ in run:
            pass
    assert not (tmp_path / "crash").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "sparse"},
        {"algorithm": "ipl", "reward.value_loss": "soft"},
        {"preferences.queries_per_iteration": 6},
        {"preferences.queries_per_iteration": 6, "preferences.query": "disagreement"},
        {"preferences.teacher.myopia": 0.9, "preferences.tie_break": ["novelty"]},
        {"env.name": "probe/dying", "learner.rollout_steps": 10},
        {"env.name": "mamujoco/reacher_2x1", "preferences.replay_steps": 2000},
        {"network.recurrence": "gru", "learner.chunk_length": 8, "network.hidden_sizes": [8, 8]},
        {"reward.recurrence": "gru", "reward.hidden_sizes": [8, 8]},
        {"reward.gradient_steps": 0, "reward.fit_share": 0.6, "reward.held_out_fall": 0.0},
        {"env.name": "probe/dying", "learner.rollout_steps": 10, "learner.absence": "alive_mean"},
        {"algorithm": "tar2", "reward.hidden_sizes": [8], "reward.sequence.layers": 1},
        {"algorithm": "dpo", "reward.ratio.reference_period": 2},
        {"algorithm": "dpo", "network.recurrence": "gru", "network.hidden_sizes": [8, 8]},
    ],
    ids=[
        "imap",
        "sparse",
        "soft",
        "queries",
        "ensemble",
        "teacher",
        "dying",
        "mujoco",
        "gru",
        "history",
        "fit as asked for",
        "absent",
        "tar2",
        "dpo",
        "dpo gru",
    ],
)
def test_a_stopped_run_continues_exactly(tmp_path: Path, changes: dict[str, object]) -> None:
    stopped_as_alone(tmp_path, changes)


ADAPTED = {"preferences.replay_steps": 2000, "total_steps": 640, "checkpoint_every": 160}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_of_a_pettingzoo_team_continues_exactly(tmp_path: Path, workers: int) -> None:
    """In worker processes, too: its open episodes are replayed; agents differ, come and go."""
    options = {"max_steps": 10, "workers": workers, "team_reward": "sum"}
    team = {"env.name": "tests.village:Village", "env.options": options}
    stopped_as_alone(tmp_path, ADAPTED | team)


@pytest.mark.usefixtures("compiled_once")
def test_a_stopped_run_of_smax_continues_exactly(tmp_path: Path) -> None:
    pytest.importorskip("jaxmarl.registration", reason="needs the extra smax")
    battle = {"env.name": "smax/3m", "env.options": {"max_steps": 15, "finite_horizon": False}}
    stopped_as_alone(tmp_path, ADAPTED | battle)


def stopped_as_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    """Assert that a run with these settings that was stopped twice equals one that never was."""
    config = small(**changes)
    for _ in train(config, tmp_path / "alone"):
        pass
    stopped_and_resumed(tmp_path / "stopped", config, (2, 5))
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []


def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path: Path) -> None:
    flags = [f"--{key}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-c", "from marl.cli import main; main()"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "train", "--run-dir", str(killed), *flags, "--total-steps=200000"],
        stdout=subprocess.DEVNULL,
    )
    while len(list_checkpoints(killed / "checkpoints")) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    checkpoint = int(list_checkpoints(killed / "checkpoints")[0].stem.removeprefix("step_"))
    config = load_config(killed / "config.toml")
    run = train(config, killed, resume=True)
    rows = [next(run) for _ in range(3)]
    run.close()
    assert rows[0]["steps"] == checkpoint + 80
    alone = tmp_path / "alone"
    run = train(config, alone)
    while next(run)["steps"] < rows[-1]["steps"]:
        pass
    run.close()
    assert differences(alone, killed) == []


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    config = small(total_steps=160)
    run = train(config, tmp_path)
    next(run)
    run.close()
    for path in list_checkpoints(tmp_path / "checkpoints"):
        path.unlink()
    with pytest.warns(UserWarning, match="before its first checkpoint"):
        assert [row["steps"] for row in train(config, tmp_path, resume=True)] == [80, 160]
    np.testing.assert_array_equal(read_metrics(tmp_path)["step"], [80, 160])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    config = small()
    for _ in train(config, tmp_path / "alone"):
        pass
    run = train(config, tmp_path / "run")
    for _ in range(8):
        next(run)
    run.close()
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=newest.name):
        for _ in train(config, tmp_path / "run", resume=True):
            pass
    assert differences(tmp_path / "alone", tmp_path / "run") == []


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    next(train(small(), tmp_path))
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(ConfigError, match="marl resume"):
        next(train(small(), tmp_path))
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run = train(small(), tmp_path)
    next(run)
    run.close()
    with pytest.raises(ConfigError, match=r"learner\.gamma \(0\.99 there, 0\.9 here\)"):
        next(train(small(**{"learner.gamma": 0.9}), tmp_path, resume=True))


def test_an_error_keeps_the_checkpoints_and_saves_the_state_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(small(), tmp_path)
    for _ in range(4):
        next(run)
    before = list_checkpoints(tmp_path / "checkpoints")

    def broken(*_: object) -> None:
        raise NonFiniteError("obs holds NaN")

    monkeypatch.setattr(Trainer, "iterate", broken)
    with pytest.raises(NonFiniteError) as caught:
        next(run)
    assert list_checkpoints(tmp_path / "checkpoints") == before
    assert len(list_checkpoints(tmp_path / "crash")) == 1
    assert "crash" in caught.value.__notes__[0]


def fragile(fault: Path, fails_at: int, workers: int, **changes: object) -> Config:
    """Return settings with rollouts of 6 steps, in which episodes of 4 stay open."""
    options = {"workers": workers, "fault": str(fault), "fails_at": fails_at}
    return small(
        **{
            "env.name": "tests.fragile:fragile",
            "env.options": options,
            "learner.rollout_steps": 6,
            "checkpoint_every": 10_000,
            "total_steps": 24 * 6,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("how", "workers", "fails_at", "kept", "changes"),
    [
        ("raise", 0, 10, 24, {}),
        ("raise", 2, 17, 48, {"network.recurrence": "gru", "network.hidden_sizes": [8, 8]}),
        ("exit", 2, 10, 24, {"algorithm": "sparse"}),
        ("raise", 0, 2, 0, {"algorithm": "sparse"}),
        ("sys.exit", 0, 10, 24, {"algorithm": "sparse"}),
        ("sys.exit", 2, 10, 24, {"algorithm": "sparse"}),
        ("nan obs", 0, 10, 24, {"algorithm": "sparse"}),
        ("nan obs", 2, 10, 24, {"algorithm": "sparse"}),
        ("infinite reward", 0, 10, 24, {"algorithm": "sparse"}),
        ("infinite state", 2, 10, 24, {"algorithm": "sparse"}),
    ],
    ids=[
        "here",
        "gru",
        "death",
        "first rollout",
        "sys.exit here",
        "sys.exit there",
        "nan here",
        "nan there",
        "infinite here",
        "infinite there",
    ],
)
def test_an_environment_that_fails_loses_no_whole_iteration(
    tmp_path: Path, how: str, workers: int, fails_at: int, kept: int, changes: dict[str, object]
) -> None:
    fault, folder = tmp_path / "fault", tmp_path / "failed"
    config = fragile(fault, fails_at, workers, **changes)
    for _ in train(config, tmp_path / "alone"):
        pass
    fault.write_text(how)
    with pytest.raises(EnvError, match=r"counting, copy \d") as caught:
        for _ in train(config, folder):
            pass
    assert f"saved as it was after {kept} steps" in caught.value.__notes__[0]
    assert f"`marl resume {folder}` goes on from there" in caught.value.__notes__[0]
    assert not (folder / "crash").exists()
    assert read_run(folder).state == "crashed"
    assert "EnvError: counting, copy" in (folder / "error.txt").read_text()
    step, state = load_checkpoint(folder / "checkpoints")
    assert step == kept
    collector = state["trainer"]["collector"]
    np.testing.assert_array_equal(collector["open_lengths"], collector["env"]["lengths"])
    assert collector["steps_before"] == kept // 4

    fault.unlink()
    resumed = [int(row["steps"]) for row in train(config, folder, resume=True)]
    assert resumed == list(range(kept + 24, 145, 24))
    assert read_run(folder).state == "finished"
    assert not (folder / "error.txt").exists()
    assert differences(tmp_path / "alone", folder) == []


def test_an_iteration_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    config = fragile(tmp_path / "fault", 10, 0)
    plain, failing = Trainer(config), Trainer(config)
    plain.iterate()
    failing.iterate()
    (tmp_path / "fault").write_text("raise")
    with pytest.raises(EnvError):
        failing.iterate()
    (tmp_path / "fault").unlink()
    one, other = plain.iterate(), failing.iterate()
    for name in one:
        if not name.startswith(("time/", "memory/")):
            np.testing.assert_equal(other[name], one[name])


def test_a_rollout_that_is_not_finite_leaves_the_state_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(small(), tmp_path)
    for _ in range(4):
        next(run)
    run.close()
    step, expected = load_checkpoint(tmp_path / "checkpoints")

    whole, calls = SparseRewards.step, itertools.count()

    def broken(self: SparseRewards, actions: np.ndarray) -> EnvStep:
        answer = whole(self, actions)
        if next(calls) == 5:
            answer.obs[1, 0, 2] = np.nan
        return answer

    monkeypatch.setattr(SparseRewards, "step", broken)
    with pytest.raises(EnvError, match=r"infinite number in obs at step 86 of copy 1, agent 0"):
        next(train(small(), tmp_path, resume=True))
    assert not (tmp_path / "crash").exists()
    saved_step, saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved_step == step
    assert_same(expected["trainer"], saved["trainer"])


def test_a_policy_that_diverged_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its actions are illegal, which an environment says."""
    iterate = Trainer.iterate

    def diverging(self: Trainer) -> dict[str, float]:
        metrics = iterate(self)
        next(mappo_of(self).actor.parameters()).data.fill_(torch.nan)
        return metrics

    monkeypatch.setattr(Trainer, "iterate", diverging)
    run = train(small(**{"env.name": "probe/continuous_match", "algorithm": "sparse"}), tmp_path)
    next(run)
    with pytest.raises(EnvError, match="action nan of copy 0") as caught:
        next(run)
    assert "crash" in caught.value.__notes__[0]
    assert list_checkpoints(tmp_path / "checkpoints") == []


def assert_same(one: Any, other: Any) -> None:
    """Raise unless two states hold the same numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        np.testing.assert_array_equal(one, other)


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(small(), tmp_path)
    for _ in range(4):
        next(run)
    before = list_checkpoints(tmp_path / "checkpoints")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        for _ in run:
            pass
    assert list_checkpoints(tmp_path / "checkpoints") == before
