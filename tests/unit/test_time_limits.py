"""How an episode ends when the task, the time or both end it."""

import numpy as np
import pytest
import torch

from envs.adapters.quirks import FoundLimit, found_time_limit
from envs.base import split_ends


@pytest.mark.parametrize(
    ("finite_horizon", "terminated", "truncated"),
    [
        # Nothing, the time, the task, both: what the task ends is terminated.
        (False, [False, False, True, True], [False, True, False, False]),
        (True, [False, True, True, True], [False, False, False, False]),
    ],
)
def test_split_ends(finite_horizon: bool, terminated: list[bool], truncated: list[bool]) -> None:
    task_over, out_of_time = [False, False, True, True], [False, True, False, True]
    for kind in (np.array, torch.tensor):
        ends = split_ends(finite_horizon, kind(task_over), kind(out_of_time))
        assert [end.tolist() for end in ends] == [terminated, truncated]
    each = [split_ends(finite_horizon, *pair) for pair in zip(task_over, out_of_time, strict=True)]
    assert each == list(zip(terminated, truncated, strict=True))


def test_found_time_limit() -> None:
    class Inner:
        max_steps = 0
        _max_episode_steps = np.int64(7)

    class Wrapper:
        max_cycles = True
        env = Inner()

    # A limit is a whole number above zero; the wrapper shows none, what it wraps does.
    assert found_time_limit(Wrapper()) == FoundLimit("_max_episode_steps", 7)
    assert found_time_limit(object()) is None
