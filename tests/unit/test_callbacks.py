"""Callbacks are told of a run in order, may end it, and lose nothing where they raise."""

import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.trials import differences
from marl import Callback, ConfigError, Trainer, load, train
from marl.callbacks import Callbacks, Csv, Film, RunInfo, TensorBoard
from marl.config import Config
from marl.config.io import load_config
from marl.utils.metrics import read_metrics
from marl.utils.plugins import PluginError
from tests.command_line import run
from tests.small_runs import small


class Noting(Callback):
    """Notes what it is told; ends the training after some iterations."""

    def __init__(self, until: int = 99) -> None:
        self.told: list[object] = []
        self.until = until

    def on_start(self, run: RunInfo) -> None:
        self.told.append(("start", run.steps, run.resumed, run.folder is not None))

    def on_iteration(self, metrics: dict[str, float]) -> bool:
        self.told.append(int(metrics["steps"]))
        metrics.clear()  # its own copy
        return self.told[-1] == 80 * self.until

    def on_checkpoint(self, path: Path) -> None:
        self.told.append(path.name)

    def on_end(self, error: BaseException | None) -> None:
        self.told.append(("end", type(error).__name__))


def config_of(**changes: object) -> Config:
    return small(algorithm="sparse", **{"total_steps": 320, "checkpoint_every": 160} | changes)


def test_the_order_of_what_is_told(tmp_path: Path) -> None:
    first, second = Noting(), Noting(until=3)
    rows = list(train(config_of(), tmp_path, callbacks=[first, second]))
    assert [row["steps"] for row in rows] == [80, 160, 240]  # the second ends it
    saved = [f"step_{step:012d}.ckpt" for step in (160, 240)]
    assert first.told == [
        ("start", 0, False, True),
        *(80, 160, saved[0], 240, saved[1]),
        ("end", "NoneType"),
    ]
    assert second.told == first.told
    third = Noting()
    run = train(config_of(), tmp_path, resume=True, callbacks=[third])
    next(run)
    run.close()
    assert third.told[:2] == [("start", 240, True, True), 320]
    assert third.told[-1] == ("end", "NoneType")


def test_what_is_no_callback_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    class Looks:
        def on_iteration(self, metrics: dict[str, float]) -> None: ...

    run = train(config_of(), tmp_path / "run", callbacks=[cast(Callback, Looks())])
    with pytest.raises(PluginError, match=r"got Looks, expected an object of a class derived from"):
        next(run)
    assert not (tmp_path / "run").exists()


def test_without_a_folder(tmp_path: Path) -> None:
    noting = Noting(until=2)
    rows = list(train(config_of(), callbacks=[noting, Csv(tmp_path)]))
    assert noting.told == [("start", 0, False, False), 80, 160, ("end", "NoneType")]
    assert "return/mean" in rows[0]
    # Of five moves an untrained policy takes each about equally often: log 5 nats.
    assert rows[0]["policy/entropy"] == pytest.approx(math.log(5), abs=0.02)
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["return/mean"], [row["return/mean"] for row in rows])


def test_one_that_raises_ends_a_run_that_can_go_on(tmp_path: Path) -> None:
    class Broken(Noting):
        def on_iteration(self, metrics: dict[str, float]) -> bool:
            raise ValueError("no such dashboard")

    broken = Broken()
    with pytest.raises(ValueError, match="no such dashboard") as caught:
        list(train(config_of(), tmp_path, callbacks=[broken]))
    assert "saved as it was after 80 steps" in caught.value.__notes__[0]
    assert broken.told[-1] == ("end", "ValueError")
    assert [row["steps"] for row in train(config_of(), tmp_path, resume=True)] == [160, 240, 320]


