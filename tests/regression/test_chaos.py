"""A handful of random attacks on runs, of each class; `benchmarks.chaos` makes hundreds."""

from pathlib import Path

import pytest

from benchmarks.chaos import ATTACKS, SWEEPS, chaos
from benchmarks.trials import SMALL, Attack, Command, Undisturbed

FEW = {
    "kills": 1,
    "files": 4,
    "servers": 2,
    "code": 2,
    "signals": 1,
    "sweeps": 1,
    "disks": 1,
    "processes": 1,
}
SEED = 6936
ONE_SEED = {"random": SWEEPS["random"].replace("[0, 1]", "[0]")}
"""The process of a run takes seconds to import what it needs."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("plain"))


@pytest.fixture(autouse=True)
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten iterations a run, of 80 steps."""
    monkeypatch.setitem(SMALL, "total_steps", 800)
    monkeypatch.setattr("benchmarks.chaos.SWEEP_TRIALS", 2)
    monkeypatch.setattr("benchmarks.chaos.SWEEPS", ONE_SEED)


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_lost(name: str, plain: Undisturbed, tmp_path: Path) -> None:
    attack = chaos({name: FEW[name]}, SEED, tmp_path, plain=plain)[name]
    assert attack.trials >= FEW[name]
    assert not attack.found


def test_what_went_wrong_is_found(tmp_path: Path) -> None:
    attack = Attack("none", tmp_path, SEED, keep=False)
    attack.lab = tmp_path / "lab"
    attack.lab.mkdir()
    command = Command(attack.lab, "evaluate", tmp_path / "nowhere")
    assert attack.judge(command, "an error that is told", (1,))
    assert not attack.judge(command, "a command that should have ended well")
    (attack.lab / "said").write_text("Traceback (most recent call last):")
    assert not attack.judge(command, "a traceback", (1,))
    slow = Command(attack.lab, "train", "--total-steps=100000000", "--run-dir", tmp_path / "run")
    while not slow.processes():
        assert slow.status(0.01) is None
    assert not attack.judge(slow, "a hang", patience=0.1)
    assert not slow.processes()
    assert attack.found == {"lost": 2, "tracebacks": 1, "hangs": 1}
