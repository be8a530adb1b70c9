"""When a benchmark's run counts as solved, and what stands in the table."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import time_to_solve
from benchmarks.time_to_solve import Goal, LastEpisodes, result_path, solve

GOAL = Goal(config="", measure="return/mean", level=-8.5, episodes=4, steps=100)


def test_the_mean_is_over_the_last_episodes_once_enough_have_ended() -> None:
    last = LastEpisodes(4)
    assert math.isnan(last.add(9.0, 2.0))
    assert math.isnan(last.add(math.nan, 0.0))
    assert last.add(3.0, 3.0) == pytest.approx((2 * 9 + 3 * 3) / 5)
    assert last.add(5.0, 4.0) == 5.0  # the older ones are not needed any more


def test_a_run_ends_where_the_level_is_reached() -> None:
    returns = [-20.0, -10.0, -8.0, -1.0]
    metrics = [
        {"steps": 10.0 * (i + 1), "return/mean": x, "return/episodes": 4.0}
        for i, x in enumerate(returns)
    ]
    found = solve(GOAL, metrics)
    assert found["solved"]
    assert found["steps"] == 30
    assert [mean for _, _, mean in found["curve"]] == returns[:3]
    assert not solve(GOAL, metrics[:2])["solved"]


def test_finished_runs_are_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_to_solve.subprocess, "run", None)
    runs = {0: (True, 20.0), 1: (True, 30.0), 2: (False, 90.0)}
    for seed, (solved, seconds) in runs.items():
        known = {"task": "nav_6", "variant": "default", "seed": seed, "solved": solved}
        times = {"cpu_seconds": seconds, "wall_seconds": 2 * seconds, "steps": 1000 * seed}
        path = result_path(tmp_path, "nav_6", "default", seed)
        path.write_text(json.dumps(known | times))
    time_to_solve.main(["--tasks", "nav_6", "--seeds", "0", "1", "2", "--results", str(tmp_path)])
    row = capsys.readouterr().out.splitlines()[-1]
    assert "| default | 2 of 3 | 30 (20, 30, > 90) | 60 | 1,000 |" in row
