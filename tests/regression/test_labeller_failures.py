"""A labeller that fails stops the run after its last iteration, and it goes on from there."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.trials import differences
from marl import ConfigError, EpisodePairs, Trainer, preferences, train
from marl.config import Config
from marl.config.io import load_config
from marl.utils.checkpoint import list_checkpoints, load_checkpoint
from marl.utils.metrics import read_metrics
from marl.utils.plugins import PluginError
from tests import small_runs
from tests.command_line import run as marl
from tests.llm_server import ModelServer

SMALL = small_runs.SMALL | {"checkpoint_every": 10_000, "total_steps": 1280}
"""Sixteen iterations of 80 steps; the replay buffer holds ten of them."""


class Fragile:
    """Prefers larger returns, now and then at random, and fails when told to.

    It is asked twice an iteration, from the second on.
    """

    fails: Callable[[], object] | None = None
    """What it does in place of an answer from its call number `at` on."""
    at = 0

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.calls = 0

    def __call__(self, pairs: EpisodePairs) -> object:
        self.calls += 1
        labels = (pairs.first.returns > pairs.second.returns).float()
        labels[torch.rand(len(pairs), generator=self.generator) < 0.2] = 0.5
        if Fragile.fails is not None and self.calls >= Fragile.at:
            return Fragile.fails()
        return labels

    def metrics(self) -> dict[str, float]:
        return {"calls": self.calls}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def raised() -> object:
    raise RuntimeError("no more\x1b[31m " + "x" * 5_000_000)


def deep() -> object:
    return deep()


def hushed() -> object:
    class HushedError(Exception):
        def __str__(self) -> str:
            raise ValueError

    raise HushedError


def config_of(**changes: object) -> Config:
    labeller = {"preferences.labeller": "marl.preferences:Fragile"}
    return load_config(overrides=SMALL | labeller | changes)


def run_all(config: Config, folder: Path, **options: Any) -> None:
    for _ in train(config, folder, **options):
        pass


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "Fragile", Fragile, raising=False)
    monkeypatch.setattr(Fragile, "fails", None)


QUERIES = {"preferences.queries_per_iteration": 6}


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (raised, r"Fragile raised RuntimeError: no more\\x1b\[31m x+… \(test_labeller_failures.py"),
        (sys.exit, r"Fragile raised SystemExit: +\(test_labeller_failures.py"),
        (lambda: sys.exit(0), r"Fragile raised SystemExit: 0 \(test_labeller_failures.py"),
        (deep, "Fragile raised RecursionError"),
        (hushed, "Fragile raised HushedError: a message that raises ValueError"),
        (lambda: "first", "Fragile returned str, expected a torch.Tensor, an array or a list of"),
        (lambda: torch.ones(3, 3), r"Fragile returned shape \(3, 3\) for \d+ pairs"),
        (lambda: torch.full((1,), 7.0), "Fragile returned"),
        (lambda: None, "Fragile returned NoneType"),
    ],
    ids=["raise", "exit", "exit 0", "deep", "hushed", "text", "shape", "range", "nothing"],
)
def test_whatever_a_labeller_does_the_run_goes_on_from_its_last_iteration(
    fails: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(total_steps=320)
    run_all(config, tmp_path / "alone")
    monkeypatch.setattr(Fragile, "fails", staticmethod(fails))
    monkeypatch.setattr(Fragile, "at", 5)
    folder = tmp_path / "failed"
    with pytest.raises(PluginError, match=message) as caught:
        run_all(config, folder)
    assert len(str(caught.value)) < 1_000
    assert f"`marl resume {folder}` goes on from there" in caught.value.__notes__[0]
    assert not (folder / "crash").exists()
    steps = [int(step) for step in read_metrics(folder)["step"]]
    assert load_checkpoint(folder / "checkpoints")[0] == steps[-1] == 80 * len(steps)
    monkeypatch.setattr(Fragile, "fails", None)
    run_all(config, folder, resume=True)
    assert differences(tmp_path / "alone", folder) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        QUERIES,
        QUERIES | {"preferences.query": "disagreement"},
        {"algorithm": "ipl", "reward.value_loss": "soft"},
        {"network.recurrence": "gru", "learner.chunk_length": 8, "network.hidden_sizes": [8, 8]},
        {"preferences.tie_break": ["novelty"], "preferences.teacher.mistakes": 0.1},
    ],
    ids=["free", "queries", "ensemble", "soft", "gru", "composed"],
)
def test_a_labeller_that_fails_in_the_middle_of_a_run_costs_nothing(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late enough that the replay buffer has begun to overwrite its oldest steps."""
    config = config_of(**changes)
    run_all(config, tmp_path / "alone")
    calls = int(read_metrics(tmp_path / "alone")["labeller/calls"][12])
    monkeypatch.setattr(Fragile, "fails", staticmethod(raised))
    monkeypatch.setattr(Fragile, "at", calls)
    folder = tmp_path / "failed"
    with pytest.raises(PluginError):
        run_all(config, folder)
    step, state = load_checkpoint(folder / "checkpoints")
    assert step == 12 * 80
    assert state["trainer"]["feedback"]["replay"]["time"] == 12 * 20
    monkeypatch.setattr(Fragile, "fails", None)
    run_all(config, folder, resume=True)
    assert differences(tmp_path / "alone", folder) == []