def test_one_that_cannot_begin_is_told_of_the_end() -> None:
    class Broken(Noting):
        def on_start(self, run: RunInfo) -> None:
            raise ValueError("nothing there")

    first, broken, never = Noting(), Broken(), Noting()
    with pytest.raises(ValueError, match="nothing there"):
        list(train(config_of(), callbacks=[first, broken, never]))
    assert first.told[-1] == broken.told[-1] == ("end", "ValueError")
    assert never.told == []


def info(steps: int, resumed: bool) -> RunInfo:
    config = load_config(overrides={"env.name": "particles/nav_3", "learner.epochs": 3})
    trainer = Trainer(config)
    return RunInfo(
        config=config,
        spec=trainer.env.spec,
        folder=None,
        steps=steps,
        resumed=resumed,
        team=lambda: pytest.fail("not asked for"),
    )


def test_films_at_evaluations(tmp_path: Path) -> None:
    evaluated = {"eval.every": 80, "eval.episodes": 2, "eval.num_envs": 2}
    for _ in train(config_of(**evaluated), tmp_path / "without"):
        pass
    for _ in train(config_of(**evaluated, **{"eval.film_every": 2}), tmp_path / "with"):
        pass
    films = sorted((tmp_path / "with" / "films").iterdir())
    assert [film.name for film in films] == [f"step_{n:012d}.gif" for n in (160, 320)]
    with Image.open(films[1]) as movie:
        assert movie.n_frames == 25
    # The last film is that of `marl watch`.
    assert run("watch", tmp_path / "with") == 0
    assert (tmp_path / "with" / "episode.gif").read_bytes() == films[1].read_bytes()
    assert differences(tmp_path / "without", tmp_path / "with") == []


def test_what_cannot_be_filmed_is_told(tmp_path: Path) -> None:
    config = config_of(**{"eval.every": 80, "eval.episodes": 2, "eval.num_envs": 2})
    (tmp_path / "films").touch()
    with pytest.warns(UserWarning, match=r"no film after 80 steps: .*films"):
        rows = list(train(config, callbacks=[Film(folder=tmp_path / "films")]))
    assert len(rows) == 4
    with pytest.raises(ConfigError, match="films need a folder"):
        next(train(config, callbacks=[Film()]))
    with pytest.raises(ConfigError, match=r"eval\.every is 0"):
        next(train(config_of(), tmp_path / "run", callbacks=[Film()]))


def test_a_callback_gets_the_team(tmp_path: Path) -> None:
    class Asking(Callback):
        def on_start(self, run: RunInfo) -> None:
            self.run, self.acts = run, list[object]()

        def on_iteration(self, metrics: dict[str, float]) -> None:
            policy, reward = self.run.team()
            assert reward is None
            policy.actor.log_prob = None  # type: ignore[method-assign, assignment]  # a copy
            obs = np.ones((3, policy.spec.obs_size), np.float32)
            self.acts.append((policy.steps, policy.act(obs, greedy=True).tolist()))

    asking = Asking()
    for _ in train(config_of(), tmp_path, callbacks=[asking]):
        pass
    policy = load(tmp_path)
    obs = np.ones((3, policy.spec.obs_size), np.float32)
    assert asking.acts[-1] == (320, policy.act(obs, greedy=True).tolist())
    assert len(asking.acts) == 4


def test_tensorboard_gets_the_same_and_forgets_what_was_truncated(tmp_path: Path) -> None:
    rows = [(100, math.nan), (200, 0.3), (300, 0.4)]
    with Callbacks([writer := TensorBoard(tmp_path)]).told_of(info(0, False)):
        for step, value in rows:
            writer.on_iteration({"steps": step, "return/mean": value})
    with Callbacks([writer := TensorBoard(tmp_path)]).told_of(info(200, True)):
        writer.on_iteration({"steps": 300, "return/mean": 5.0})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = [(scalar.step, scalar.value) for scalar in events.Scalars("return/mean")]
    # NaN at step 100 is not shown; 300 was written twice and the second counts.
    assert scalars == [(200, pytest.approx(0.3)), (300, 5.0)]
    hidden = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"learner.epochs" in hidden
