"""Evaluations while training: training does not notice, the best checkpoint is kept and played."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.trials import differences
from envs import EnvError
from marl import ConfigError, evaluate, load, train
from marl.config.schema import EvalConfig
from marl.evaluation import Evaluator
from marl.reports.recorded import read_run
from marl.utils.checkpoint import CheckpointError, list_checkpoints
from marl.utils.metrics import read_metrics
from tests.command_line import run
from tests.regression.test_resume import small, stopped_and_resumed

EVERY = {"eval.every": 200, "eval.episodes": 6, "eval.num_envs": 3, "total_steps": 640}


def test_training_does_not_notice(tmp_path: Path) -> None:
    for _ in train(small(total_steps=640), tmp_path / "without"):
        pass
    rows = list(train(small(**EVERY), tmp_path / "with"))
    added = ["evaluation/greedy", "evaluation/sampled"]
    assert differences(tmp_path / "without", tmp_path / "with") == added
    # Multiples of 200 are reached at 240, 400, 640; the run ends at 640.
    evaluated = [row["steps"] for row in rows if "evaluation/greedy" in row]
    assert evaluated == [240, 400, 640]
    known = np.isfinite(read_metrics(tmp_path / "with")["evaluation/greedy"])
    assert read_metrics(tmp_path / "with")["step"][known].tolist() == evaluated
    # The numbers are those of `marl evaluate` with the run's seed.
    for greedy, name in ((True, "greedy"), (False, "sampled")):
        result = evaluate(load(tmp_path / "with"), greedy=greedy, episodes=6, seed=0, num_envs=3)
        assert rows[-1][f"evaluation/{name}"] == result.mean


def test_a_stopped_run_evaluates_as_one_that_was_not(tmp_path: Path) -> None:
    config = small(**EVERY, algorithm="sparse")
    for _ in train(config, tmp_path / "alone"):
        pass
    stopped_and_resumed(tmp_path / "stopped", config, (2, 4))
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    names = [list_checkpoints(tmp_path / n / "checkpoints" / "best") for n in ("alone", "stopped")]
    assert [path.name for path in names[0]] == [path.name for path in names[1]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations after 240, 400 and 560 steps return 1, 3 and 2."""
    values = {240: 1.0, 400: 3.0, 560: 2.0}

    def after_iteration(self: Evaluator) -> dict[str, float]:
        steps = self._trainer.steps
        return {"evaluation/greedy": values[steps]} if steps in values else {}

    monkeypatch.setattr(Evaluator, "after_iteration", after_iteration)


@pytest.mark.usefixtures("scripted")
def test_the_best_checkpoint_is_kept_and_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in train(small(**EVERY), tmp_path):
        pass
    assert load(tmp_path).steps == 640
    best = load(tmp_path, best=True)
    assert best.steps == 400
    obs = np.zeros((best.spec.num_agents, best.spec.obs_size), np.float32)
    assert not np.array_equal(best.act(obs, greedy=True), load(tmp_path).act(obs, greedy=True))
    assert run("evaluate", tmp_path, "--best", "--episodes", "3", "--num-envs", "3") == 0
    assert "after 400 steps" in capsys.readouterr().out
    assert run("watch", tmp_path, "--best", "--max-frames", "2") == 0
    path = list_checkpoints(tmp_path / "checkpoints" / "best")[0]
    assert load(path).steps == 400
    assert path.stat().st_size < list_checkpoints(tmp_path / "checkpoints")[0].stat().st_size
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError):
        load(tmp_path, best=True)
    # One that is damaged is no rival: the next evaluation takes its place.
    assert run("resume", tmp_path, "--total-steps", "720") == 0


PLATEAU = EVERY | {"eval.every": 160, "eval.patience": 2, "eval.min_delta": 0.5, "total_steps": 880}


