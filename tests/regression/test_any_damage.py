"""Whatever is done to a file: a command ends well or with one line, and changes nothing else.

More examples than CI has time for: ``FUZZ_EXAMPLES=1000 python -m pytest`` and this file.
"""

import io
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.trials import contents
from marl.utils.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint
from tests.command_line import run
from tests.damages import EDITS, altered, damaged, reworded

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SECONDS = 60
"""After so many a command hangs; it takes a few tenths."""
TRAINING = [
    "--env.name=particles/nav_3",
    "--env.num-envs=4",
    "--network.hidden-sizes=8",
    "--learner.rollout-steps=25",
    "--learner.epochs=1",
    "--learner.minibatches=1",
    "--reward.hidden-sizes=8",
    "--reward.gradient-steps=1",
    "--preferences.replay-steps=400",
    "--preferences.queries-per-iteration=4",
    "--checkpoint-every=100",
    "--total-steps=400",
]
"""Four iterations, of which the run is stopped after three."""


def any_number(few: int) -> settings:
    """Return settings for a few examples, always the same, or for as many as are asked for."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=slow,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that was stopped, a dataset, and a reward fitted to that."""
    folder = tmp_path_factory.mktemp("whole")
    with quiet() as said:
        assert run("train", *TRAINING, "--run-dir", folder / "run") == 0, said
        assert run("export", folder / "run", folder / "dataset") == 0, said
        fit = ["--steps=2", "--out", folder / "fit"]
        assert run("fit-reward", folder / "dataset", *fit) == 0, said
    list_checkpoints(folder / "run" / "checkpoints")[0].unlink()
    shutil.rmtree(folder / "run" / "tensorboard")
    return folder


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Yield what is said on standard error; a command that hangs raises."""

    def hangs(*_: object) -> None:
        raise AssertionError("it hangs")

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "evaluate": ["evaluate", "RUN", "--episodes=2", "--num-envs=2", "--out=OUT/made.json"],
    "resume": ["resume", "RUN"],
    "labels": ["labels", "RUN", "--out=OUT/labels.html"],
    "export": ["export", "RUN", "OUT/made"],
    "runs": ["runs", "RUN"],
    "compare": ["compare", "RUN", "--out=OUT/comparison"],
    "fit-reward": ["fit-reward", "DATASET", "--steps=2", "--out=OUT/made"],
    "skip": ["fit-reward", "DATASET", "--skip-damaged", "--steps=2", "--out=OUT/made"],
    "label for another": [
        "train", *TRAINING, "--preferences.labeller=model", "--preferences.model.run=FIT",
        "--total-steps=100", "--run-dir=OUT/made",
    ],
}  # fmt: skip


def ends_well_or_with_a_line(folder: Path, name: str, path: Path, out: Path) -> None:
    """Run a command on a copy of the folder, of which `path` is damaged."""
    places = {"RUN": folder / "run", "DATASET": folder / "dataset", "FIT": folder / "fit"}
    arguments = [str(word) for word in COMMANDS[name]]
    for place, there in (places | {"OUT": out}).items():
        arguments = [word.replace(place, str(there)) for word in arguments]
    before = contents(folder)
    with quiet() as said:
        status = run(*arguments)
    told = f"{arguments} with {path.relative_to(folder)}: {said.getvalue()[-2000:]}"
    assert status in (0, 1), told
    assert said.getvalue().count("error: ") == status, told
    assert "Traceback" not in said.getvalue(), told
    if name != "resume" or status == 1:
        after = contents(folder)
        assert [file for file, data in before.items() if after.get(file) != data] == [], told


@contextmanager
def copied(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a copy of the folder, and an empty one."""
    with TemporaryDirectory() as scratch:
        shutil.copytree(folder, Path(scratch) / "whole")
        (Path(scratch) / "out").mkdir()
        yield Path(scratch) / "whole", Path(scratch) / "out"


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm")
OF_RUN = [name for name in COMMANDS if "RUN" in COMMANDS[name]]
OF_DATASET = ["fit-reward", "skip"]


@any_number(12)
@given(data=st.data())
def test_any_file_of_a_run(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(OF_RUN))
    file = data.draw(st.sampled_from(["config.toml", "metrics.csv", "run_id", "checkpoint"]))
    with copied(folder) as (whole, out):
        path = whole / "run" / file
        if file == "checkpoint":
            path = list_checkpoints(whole / "run" / "checkpoints")[0]
        how = damaged if file == "checkpoint" or data.draw(st.booleans()) else reworded
        path.write_bytes(how(path.read_bytes(), data.draw(EDITS)))
        ends_well_or_with_a_line(whole, name, path, out)


@any_number(12)
@given(data=st.data())
def test_any_state_under_a_right_checksum(folder: Path, data: st.DataObject) -> None:
    """What only somebody who means harm, or another program, can write."""
    name = data.draw(st.sampled_from(["evaluate", "resume", "labels", "export"]))
    with copied(folder) as (whole, out):
        newest, *_ = list_checkpoints(whole / "run" / "checkpoints")
        step, state = read_checkpoint(newest)
        newest.unlink()
        save_checkpoint(newest.parent, step, altered(state, data.draw(EDITS)))
        ends_well_or_with_a_line(whole, name, newest, out)


@any_number(6)
@given(data=st.data())
def test_any_state_of_a_reward_under_a_right_checksum(folder: Path, data: st.DataObject) -> None:
    with copied(folder) as (whole, out):
        newest, *_ = list_checkpoints(whole / "fit" / "checkpoints")
        step, state = read_checkpoint(newest)
        save_checkpoint(newest.parent, step, altered(state, data.draw(EDITS)))
        ends_well_or_with_a_line(whole, "label for another", newest, out)


@any_number(12)
@given(data=st.data())
def test_any_file_of_a_dataset(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(OF_DATASET))
    with copied(folder) as (whole, out):
        files = [path for path in sorted((whole / "dataset").rglob("*")) if path.is_file()]
        kind = data.draw(st.sampled_from(sorted({path.suffix for path in files})))
        path = data.draw(st.sampled_from([path for path in files if path.suffix == kind]))
        how = damaged if kind == ".npz" or data.draw(st.booleans()) else reworded
        path.write_bytes(how(path.read_bytes(), data.draw(EDITS)))
        ends_well_or_with_a_line(whole, name, path, out)
