"""The command `marl`, run in this process, and a run that takes a second."""

from pathlib import Path

import pytest

from marl.cli import main

QUICK = [
    "--env.name=particles/nav_3",
    "--env.num-envs=4",
    "--learner.rollout-steps=25",
    "--preferences.replay-steps=1000",
    "--total-steps=300",
]
"""Settings of `marl train`."""


def run(*arguments: str | Path) -> int:
    """Return the exit status of `marl ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)
