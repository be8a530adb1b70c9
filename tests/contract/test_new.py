"""`marl new` writes an environment that keeps the contract, and a test that says so."""

from pathlib import Path

import pytest

from tests.command_line import run


def test_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert run("new", "two_coins") == 0
    scope: dict[str, object] = {}
    exec((tmp_path / "test_two_coins.py").read_text(), scope)
    scope["test_keeps_the_contract"]()  # type: ignore[operator]
    options = ["--env.num-envs=4", "--learner.rollout-steps=10", "--total-steps=40"]
    small = ["--preferences.replay-steps=1000", "--run-dir=run"]
    assert run("train", "--env.name=two_coins:Env", *options, *small) == 0
    assert "marl train --env.name two_coins:Env" in capsys.readouterr().out
    assert run("new", "two_coins") == 1
    assert "two_coins.py is there already" in capsys.readouterr().err
    assert run("new", "two coins") == 1
    assert sorted(path.name for path in tmp_path.glob("*.py")) == [
        "test_two_coins.py",
        "two_coins.py",
    ]
