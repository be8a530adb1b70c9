"""The command line keeps its promises: exit codes, messages, signals, plug-ins."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from envs.registry import EXTRAS, FAMILIES, Family
from marl.commands.inspection import Evaluate
from marl.utils.checkpoint import list_checkpoints
from marl.utils.metrics import read_metrics
from tests.command_line import QUICK, run


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run("train", *QUICK, "--run-dir", str(folder)) == 0
    for name in ("config.toml", "metrics.csv", "curve.png", "tensorboard", "checkpoints"):
        assert (folder / name).exists(), name
    assert run("evaluate", str(folder), "--episodes", "8", "--num-envs", "4") == 0
    shown = capsys.readouterr().out
    assert "greedy" in shown
    assert "sampled" in shown
    assert (folder / "evaluation.json").exists()


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 3\nalgorithm = "sl"\n')
    folder = tmp_path / "run"
    assert run("train", "--config", str(file), *QUICK, "--seed=4", "--run-dir", str(folder)) == 0
    saved = (folder / "config.toml").read_text()
    assert "seed = 4" in saved
    assert 'algorithm = "sl"' in saved


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--algorithm=imapp"], 2, "did you mean 'imap'?"),
        (["train", "--algorithm=mappo"], 2, '"sparse" is plain MAPPO'),
        (["train", "--learner.gama=1"], 2, "did you mean --learner.gamma?"),
        (["train", "--learner.lr=1"], 2, "did you mean --learner.learning-rate?"),
        (["train", "--lr=1"], 2, "did you mean --learner.learning-rate or --reward.learning-rate?"),
        (["train", "--learner.ent-coef=1"], 2, "did you mean --learner.entropy-coef?"),
        (["train", "--learner.no-aneal"], 2, "did you mean --learner.anneal?"),
        (["train", "--total-timesteps=1"], 2, "did you mean --total-steps?"),
        (["train", "--env", "nav_6"], 2, "no option --env; did you mean --env.name?"),
        (["trian"], 2, "did you mean `marl train`? `marl` lists all"),
        (["watch", "zoo/nav_6"], 1, "zoo/nav_6 is not made yet: marl zoo nav_6"),
        (["train", "--seed=1.5"], 2, "got '1.5', expected a whole number such as 64 or 1e6"),
        (["train", "--env.options", "workers"], 2, "expected a value after every key"),
        (["train", "nowhere"], 2, "'nowhere' is one argument too many"),
        (["watch", "nowhere", "--width=3"], 2, "--width: got 3, expected a number from 320 to"),
        (["export", "nowhere", "x", "--episodes=0"], 2, "--episodes: got 0, expected a number"),
        (["train", "--learner.gamma=3"], 2, "learner.gamma: got 3.0, expected a number from 0 to"),
        (["train", "--config=no.toml"], 2, "no.toml: no such config file"),
        (["train", "--env.name=mamujoco/halfcheetah_2x4"], 1, "nearest: '2x3'"),
        (["train", "--env.name=no_such_module:Env"], 1, "no_such_module"),
        (["resume", "nowhere"], 1, "nowhere is not a run folder"),
        (["evaluate", "nowhere"], 1, "nowhere is not a run folder"),
    ],
)
def test_a_wrong_command_says_what_to_do(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert run(*arguments) == status
    captured = capfd.readouterr()
    assert message in (captured.out + captured.err).replace("\n", " ")


def test_a_folder_of_runs_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").touch()
    assert run("evaluate", tmp_path) == 1
    assert f"name one of the runs in it, e.g. {tmp_path / 'b'}" in capsys.readouterr().err


def test_help_breaks_lines_at_the_width_of_the_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the next word would still have fitted, the break is one of the source."""
    monkeypatch.setenv("COLUMNS", "100")
    assert run("train", "--help") == 0
    lines = [line.strip("│").rstrip() for line in capsys.readouterr().out.splitlines()]
    texts = [line.strip() if line.startswith(" " * 7) else "" for line in lines]
    following = [(one, other) for one, other in pairwise(texts) if one and other]
    assert len(following) > 50
    for text, after in following:
        assert len(text) + 1 + len(after.split()[0]) > 90, text


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in ("train", "resume", "evaluate", "check", "envs"))


def test_check_passes_a_shipped_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "probe/coordination", "--steps", "40") == 0
    assert "0 faults" in capsys.readouterr().out


def test_envs_lists_names_and_how_to_install_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family = Family(module="no.such", summary="battles", needs="no_such_package_here")
    monkeypatch.setitem(EXTRAS, "no_such_package_here", "battles")
    monkeypatch.setitem(FAMILIES, "battle", family)
    assert run("envs") == 0
    shown = capsys.readouterr().out
    assert "  mamujoco/halfcheetah_2x3\n" in shown
    fix = (
        "no_such_package_here needs an extra; where this project lies, run: "
        "pip install -c constraints.txt '.[battles]'"
    )
    assert f"battle: battles\n  not installed: {fix}" in shown
    assert run("check", "battle/royale") == 1
    assert fix in capsys.readouterr().err.replace("\n", " ")


