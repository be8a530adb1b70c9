"""A full disk is one line of error, and what was begun goes on once there is room."""

from pathlib import Path

import pytest

from benchmarks.trials import differences
from marl import train
from marl.config import Config
from marl.config.io import load_config
from marl.preferences.dataset import PreferenceDataset
from marl.rewards.io import load_reward
from marl.utils.files import OutputError, output
from tests.command_line import QUICK, run
from tests.full_disk import files_end_at

SMALL = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "network.hidden_sizes": [8],
    "learner.rollout_steps": 20,
    "learner.epochs": 1,
    "reward.hidden_sizes": [8],
    "reward.gradient_steps": 1,
    "preferences.replay_steps": 800,
    "checkpoint_every": 160,
    "total_steps": 640,
}


def small() -> Config:
    return load_config(overrides=SMALL)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was never disturbed."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    for _ in train(small(), folder):
        pass
    return folder


@pytest.mark.usefixtures("drawn")
@pytest.mark.filterwarnings("ignore:.*killed before its first checkpoint:UserWarning")
@pytest.mark.parametrize(("rows", "kept"), [(1, 0), (3, 160)])
def test_metrics_that_cannot_be_written_are_one_line_and_resumed(
    rows: int, kept: int, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    iterations = train(small(), folder)
    for _ in range(rows):
        next(iterations)
    room = (folder / "metrics.csv").stat().st_size + 10
    with (
        files_end_at(room),
        pytest.raises(OutputError, match=r"metrics\.csv cannot be written: File too") as caught,
        pytest.warns(UserWarning, match="TensorBoard will not show what follows|not drawn"),
    ):
        next(iterations)
    goes_on = f"goes on from step {kept}" if kept else "begins the run again"
    assert caught.value.__notes__ == [f"once that is mended, `marl resume {folder}` {goes_on}"]
    assert not (folder / "crash").exists()
    for _ in train(small(), folder, resume=True):
        pass
    assert differences(alone, folder) == []


@pytest.mark.filterwarnings("ignore:.*TensorBoard will not show:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not drawn:UserWarning")
@pytest.mark.parametrize("size", [0, 5_000, 100_000])
def test_a_run_that_cannot_be_recorded_is_one_error_and_no_traceback(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with files_end_at(size):
        assert run("train", *QUICK, "--checkpoint-every=100", "--run-dir", folder) == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "File too large" in said
    assert "Traceback" not in said
    assert not (folder / "crash").exists()
    if size:
        assert f"`marl resume {folder}` begins the run again" in said
    assert size or not folder.exists()


def test_a_fit_is_whole_or_leaves_nothing(
    alone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("export", alone, tmp_path / "dataset", "--pairs", "30") == 0
    made = tmp_path / "fit"
    fit = ["fit-reward", tmp_path / "dataset", "--steps", "5", "--out", made]
    with files_end_at(1_000):
        assert run(*fit) == 1
    assert f"{made} cannot be written: File too large; choose another" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "dataset"]

    def full(*_: object) -> None:
        with output(made, "make room"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("marl.reports.plots.plot_reliability", full)
    with pytest.warns(UserWarning, match=r"calibration\.png is not drawn: .* No space left"):
        assert run(*fit) == 0
    assert load_reward(made, PreferenceDataset(tmp_path / "dataset").spec, "fit").is_fitted
