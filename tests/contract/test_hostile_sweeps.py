"""The folder of a sweep from somebody else: what it names is not imported, damage is one line."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marl import UserError
from marl.config.io import load_config, save_config
from marl.sweeps import runner
from marl.sweeps.folder import SweepFolder
from marl.sweeps.plan import load_plan
from marl.utils import child, plugins
from tests.command_line import run

SHARED = '[settings]\nenv.name = "particles/nav_3"\n'
GRID = f"{SHARED}[search]\nlearner.epochs = [1, 2]\n"
OPTUNA = 'method = "optuna"\ntrials = 2\n' + GRID.replace("[1, 2]", "{ low = 1, high = 3 }")
THEIRS = {"env.name": "theirs:Env"}
ENDPOINT = {"preferences.llm.base_url": "http://127.0.0.1:9/v1"}
DEEP = "[" * 100_000


def sweep_of(folder: Path, content: str) -> SweepFolder:
    file = folder / "sweep.toml"
    file.write_text(content)
    return SweepFolder(folder / "out", load_plan(file))


@pytest.mark.parametrize(
    "search",
    [
        'env = [{ name = "particles/nav_3" }, { name = "theirs:Env" }]',
        'env.options = [{ reward_mode = "outcome", reward_outcome = "theirs:f" }, {}]',
        'reward.model = ["", "theirs:Model"]\nreward.loss = ["regression", "preference"]',
    ],
)
def test_code_within_a_value_must_be_trusted(
    search: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f"{SHARED}[search]\n{search}\n")
    assert run("sweep", file, "--out", tmp_path / "out") == 1
    assert "names code that would be imported and run: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_language_model_must_be_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweep.toml"
    asked = 'labeller = "llm"\npreferences.queries_per_iteration = 1\npreferences.llm.model = "m"'
    urls = 'preferences.llm.base_url = ["http://127.0.0.1:9/v1", "http://127.0.0.1:8/v1"]'
    file.write_text(f"{SHARED}preferences.{asked}\n[search]\n{urls}\n")
    assert run("sweep", file, "--out", tmp_path / "out") == 1
    assert "names a language model that would be asked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return what processes of runs are started with; none is."""
    commands: list[list[str]] = []
    monkeypatch.setattr(runner.subprocess, "Popen", lambda words, **_: commands.append(words))
    return commands


def test_a_run_that_lies_in_the_folder_is_granted_nothing_of_its_own(
    tmp_path: Path, started: list[list[str]]
) -> None:
    folder = sweep_of(tmp_path, GRID)
    job, config = folder.job(0, 0), folder.plan.config_of(folder.plan.settings_of(0), 0)
    folder.prepare(job, folder.plan.settings_of(0))
    runner.Worker(job, config)
    job.folder.mkdir()
    for changes in ({}, THEIRS, ENDPOINT):
        save_config(load_config(job.settings, changes), job.folder / "config.toml")
        runner.Worker(job, config)
    runner.Worker(job, config, trust=True)
    begun = [words[words.index("marl.utils.child") + 1 :] for words in started]
    train = ["train", "--config", str(job.settings), "--seed", "0", "--run-dir", str(job.folder)]
    assert begun == [
        [str(job.settings), *train],
        [str(job.folder), "resume", str(job.folder)],
        *[["", "resume", str(job.folder)]] * 2,
        ["", "resume", str(job.folder), "--trust"],
    ]


def test_runs_import_from_the_working_directory_only_as_the_sweep_does(
    tmp_path: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep_of(tmp_path, GRID)
    job, config = folder.job(0, 0), folder.plan.config_of({}, 0)
    folder.prepare(job, {})
    monkeypatch.chdir(tmp_path)
    for path in (["elsewhere"], ["elsewhere", ""], [os.getcwd()]):
        monkeypatch.setattr(sys, "path", path)
        runner.Worker(job, config)
    assert ["-P" in words for words in started] == [True, False, False]


def test_the_process_of_a_run_is_granted_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("marl.__main__.main", lambda: seen.append(list(sys.argv)))
    monkeypatch.setattr(child, "_stop_with_the_other", lambda: None)
    for granted in ("settings.toml", ""):
        monkeypatch.setattr(sys, "argv", ["child", granted, "resume", "run"])
        child.main()
    assert seen == [["child", "resume", "run"]] * 2
    assert plugins._granted == {Path("settings.toml").resolve()}
    assert not plugins._grants_everything


def test_settings_that_lie_in_the_folder_are_replaced(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, GRID)
    job, tried = folder.job(0, 0), folder.plan.settings_of(0)
    folder.prepare(job, tried)
    ours = job.settings.read_text()
    save_config(load_config(job.settings, THEIRS), job.settings)
    folder.prepare(job, tried)
    assert job.settings.read_text() == ours


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    """To a file of the user's."""
    theirs = path.with_name("theirs")
    theirs.write_text("{}\n")
    path.symlink_to(theirs)


def write(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


TRIALS: list[Any] = [
    [], {}, {"tried": 5}, {"tried": THEIRS}, {"tried": {"learner.epochs": 99}},
    {"tried": {"learner.epochs": 10**300}}, {"tried": {"learner.epochs": "2"}},
    {"tried": {"learner.epochs": 2}, "ended": ""},
    {"tried": {"learner.epochs": 2}, "ended": 5, "optuna": 0},
    {"tried": {"learner.epochs": 2}, "ended": "", "optuna": -1},
    {"tried": {"learner.epochs": 2}, "ended": "", "optuna": 99},
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("trials/0000/trial.json", write(json.dumps(trial))) for trial in TRIALS),
        *(("optuna.log", write(line)) for line in ("x\n", "[]\n", '{"op_code": 0}\n', DEEP)),
        *((name, write(DEEP)) for name in ("trials/0000/trial.json", "sweep.json")),
        *((name, a_pipe) for name in ("trials/0000/trial.json", "sweep.json", "optuna.log")),
        ("trials/0000/seed_0.log", a_pipe),
        *((name, a_link) for name in ("trials/0000/seed_0.log", "optuna.log")),
    ],
)
def test_damage_is_told(file: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    from marl.sweeps.adaptive import Adaptive

    folder = sweep_of(tmp_path, OPTUNA)

    def begin(folder: SweepFolder) -> None:
        """Choose the first run, as far as its process."""
        chosen = Adaptive(SweepFolder(folder.path, folder.plan)).next()
        assert chosen is not None
        folder.prepare(*chosen)

    begin(folder)
    path = folder.path / file
    path.unlink(missing_ok=True)
    damage(path)
    words = r"(trial|sweep|optuna|seed).* is (damaged|not a file|a link)"
    with pytest.raises(UserError, match=words):
        begin(folder)
    assert not path.is_symlink() or path.read_text() == "{}\n"


def test_an_error_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, GRID)
    job = folder.job(0, 0)
    job.folder.mkdir(parents=True)
    save_config(folder.plan.config_of({}, 0), job.folder / "config.toml")
    os.mkfifo(job.folder / "error.txt")
    assert folder.state_of(job).state == "stopped"