def test_two_files_of_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.toml", "two.toml"):
        (tmp_path / name).write_text("seed = 1\n")
    both = [f"--config={tmp_path / name}" for name in ("one.toml", "two.toml")]
    assert run("train", *both) == 2
    assert "expected one file; put both into one" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_names_the_way_on(number: int, status: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "from marl.cli import main; main()", "train", *QUICK]
    process = subprocess.Popen(
        [*command, "--total-steps=1000000", "--run-dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (
        not (folder / "metrics.csv").exists() or b"\n1" not in (folder / "metrics.csv").read_bytes()
    ):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # as `timeout` does, which signals a process and its group
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "finishing this iteration and saving; once more ends it at once" in errors
    assert f"marl resume {folder}" in output
    assert len(list_checkpoints(folder / "checkpoints")) == 1


def test_an_interrupt_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(self: Evaluate) -> int:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluate, "run", interrupted)
        assert run("evaluate", tmp_path) == 130
    assert capsys.readouterr().err == "stopped; what was not finished is not kept\n"


def test_commands_keep_operations_on_one_thread(tmp_path: Path) -> None:
    source, threads = tmp_path / "run", torch.get_num_threads()
    assert run("train", *QUICK, "--total-steps=100", "--run-dir", source) == 0
    few = ["--episodes=1", "--num-envs=1"]
    try:
        for command in (
            ["evaluate", source, *few],
            ["sample", source, tmp_path / "demos", *few],
            ["watch", source, "--max-frames=2"],
            ["labels", source],
        ):
            torch.set_num_threads(2)
            assert run(*command) == 0
            assert torch.get_num_threads() == 1, command[0]
    finally:
        torch.set_num_threads(threads)


COUNTING = """
from functools import partial
from envs.adapters.team_env import TeamEnv
from tests.counting_team import CountingTeam

def counting(num_envs, workers):
    return TeamEnv(partial(CountingTeam, sleep=0.02), num_envs, workers=workers)
"""


def test_a_signal_to_the_whole_group_saves_what_workers_play(tmp_path: Path) -> None:
    """`timeout`, systemd and Slurm signal all processes at once."""
    (tmp_path / "counting.py").write_text(COUNTING)
    marl = [sys.executable, "-c", "from marl.cli import main; main()"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    options = [
        "--algorithm=sparse",
        "--env.name=counting:counting",
        "--env.options",
        "workers",
        "2",
    ]
    process = subprocess.Popen(
        [*marl, "train", *QUICK, *options, "--total-steps=1000000", "--run-dir=run"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "run" / "metrics.csv"
    while not metrics.exists() or b"\n1" not in metrics.read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.3)  # well into the next rollout, which takes a second
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.count("finishing this iteration and saving") == 1
    assert "marl resume run" in output
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert int(checkpoint.stem.removeprefix("step_")) == read_metrics(tmp_path / "run")["step"][-1]

    resumed = subprocess.Popen(
        [*marl, "resume", "run"], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL
    )
    steps = len(read_metrics(tmp_path / "run")["step"])
    while len(read_metrics(tmp_path / "run")["step"]) == steps:
        assert resumed.poll() is None
        time.sleep(0.05)
    resumed.terminate()
    assert resumed.wait(timeout=60) == 143


LABELLER = """
def sooner_is_better(pairs):
    gap = pairs.second.lengths - pairs.first.lengths
    return gap.sign() * 0.5 + 0.5

def too_few(pairs):
    return pairs.first.returns[1:]
"""

REWARD = """
import torch
from marl import Rewards

class NextObservationReward(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.score = torch.nn.Linear(spec.obs_size, 1)

    def forward(self, transitions):
        local = self.score(transitions.next_obs).squeeze(-1)
        return Rewards(team=local.sum(-1), local=local)

class WrongShape(NextObservationReward):
    def forward(self, transitions):
        return self.score(transitions.next_obs)
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with plug-ins of the user's own."""
    (tmp_path / "my_labels.py").write_text(LABELLER)
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_labels", "my_reward"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "flag",
    [
        "--preferences.labeller=my_labels:sooner_is_better",
        "--reward.model=my_reward:NextObservationReward",
    ],
)
def test_plugins_train(flag: str, plugins: Path) -> None:
    assert run("train", *QUICK, flag, "--run-dir", str(plugins / "run")) == 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--preferences.labeller=my_labels:too_few", "my_labels:too_few returned shape"),
        ("--reward.model=my_reward:WrongShape", "my_reward:WrongShape returned team rewards of"),
        ("--preferences.labeller=my_labels:sooner_is_beter", "did you mean 'sooner_is_better'"),
    ],
)
def test_a_wrong_plugin_is_named(
    flag: str, message: str, plugins: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *QUICK, flag, "--run-dir", str(plugins / "run")) == 1
    assert message in capfd.readouterr().err.replace("\n", " ")