@pytest.fixture
def improving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations after every 160 steps return 1, 2, 2.4, 2.5, 4."""
    values = {160: 1.0, 320: 2.0, 480: 2.4, 640: 2.5, 800: 4.0}

    def after_iteration(self: Evaluator) -> dict[str, float]:
        steps = self._trainer.steps
        if steps not in values:
            return {}
        return {"evaluation/greedy": values[steps], "evaluation/sampled": 0.0}

    monkeypatch.setattr(Evaluator, "after_iteration", after_iteration)


@pytest.mark.usefixtures("improving")
def test_a_run_ends_on_a_plateau(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(**PLATEAU, algorithm="sparse")
    rows = list(train(config, tmp_path / "alone"))
    # 2.4 and 2.5 are at most .5 above 2.
    assert rows[-1]["steps"] == 640
    said = "ended after 640 of 880 steps: the last 2 evaluations were at most 0.5 above the best"
    assert said in capsys.readouterr().out
    assert read_run(tmp_path / "alone").state == "finished"
    assert [row["steps"] for row in train(config)] == [row["steps"] for row in rows]
    capsys.readouterr()
    # Stopped between the evaluations, or right after the last, it ends at the same step.
    stopped_and_resumed(tmp_path / "stopped", config, (5, 3))
    assert differences(tmp_path / "alone", tmp_path / "stopped") == []
    assert capsys.readouterr().out.count(said) == 2
    # One that lost its last checkpoint has not ended.
    list_checkpoints(tmp_path / "stopped" / "checkpoints")[0].unlink()
    assert read_run(tmp_path / "stopped").state == "crashed"
    # With more patience it goes on.
    assert run("resume", tmp_path / "alone") == 0
    assert read_run(tmp_path / "alone").steps == 640
    assert run("resume", tmp_path / "alone", "--set", "eval.patience", "3") == 0
    assert read_run(tmp_path / "alone").steps == 880


def test_what_a_plateau_is() -> None:
    def ends(returns: list[float], patience: int = 2, min_delta: float = 0.0) -> bool:
        setting = EvalConfig(every=100, patience=patience, min_delta=min_delta)
        return setting.is_plateau({100 * (k + 1): v for k, v in enumerate(returns)}, 50)

    assert not ends([1.0, 1.0])  # there is none before the last two
    assert ends([1.0, 1.0, 1.0])
    assert ends([3.0, 1.0, 2.0])
    assert not ends([1.0, 1.1, 1.0])
    assert ends([1.0, 1.1, 1.0], min_delta=0.2)
    assert not ends([1.0, 1.3, 1.0], min_delta=0.2)
    assert ends([1.0, 1.3, 1.0, 1.3])
    assert not ends([1.0] * 9, patience=0)
    # One at the end of a run, between the multiples, does not count.
    assert not EvalConfig(every=100, patience=1).is_plateau({100: 1.0, 170: 1.0}, 50)
    with pytest.raises(ConfigError, match=r"eval\.patience: got 2, but eval\.every is 0"):
        small(**{"eval.patience": 2})


def test_without_evaluations_there_is_no_best(tmp_path: Path) -> None:
    next(train(small(), tmp_path))
    with pytest.raises(CheckpointError, match="has no best checkpoint: a run keeps one where eval"):
        load(tmp_path, best=True)


def test_an_evaluation_that_fails_loses_no_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Evaluator) -> dict[str, float]:
        if self._trainer.steps == 240:
            raise EnvError("the arena is on fire")
        return {}

    monkeypatch.setattr(Evaluator, "after_iteration", failing)
    config = small(**EVERY, algorithm="sparse")
    with pytest.raises(EnvError, match="on fire") as caught:
        for _ in train(config, tmp_path):
            pass
    assert "saved as it was after 240 steps" in caught.value.__notes__[0]
    assert read_run(tmp_path).steps == 240
    monkeypatch.undo()
    rows = list(train(config, tmp_path, resume=True))
    assert rows[0]["steps"] == 320
