"""Help, lists and mistakes in a command are told before anything heavy is imported."""

import subprocess
import sys

import pytest

HEAVY = (
    "gymnasium",
    "jax",
    "matplotlib",
    "mujoco",
    "openai",
    "pettingzoo",
    "ray",
    "tensorboard",
    "torch",
)
ASK = f"""
import sys
from marl.__main__ import main
try:
    main()
except SystemExit as end:
    print("status", end.code, file=sys.stderr)
print("imported", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["resume", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["watch", "--help"], 0),
        (["label", "--help"], 0),
        (["export", "--help"], 0),
        (["export-policy", "nowhere"], 1),
        (["fit-reward", "--help"], 0),
        (["labels", "--help"], 0),
        (["check", "--help"], 0),
        (["runs", "--help"], 0),
        (["compare", "--help"], 0),
        (["sweep", "--help"], 0),
        (["envs", "--help"], 0),
        (["envs"], 0),
        (["new", "no-name"], 1),
        (["trian"], 2),
        (["train", "--learner.gama=1"], 2),
        (["train", "--learner.gamma=2"], 2),
        (["train", "--algorithm=mappo"], 2),
        (["train", "--config=nowhere.toml"], 2),
        (["train", "--preferences.labeller=nosuch"], 2),
        (["train", "--env.name=nav_6"], 1),
        (["evaluate"], 2),
        (["evaluate", "nowhere"], 1),
        (["resume", "nowhere"], 1),
        (["watch", "nowhere"], 1),
        (["labels", "nowhere"], 1),
        (["runs", "nowhere"], 1),
        (["compare", "--level=x"], 2),
        (["sweep", "nowhere.toml"], 1),
    ],
)
def test_no_heavy_package_is_imported(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=True
    )
    assert f"status {status}\nimported []\n" in done.stderr


def test_importing_the_packages_imports_nothing_heavy() -> None:
    code = f"import sys, marl, envs\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "module", ["marl.reports.audit", "marl.rewards.fit", "marl.runs", "marl.policy"]
)
def test_libraries_are_imported_where_they_are_used(module: str) -> None:
    code = f"""
import sys
import {module}
names = ("jax", "matplotlib", "mujoco", "openai", "pettingzoo", "tensorboard", "uvicorn")
print([name for name in names if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_trainer_imports_only_what_it_uses() -> None:
    code = """
import sys
import marl
trainer = marl.Trainer(marl.load_config(overrides={"env.name": "particles/nav_3"}))
names = ("matplotlib", "mujoco", "openai", "pettingzoo", "tensorboard", "torch._dynamo")
print([name for name in names if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", ["marl", "envs"])
def test_every_public_name_is_found(package: str) -> None:
    module = __import__(package)
    assert all(hasattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_python_m_marl_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "marl", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("prefmarl ")
