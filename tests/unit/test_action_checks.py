"""Actions of the wrong shape, type or size are refused with what to give instead."""

import re
from typing import Any

import numpy as np
import pytest

from envs import EnvError, make_env


@pytest.mark.parametrize(
    ("name", "actions", "words"),
    [
        ("probe/masked", np.zeros((3, 5), np.int64), "give integer actions of shape (3, 2)"),
        ("probe/masked", np.zeros((3, 2)), "got float64 actions"),
        ("probe/masked", np.full((3, 2), 99), "action 99 of copy 0, agent 0 is illegal"),
        ("probe/continuous_match", np.zeros((3, 4)), "give float actions of shape (3, 2, 2)"),
        ("probe/continuous_match", np.full((3, 2, 2), np.nan), "is illegal"),
    ],
)
def test_what_is_refused(name: str, actions: Any, words: str) -> None:
    env = make_env(name, 3)
    env.reset(0)
    with pytest.raises(EnvError, match=re.escape(words)):
        env.step(actions)