def test_an_iteration_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, failing = Trainer(config_of()), Trainer(config_of())
    for _ in range(3):
        plain.iterate()
        failing.iterate()
    monkeypatch.setattr(Fragile, "fails", staticmethod(raised))
    with pytest.raises(PluginError), failing.restoring():
        failing.iterate()
    assert failing.safe_to_checkpoint
    assert failing.steps == plain.steps
    monkeypatch.setattr(Fragile, "fails", None)
    one, other = plain.iterate(), failing.iterate()
    for name in one:
        if not name.startswith(("time/", "memory/")):
            np.testing.assert_equal(other[name], one[name])


def test_metrics_that_raise_are_the_labellers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metrics(self: Fragile) -> dict[str, Any]:
        return {"calls": "many"}

    monkeypatch.setattr(Fragile, "metrics", metrics)
    with pytest.raises(PluginError, match=r"Fragile raised ValueError: .* asked for its metrics"):
        run_all(config_of(), tmp_path)
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1
    assert not (tmp_path / "crash").exists()


def test_the_command_line_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaving.py").write_text("import sys\ndef label(pairs):\n    sys.exit(0)\n")
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    flags = [f"--{key}={value}" for key, value in SMALL.items()]
    arguments = ["train", *flags, "--run-dir", str(tmp_path / "run")]
    assert marl(*arguments, "--preferences.labeller=gone:label") == 1
    assert "importing 'gone' raised SystemExit: 0" in capsys.readouterr().err
    assert marl(*arguments, "--preferences.labeller=leaving:label") == 1
    said = capsys.readouterr().err
    assert "raised SystemExit: 0 (leaving.py, line 3, in label)" in said
    assert "goes on from there" in said
    assert "Traceback" not in said


def test_a_cap_that_ends_the_run_loses_no_whole_iteration(tmp_path: Path) -> None:
    with ModelServer() as server:
        model = {
            "preferences.labeller": "llm",
            "preferences.queries_per_iteration": 4,
            "preferences.llm.base_url": server.base_url,
            "preferences.llm.model": "stand-in",
            "preferences.llm.preflight": "off",
            "preferences.llm.cache": str(tmp_path / "cache.sqlite"),
            "preferences.llm.at_cap": "abort",
            "preferences.llm.max_calls": 20,
        }
        with pytest.raises(ConfigError, match="a cap is reached") as caught:
            run_all(config_of(**model), tmp_path / "run")
    assert "goes on from there" in caught.value.__notes__[0]
    assert not (tmp_path / "run" / "crash").exists()
    assert load_checkpoint(tmp_path / "run" / "checkpoints")[0] > 0


def test_a_labeller_given_in_python(tmp_path: Path) -> None:
    asked: list[int] = []

    def mine(pairs: EpisodePairs) -> list[bool]:
        asked.append(len(pairs))
        return [bool(gap > 0) for gap in pairs.first.returns - pairs.second.returns]

    config = load_config(overrides=SMALL | {"total_steps": 320})
    run_all(config, tmp_path / "named")
    run = train(config, tmp_path / "given", labeller=mine)
    next(run)
    next(run)
    run.close()
    assert asked
    saved = load_config(tmp_path / "given" / "config.toml")
    assert saved.preferences.labeller == "python"
    with pytest.raises(ConfigError, match=r"only that program can give: marl\.train\("):
        next(train(saved, tmp_path / "given", resume=True))
    for again in (saved, config):  # either way
        rows = train(again, tmp_path / "given", resume=True, labeller=mine)
        next(rows)
        rows.close()

    # The same answers as the rule's, to the bit.
    one, other = read_metrics(tmp_path / "named"), read_metrics(tmp_path / "given")
    for name in ("return/mean", "preference/loss", "preference/informative_share"):
        np.testing.assert_array_equal(one[name][: len(other[name])], other[name])


def test_a_class_of_labellers_given_in_python() -> None:
    config = load_config(overrides=SMALL | {"total_steps": 240})
    rows = list(train(config, labeller=Fragile))
    assert rows[-1]["labeller/calls"] > 0


@pytest.mark.parametrize(
    ("changes", "labeller", "message"),
    [
        ({}, 7, "labeller: got 7, expected a callable from episode pairs to labels"),
        ({"preferences.labeller": "outcome"}, print, "preferences.labeller: got 'outcome', and"),
        ({"algorithm": "sparse"}, print, "labeller: given, but algorithm 'sparse' needs no labels"),
        ({"preferences.labeller": "python"}, None, "which only that program can give"),
    ],
)
def test_a_labeller_that_cannot_be_given(
    changes: dict[str, object], labeller: Any, message: str, tmp_path: Path
) -> None:
    config = load_config(overrides=SMALL | changes)
    with pytest.raises(ConfigError, match=message):
        next(train(config, tmp_path / "run", labeller=labeller))
    assert not (tmp_path / "run").exists()


def test_a_labeller_given_in_python_that_fails_is_named(tmp_path: Path) -> None:
    def unwilling(pairs: EpisodePairs) -> None:
        raise KeyError("health")

    with pytest.raises(PluginError, match=r"unwilling raised KeyError: 'health'"):
        run_all(load_config(overrides=SMALL), tmp_path, labeller=unwilling)
    assert not (tmp_path / "crash").exists()
