"""A checkpoint from somebody else, or a damaged one, is told in one line, whatever it holds."""

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marl.utils.checkpoint import (
    FORMAT_VERSION,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from marl.utils.encoding import encode
from tests.command_line import QUICK, run


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("run", "other"):
        flags = ["--checkpoint-every=100", "--run-dir", folder / name]
        assert run("train", *QUICK, *flags) == 0
    return folder


@pytest.fixture
def folder(two_runs: Path, tmp_path: Path) -> Path:
    """A run with checkpoints at 100, 200 and 300 steps, beside another run."""
    shutil.copytree(two_runs, tmp_path / "runs")
    return tmp_path / "runs" / "run"


def newest(folder: Path) -> Path:
    return list_checkpoints(folder / "checkpoints")[0]


def a_directory(folder: Path) -> None:
    path = newest(folder)
    path.unlink()
    path.mkdir()


def a_pipe(folder: Path) -> None:
    path = newest(folder)
    path.unlink()
    os.mkfifo(path)


def of_another_step(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    shutil.copy(checkpoints / "step_000000000100.ckpt", checkpoints / "step_000000000900.ckpt")


def of_another_run(folder: Path) -> None:
    there = folder.parent / "other" / "checkpoints" / newest(folder).name
    shutil.copy(there, newest(folder))


def that_inflates(folder: Path) -> None:
    """An archive of 20 MB of zeros, in a few kB, under a right checksum."""
    step, state = load_checkpoint(folder / "checkpoints")
    stored, small = io.BytesIO(), io.BytesIO()
    torch.save(encode({"step": step, "state": state | {"x": torch.zeros(5_000_000)}}), stored)
    with zipfile.ZipFile(stored) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as zip:
        for member in whole.namelist():
            zip.writestr(member, whole.read(member))
    payload = small.getvalue()
    assert len(payload) < 2_000_000
    digest = hashlib.sha256(payload).hexdigest()
    header = f"prefmarl-checkpoint {FORMAT_VERSION:4d} {len(payload):16d} {digest:64s}\n"
    newest(folder).write_bytes(header.encode() + payload)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (a_directory, "is not a file"),
        (a_pipe, "is not a file"),
        (of_another_step, "is of step 100, not of the one that its name says"),
        (of_another_run, "was written by another run"),
        (that_inflates, "content this program does not write"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_the_checkpoint_before_is_used(
    damage: Callable[[Path], None],
    words: str,
    command: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    few = ["--episodes=1", "--num-envs=1"] if command == "evaluate" else []
    with pytest.warns(UserWarning, match=words):
        assert run(command, folder, *few) == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "resume", "labels"])
def test_a_pipe_in_place_of_the_id_is_not_waited_for(command: str, folder: Path) -> None:
    (folder / "run_id").unlink()
    os.mkfifo(folder / "run_id")
    few = ["--episodes=1", "--num-envs=1"] if command == "evaluate" else []
    assert run(command, folder, *few) == 0


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the state in the newest checkpoint; no other is left."""
    step, state = load_checkpoint(folder / "checkpoints")
    change(state)
    shutil.rmtree(folder / "checkpoints")
    save_checkpoint(folder / "checkpoints", step, state)


def weights_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = state["trainer"]["learner"]["actor"]
    return weights


def with_nan(state: dict[str, Any]) -> None:
    for tensor in weights_of(state).values():
        tensor.fill_(torch.nan)


def with_other_shapes(state: dict[str, Any]) -> None:
    weights = weights_of(state)
    for name, tensor in weights.items():
        weights[name] = torch.zeros(3, *tensor.shape)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(name)


def with_spec(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["spec"].update(values)


def with_layers(*sizes: int) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["config"]["network"].update(hidden_sizes=list(sizes))


LONG_LIST = {"name": "all", "first": 0, "count": 10**9, "size": 1, "first_action": -1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("config"), "holds no config"),
        (without("spec"), "holds no spec"),
        (lambda state: state.update(trainer={}), "holds 0 numbers in all"),
        (lambda state: state["trainer"]["learner"].update(actor=7), "does not fit its settings"),
        (with_other_shapes, "does not fit its settings"),
        (with_nan, "weights are not finite"),
        (lambda state: state["trainer"].update(iteration="third"), "does not fit its settings"),
        (with_spec(obs_sizes=[10**9] * 3), "a layer of"),
        (with_spec(state_size=10**12), "a layer of"),
        (with_spec(obs_image=[5]), "spec.obs_image is (5,), which does not fit"),
        (with_spec(state_images=[1, 1, -1, -18]), "spec.state_images is (1, 1, -1, -18)"),
        (with_spec(entities=[LONG_LIST]), "does not fit into 6 observed features"),
        (with_layers(10**6, 10**6), "a layer of 1,000,000,000,000 weights"),
        (with_spec(action_kind="telepathy"), "action_kind"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    change: Callable[[dict[str, Any]], None],
    words: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rewritten(folder, change)
    assert run("evaluate", folder) == 1
    said = capfd.readouterr().err
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in said


def with_a_word_as_step_size(state: dict[str, Any]) -> None:
    state["trainer"]["learner"]["optimizers"]["actor"]["learning_rate"] = "small"


@pytest.mark.parametrize(
    "change", [lambda state: state["trainer"]["collector"].clear(), with_a_word_as_step_size]
)
def test_a_run_does_not_go_on_from_a_state_of_another_shape(
    change: Callable[[dict[str, Any]], None], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewritten(folder, change)
    assert run("resume", folder) == 1
    said = capfd.readouterr().err
    assert "does not fit its settings" in said
    assert "Traceback" not in said
