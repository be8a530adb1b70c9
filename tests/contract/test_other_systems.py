"""What only POSIX or Linux has may be missing: everything is imported, and training works.

Windows and macOS are not at hand here. A process that lacks their missing parts stands for them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import faulthandler, importlib, os, pathlib, signal, sys

# The libraries come first: they know the system that is really there.
for name in (
    "fastapi", "filelock", "gymnasium.vector", "gymnasium_robotics", "matplotlib.figure", "mujoco",
    "openai", "pettingzoo", "rich.live", "tempfile", "torch.utils.tensorboard", "tyro", "uvicorn",
    "webbrowser",
):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
sys.platform = sys.argv.pop(1)
if sys.platform == "win32":
    for name in ("fcntl", "resource", "pwd", "termios"):
        sys.modules[name] = None
    for module, names in (
        (signal, ("SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "setitimer")),
        (os, ("fork", "getuid", "register_at_fork", "sysconf", "sysconf_names")),
        (faulthandler, ("register",)),
    ):
        for name in names:
            delattr(module, name)
is_there = pathlib.Path.exists
pathlib.Path.exists = lambda path: not str(path).startswith("/proc") and is_there(path)
"""

MODULES = """
import importlib, pkgutil
import envs, marl
optional = {"jax", "jaxmarl", "smacv2", "vmas", "fastapi", "uvicorn"}
for package in (envs, marl):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] not in optional:
                raise
print("all imported", flush=True)
"""

TRAIN = """
from marl.cli import main
main()
"""

LABELLER = """
def sooner(pairs):
    return (pairs.first.lengths < pairs.second.lengths).float()
"""


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_it_imports_and_trains(system: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LABELLER)
    flags = ["--env.name=particles/nav_3", "--env.num-envs=4", "--learner.rollout-steps=25"]
    flags += ["--preferences.replay-steps=1000", "--total-steps=300", "--run-dir=run"]
    flags += ["--preferences.labeller=mine:sooner"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + MODULES + TRAIN, system, "train", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("all imported\n")
    assert (tmp_path / "run" / "curve.png").exists()
