"""Workers end with their parent whatever they are doing, and leave nothing behind."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from envs.adapters.team_env import TeamEnv
from tests.contract.test_team_env import is_running
from tests.counting_team import CountingTeam

PARENT = """
import ctypes, sys, threading, time
from functools import partial
import numpy as np
from envs.adapters.team_env import TeamEnv
from tests.counting_team import CountingTeam

class Stuck(CountingTeam):
    def step(self, actions, view):
        if sys.argv[1] == "sleeps":
            time.sleep(1000)
        if sys.argv[1] == "holds the lock":
            ctypes.PyDLL(None).sleep(1000)
        while sys.argv[1] != "is idle":
            try:
                while True:
                    pass
            except SystemExit:
                if sys.argv[1] == "spins":
                    raise
        return super().step(actions, view)

def play():
    global env
    env = TeamEnv(Stuck, 2, workers=2)
    env.reset(0)
    print(*[process.pid for process in env._runner._pool.processes], flush=True)
    env.step(np.zeros((2, 3), np.int64))
    sys.stdin.readline()

if __name__ == "__main__":
    if sys.argv[2] == "thread":
        thread = threading.Thread(target=play)
        thread.start()
        thread.join()
    play()
"""


def start(
    tmp_path: Path, doing: str, where: str = "main"
) -> tuple[subprocess.Popen[str], list[int]]:
    """Return a process whose two workers are stuck, and those."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    parent = subprocess.Popen(
        [sys.executable, script, doing, where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path / "tmp")},
        start_new_session=True,
    )
    assert parent.stdout is not None
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def seconds_until_gone(pids: list[int], limit: float) -> float:
    """Return how long the processes lived on."""
    began = time.monotonic()
    while any(map(is_running, pids)):
        assert time.monotonic() - began < limit, "a worker lives on"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("doing", "limit"),
    [
        ("is idle", 5.0),
        ("spins", 5.0),
        ("sleeps", 5.0),
        ("spins on", 14.0),  # it catches what is to end it
        ("holds the lock", 16.0),  # no Python code can run
    ],
)
def test_stuck_workers_end_with_a_parent_that_was_killed(
    doing: str, limit: float, tmp_path: Path
) -> None:
    parent, workers = start(tmp_path, doing)
    assert len(workers) == 2
    assert len(list((tmp_path / "tmp").glob("marl-workers-*"))) == 1
    time.sleep(0.3)  # they are stuck by now
    parent.kill()
    parent.communicate()
    seconds_until_gone(workers, limit)
    if doing != "holds the lock":
        assert list((tmp_path / "tmp").glob("marl-workers-*")) == []


def test_the_end_of_the_thread_that_made_them_is_none_of_the_workers(tmp_path: Path) -> None:
    parent, workers = start(tmp_path, "is idle", "thread")
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write("\n")  # the thread ends, and its successor makes other workers
    parent.stdin.flush()
    others = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(others) == 2
    parent.communicate("\n", timeout=20)
    seconds_until_gone(workers + others, 5.0)
    assert parent.returncode == 0
    assert list((tmp_path / "tmp").glob("marl-workers-*")) == []


def test_folders_of_processes_that_were_killed_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / "marl-workers-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    (abandoned / "progress_0").touch()
    others = tmp_path / "marl-workers-of-another-program"
    others.mkdir()
    first, second = (TeamEnv(partial(CountingTeam), 2, workers=1) for _ in range(2))
    first.reset(0)
    in_use = set(tmp_path.iterdir()) - {others}
    assert len(in_use) == 1
    assert not abandoned.exists()
    second.reset(0)
    assert in_use < set(tmp_path.iterdir())
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == [others]
