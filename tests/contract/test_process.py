"""What importing and training leave of the process that they run in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import marl
from tests.command_line import QUICK, run

SMALL = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "learner.rollout_steps": 25,
    "preferences.replay_steps": 1000,
    "total_steps": 200,
}


def test_training_from_python_keeps_the_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    try:
        list(marl.train(marl.load_config(overrides=SMALL)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_command_runs_operations_on_one_thread(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        assert run("train", *QUICK, "--run-dir", tmp_path / "run") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


_WITHOUT_POSIX = """
import importlib.util, math, pathlib, pkgutil, sys
import anyio, filelock, gymnasium.vector, matplotlib.pyplot, mujoco, pydantic, rich.console
import torch.optim.adam, torch.utils.tensorboard, tenacity, tyro  # all of others
extras = ("envs.smac", "envs.jaxmarl", "envs.jumanji", "envs.vmas")
if importlib.util.find_spec("uvicorn") and importlib.util.find_spec("fastapi"):
    import starlette.applications, uvicorn
else:
    people = "marl.preferences.people."
    extras += (people + "server", people + "demonstration_server")
for name in ("resource", "fcntl", "termios", "pwd", "grp"):
    sys.modules[name] = None  # importing it raises ImportError
sys.platform = "win32"
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path, **_: not str(path).startswith("/proc") and exists(path)
import envs, marl
for package in (envs, marl):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(extras):
            importlib.import_module(module.name)
from marl.trainer import resident_mib
assert math.isnan(resident_mib())
torch.set_num_threads(1)
for metrics in marl.train(marl.load_config(overrides={settings!r})):
    pass
assert metrics["steps"] == 200.0
"""


def test_nothing_posix_is_needed_to_import_and_train() -> None:
    """No substitute for a run on Windows, but it fails where an import is not guarded."""
    code = _WITHOUT_POSIX.format(settings=SMALL)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
