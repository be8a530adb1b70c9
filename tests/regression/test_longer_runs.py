"""A run can go on for longer, and with some other settings; the others are refused."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.trials import differences
from marl import ConfigError, train
from marl.config.io import MAY_CHANGE, changed, load_config
from marl.learners.mappo import Mappo
from marl.utils.metrics import read_metrics
from tests.command_line import run
from tests.regression.test_resume import small


def test_a_longer_run_without_annealing_is_as_if_it_had_been_that_long(tmp_path: Path) -> None:
    constant = {"learner.anneal": False}
    for folder, steps in (("short", 560), ("long", 1120)):
        for _ in train(small(total_steps=steps, **constant), tmp_path / folder):
            pass
    assert run("resume", tmp_path / "short", "--total-steps", "1120") == 0
    assert differences(tmp_path / "long", tmp_path / "short") == []
    assert load_config(tmp_path / "short" / "config.toml").total_steps == 1120


def test_the_step_size_is_that_of_a_run_of_the_new_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    update = Mappo.update

    def noted(self: Mappo, *arguments: object) -> dict[str, float]:
        shares.append(arguments[2])
        return update(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Mappo, "update", noted)
    for _ in train(small(total_steps=320, algorithm="sparse"), tmp_path):
        pass
    assert run("resume", tmp_path, "--total-steps", "640") == 0
    # Four of four iterations fall to a quarter; the fifth of eight is at a half.
    assert shares == [1.0, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125]
    seconds = read_metrics(tmp_path)["time/total"]
    assert seconds[0] > 0.0
    assert (np.diff(seconds) > 0.0).all()  # the resumed run counts on


def test_what_may_change_and_what_may_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in train(small(total_steps=160, algorithm="sparse"), tmp_path):
        pass
    before = (tmp_path / "config.toml").read_text()

    def refused(*arguments: str) -> str:
        assert run("resume", tmp_path, *arguments) == 1
        assert (tmp_path / "config.toml").read_text() == before
        return capsys.readouterr().err.replace("\n", " ")

    assert "learner.gamma cannot change when a run goes on" in refused(
        "--set", "learner.gamma", "1"
    )
    assert "marl train --init RUN" in refused("--set", "learner.gamma", "1")
    assert "did you mean preferences.max_labels?" in refused("--set", "max_labels", "7")
    assert "total_steps: got 'x' (str)" in refused("--set", "total_steps", "x")
    assert "keep_checkpoints: got 0, expected a number from 1" in refused(
        "--set", "keep_checkpoints", "0"
    )
    assert "total_steps: got 80, but" in refused("--total-steps", "80")
    assert run("resume", tmp_path, "--set", "total_steps", "3.2e2", "keep_checkpoints", "1") == 0
    saved = load_config(tmp_path / "config.toml")
    assert (saved.total_steps, saved.keep_checkpoints) == (320, 1)
    with pytest.raises(ConfigError, match=r"differs in learner\.epochs \(2 there, 3 here\)$"):
        next(
            train(
                small(total_steps=480, algorithm="sparse", **{"learner.epochs": 3}),
                tmp_path,
                resume=True,
            )
        )


def test_every_setting_that_may_change_is_one() -> None:
    config = load_config()
    for name in MAY_CHANGE:
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        assert changed(config, {name: value}, "here") == config
