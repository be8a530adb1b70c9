"""Names from outside are shown as they are, and what cannot be written is one line."""

import builtins
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import EnvSpec
from marl.config import PreferenceConfig
from marl.config.preferences import LlmConfig
from marl.preferences.dataset import Answer, EpisodeRecord, PreferenceDataset, now
from marl.preferences.dataset.export import source_name
from tests.command_line import QUICK, run

SPEC = EnvSpec(
    name="<script>alert(1)</script>[/two]",
    num_envs=1,
    obs_sizes=(3, 2),
    state_size=4,
    action_kind="discrete",
    action_sizes=(2, 2),
    max_steps=4,
    finite_horizon=True,
)


def dataset(folder: Path, source: str) -> Path:
    """Return the folder of a dataset of some episodes, with answers of one source."""
    made = PreferenceDataset.create(folder, SPEC)
    draw = np.random.default_rng(0)
    for number in range(16):
        obs, state = draw.normal(size=(4, 2, 3)), draw.normal(size=(4, 4))
        made.add_episode(
            EpisodeRecord(
                obs=obs,
                state=state,
                actions=np.zeros((4, 2), np.int64),
                final_obs=obs[0],
                final_state=state[0],
                episode_return=float(number),
                terminated=True,
            )
        )
    made.answers.extend(
        Answer(first=n, second=(n + 3) % 16, label=float(n % 2), source=source, at=now())
        for n in range(16)
    )
    return folder


@pytest.mark.parametrize("name", ["[/nope]", "[bold]", "<script>", ":smile:", "a\udcff", "{x}%s"])
def test_a_dataset_and_a_source_of_any_name_are_fitted_to(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = name.replace("\udcff", "")
    folder = dataset(tmp_path / name, f"person:{source}")
    out = tmp_path / f"fit {name}"
    assert run("fit-reward", folder, "--steps", "1", "--out", out) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert f"slfon{SPEC.name}:16episodes,answers16byperson:{source}" in shown
    assert f"writtento{tmp_path}/fit{name}:".replace("\udcff", "?") in shown
    assert json.loads((out / "report.json").read_text())["dataset"] == str(folder)


def test_a_source_is_printable(tmp_path: Path) -> None:
    config = PreferenceConfig(labeller="llm", llm=LlmConfig(model="a\x1b[2J\nb"))
    assert source_name(config) == r"llm:a\x1b[2J\nb"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned from a free labeller."""
    folder = tmp_path_factory.mktemp("[red]<script>") / "[/run]"
    assert run("train", *QUICK, "--run-dir", folder) == 0
    return folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Refuse every write below a folder, as a read-only file system does."""

    def is_below(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and folder in Path(path).absolute().parents

    def refuse() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def guarded(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def guard(*arguments: Any, **named: Any) -> Any:
            if any(map(is_below, arguments[:2])) and writes(*arguments, **named):
                refuse()
            return call(*arguments, **named)

        return guard

    def opens_to_write(path: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
        return any(letter in mode for letter in "wax+")

    def has_write_flags(path: Any, flags: int, *_: Any, **__: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", guarded(open, opens_to_write))
        patch.setattr(io, "open", guarded(io.open, opens_to_write))
        patch.setattr(os, "open", guarded(os.open, has_write_flags))
        for name in ("mkdir", "replace", "rename", "unlink", "truncate"):
            patch.setattr(os, name, guarded(getattr(os, name), lambda *_, **__: True))
        yield


def content(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluation.json": ("evaluate", "--episodes", "2", "--num-envs", "2"),
    "episode.gif": ("watch", "--max-frames", "2"),
    "labels.html": ("labels",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_run_is_looked_at(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = COMMANDS[name]
    before = content(finished)
    with read_only(finished):
        assert run(command, finished, *options, "--out", tmp_path / name) == 0
        assert (tmp_path / name).stat().st_size > 0
        capsys.readouterr()
        assert run(command, finished, *options) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{finished / name} cannot be written: Read-only file system; " in error
    assert "--out" in error
    assert content(finished) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_read_only_run_is_exported_and_not_labelled(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with read_only(finished):
        assert run("export", finished, tmp_path / "pairs", "--pairs", "5") == 0
        capsys.readouterr()
        pytest.importorskip("fastapi", reason="the rest needs the extra people")
        assert run("label", finished, "--no-open", "--episodes", "2") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{finished / 'people'} cannot be written: Read-only file system" in error


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_in_the_place_of_a_result_is_one_line(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = COMMANDS[name]
    (tmp_path / name).mkdir()
    assert run(command, finished, *options, "--out", tmp_path / name) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be written: Is a directory" in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_in_the_place_of_the_curve_costs_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "curve.png").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"curve\.png cannot be written: Is a directory"):
        assert run("train", *QUICK, "--run-dir", tmp_path / "run") == 0
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_outputs_that_cannot_be_made_are_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    pairs = dataset(tmp_path / "pairs", "person:ann")
    for arguments in (
        ("export", finished, tmp_path / "file" / "pairs"),
        ("fit-reward", pairs, "--steps", "1", "--out", tmp_path / "file" / "fit"),
        ("labels", finished, "--out", tmp_path / "nowhere" / "labels.html"),
        ("evaluate", finished, "--episodes", "2", "--out", tmp_path / "file" / "evaluation.json"),
    ):
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "cannot be written: " in error


def test_the_page_of_labels_escapes_every_name(finished: Path, tmp_path: Path) -> None:
    assert run("labels", finished, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "[red]&lt;script&gt;" in page
