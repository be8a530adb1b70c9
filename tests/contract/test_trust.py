"""What a run, a checkpoint or a file of somebody else names is not imported unless you say so."""

import sys
from pathlib import Path
from typing import Any

import pytest

import marl
from marl.config import ConfigError
from marl.config.io import load_config, save_config
from marl.utils.checkpoint import load_checkpoint, save_checkpoint
from tests.command_line import QUICK, run

CODE = """
from pathlib import Path
Path("imported").touch()

import torch
from envs import make_env


def env(num_envs):
    return make_env("particles/nav_3", num_envs, reward_mode="dense")


def score(facts):
    return facts["arrived"] * 1.0


def judge(pairs):
    return (pairs.first.returns > pairs.second.returns).float()


class Model(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.score = torch.nn.Linear(spec.obs_size, 1)

    def forward(self, transitions):
        return self.score(transitions.next_obs).squeeze(-1).sum(-1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with code that leaves a mark when it is imported."""
    (tmp_path / "theirs.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return tmp_path


def trained(*flags: str) -> Path:
    assert run("train", *QUICK, "--run-dir=run", *flags) == 0
    return Path("run")


def forget(folder: Path) -> None:
    """Make the run a stranger's: nothing of it was imported, and it is on no list."""
    sys.modules.pop("theirs", None)
    (folder / "imported").unlink(missing_ok=True)


def foreign(run_folder: Path, **settings: Any) -> None:
    """Change settings in a run's file and in its checkpoint, as somebody could who sends it."""
    config = load_config(run_folder / "config.toml", settings)
    save_config(config, run_folder / "config.toml")
    step, saved = load_checkpoint(run_folder / "checkpoints")
    saved["config"] = marl.config.io.to_dict(config)
    save_checkpoint(run_folder / "checkpoints", step, saved, keep=1)


ENVIRONMENT = {"env.name": "theirs:env"}
OUTCOME = {"env.options.reward_mode": "outcome", "env.options.reward_outcome": "theirs:score"}
MODEL = {"reward.model": "theirs:Model"}
LABELLER = {"preferences.labeller": "theirs:judge"}


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (ENVIRONMENT, "evaluate"),
        (ENVIRONMENT, "watch"),
        (ENVIRONMENT, "label"),
        (ENVIRONMENT, "resume"),
        (OUTCOME, "evaluate"),
        (OUTCOME, "resume"),
        (MODEL, "watch"),
        (MODEL, "labels"),
        (LABELLER, "resume"),
        (LABELLER, "export"),
    ],
)
def test_code_of_a_strangers_run_is_refused(
    settings: dict[str, str], command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "label":
        pytest.importorskip("fastapi", reason="needs the extra people")
    trained()
    foreign(Path("run"), **settings)
    assert run(command, "run", *(["pairs"] if command == "export" else [])) == 1
    said = capsys.readouterr().err
    setting, path = list(settings.items())[-1]
    assert f"run names code that would be imported and run: {setting} = {path!r}" in said
    assert "--trust" in said
    assert "Traceback" not in said
    assert not (folder / "imported").exists()


def test_labels_asks_a_strangers_labeller_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained()
    foreign(Path("run"), **LABELLER)
    assert run("labels", "run", "--ask-again") == 1
    assert "preferences.labeller = 'theirs:judge'" in capsys.readouterr().err
    assert not (folder / "imported").exists()


def test_a_shell_command_is_not_run(folder: Path) -> None:
    trained()
    foreign(Path("run"), **{"env.name": "os:system", "env.options": {"command": "touch imported"}})
    assert run("evaluate", "run") == 1
    assert not (folder / "imported").exists()


@pytest.mark.usefixtures("folder")
def test_ones_own_run_is_trusted_until_its_code_changes() -> None:
    trained("--env.name=theirs:env")
    assert run("evaluate", "run", "--episodes=1", "--num-envs=1") == 0
    foreign(Path("run"), **LABELLER)
    assert run("evaluate", "run", "--episodes=1", "--num-envs=1") == 1


@pytest.mark.usefixtures("folder")
def test_shipped_names_need_no_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    assert run("evaluate", "run", "--episodes=1", "--num-envs=1") == 0
    assert not (tmp_path / "elsewhere").exists()


def test_trust_is_a_flag(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("--env.name=theirs:env")
    forget(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "elsewhere"))
    few = ("--episodes=1", "--num-envs=1")
    assert run("evaluate", "run", *few) == 1
    assert not (folder / "imported").exists()
    assert run("evaluate", "run", *few, "--trust") == 0
    assert (folder / "imported").exists()


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("\n", 1), ("n\n", 1)])
def test_a_terminal_is_asked(
    answer: str, status: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    trained("--env.name=theirs:env")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "elsewhere"))
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("evaluate", "run", "--episodes=1", "--num-envs=1") == status


def test_a_file_of_settings_is_asked_about_what_the_command_line_does_not_name(
    folder: Path,
) -> None:
    (folder / "found.toml").write_text('[env]\nname = "theirs:env"\n')
    rest = [*QUICK[1:], "--config=found.toml"]
    assert run("train", *rest, "--run-dir=a") == 2
    assert not (folder / "imported").exists()
    assert run("train", *rest, "--run-dir=b", "--env.name", "theirs:env") == 0
    assert run("train", *rest, "--run-dir=c", "--trust") == 0


def test_a_labelling_run_is_asked_about_its_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("--reward.model=theirs:Model")
    forget(folder)
    labels = ["--preferences.labeller=model", "--preferences.model.run=run"]
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "elsewhere"))
    assert run("train", *QUICK, *labels, "--run-dir=second") == 1
    assert "reward.model = 'theirs:Model'" in capsys.readouterr().err
    assert not (folder / "imported").exists()


def test_a_strangers_policy_acts_without_its_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained("--env.name=theirs:env")
    forget(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "elsewhere"))
    policy = marl.load("run")
    spec = policy.spec
    policy.act([[0.0] * spec.obs_size] * spec.num_agents)
    with pytest.raises(ConfigError, match="trust=True"):
        policy.open_env(1)
    assert not (folder / "imported").exists()
    with marl.load("run", trust=True).open_env(1) as env:
        assert env.spec.num_envs == 1
