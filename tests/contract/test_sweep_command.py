"""The command `marl sweep`: its processes, how it ends, and what an array of jobs does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.config import Config
from marl.config.io import load_config, save_config
from marl.reports.recorded import read_run
from marl.sweeps.folder import Job
from tests.command_line import run

FILE = """
seeds = [0, 1]
evaluation_seeds = [5]
[settings]
env.name = "particles/nav_3"
env.num_envs = 4
learner.rollout_steps = 25
total_steps = 600
[search]
algorithm = ["sparse", "dense"]
"""


class FakeWorker:
    """A process that has trained as soon as it has begun; some fail."""

    fails: tuple[tuple[int, int], ...] = ()
    begun: tuple[str, ...] = ()

    def __init__(self, job: Job, config: Config, trust: bool) -> None:
        self.job = job
        type(self).begun += (str(job.folder.relative_to(job.folder.parents[2])),)
        assert config.threads == 1
        assert not trust
        self._failed = (job.trial, job.seed) in self.fails
        if self._failed:
            return
        job.folder.mkdir(parents=True)
        config = load_config(job.settings, {"seed": job.seed})
        save_config(config, job.folder / "config.toml")
        gain = 10.0 if config.algorithm == "dense" else 0.0
        rows = "".join(f"{100 * n},{gain + job.seed},1\n" for n in range(1, 7))
        (job.folder / "metrics.csv").write_text(f"step,return/mean,return/episodes\n{rows}")

    def status(self) -> int:
        return int(self._failed)

    def reason(self) -> str:
        return "it broke"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    class Worker(FakeWorker):
        pass

    monkeypatch.setattr("marl.sweeps.runner.Worker", Worker)
    monkeypatch.setattr("marl.sweeps.runner._POLL", 0.0)
    return Worker


def test_a_sweep_from_its_file_to_its_table(
    tmp_path: Path, worker: type[FakeWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    file.write_text(FILE)
    assert run("sweep", file, "--jobs", "2", "--out", out) == 0
    trials = [f"trials/000{trial}/seed_{seed}" for seed in (0, 1) for trial in (0, 1)]
    assert list(worker.begun) == [*trials, "evaluation/0001/seed_5"]
    shown = capsys.readouterr().out
    assert "| 1 | dense | finished | 10.50 | 0: 10.00; 1: 11.00 |" in shown
    assert "Trial 1 with evaluation seeds, by which it was not chosen: 15.00 (5: 15.00)." in shown
    assert (out / "comparison.png").exists()
    worker.begun = ()
    assert run("sweep", file, "--out", out) == 0  # nothing is left to do
    assert worker.begun == ()
    assert run("compare", out, "--out", tmp_path / "compared") == 0
    assert "| dense | 0, 1 |" in (tmp_path / "compared" / "comparison.md").read_text()


def test_a_run_that_fails_is_told_and_tried_again(
    tmp_path: Path, worker: type[FakeWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    file.write_text(FILE)
    worker.fails = ((1, 0),)
    assert run("sweep", file, "--out", out) == 1
    shown = capsys.readouterr().out
    assert "trial 1, seed 0 failed: it broke" in shown
    assert "- trial 1, seed 0: it broke" in shown
    assert "1 of 2 trials have failed runs" in shown
    assert "trials/0001/seed_1" in worker.begun  # the others are trained all the same
    assert "evaluation/0000/seed_5" in worker.begun  # of the best that is finished
    worker.fails, worker.begun = (), ()
    assert run("sweep", file, "--out", out) == 0
    assert list(worker.begun) == ["trials/0001/seed_0", "evaluation/0001/seed_5"]


def test_one_trial_of_an_array(
    tmp_path: Path, worker: type[FakeWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    file.write_text(FILE)
    assert run("sweep", file, "--trial", "1", "--out", out) == 0
    assert list(worker.begun) == ["trials/0001/seed_0", "trials/0001/seed_1"]
    assert "trial 1 finished" in capsys.readouterr().out
    assert not (out / "trials.md").exists()
    worker.fails = ((0, 1),)
    assert run("sweep", file, "--trial", "0", "--out", out) == 1
    assert "trial 0 failed\nit broke" in capsys.readouterr().out
    assert run("sweep", file, "--trial", "2", "--out", out) == 1
    assert "--trial: got 2, but the sweep has 2 trials, from 0" in capsys.readouterr().err


def test_two_sweeps_in_one_folder_are_refused(
    tmp_path: Path, worker: type[FakeWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    from marl.utils.files import held

    file, out = tmp_path / "mine.toml", tmp_path / "out"
    file.write_text(FILE)
    out.mkdir()
    with held(out / ".lock", "taken"):
        pass
    assert run("sweep", file, "--trial", "0", "--out", out) == 0
    with held(out / ".writer", "taken"):
        assert run("sweep", file, "--out", out) == 1
    assert "is being worked on by another `marl sweep`" in capsys.readouterr().err.replace(
        "\n", " "
    )


NAMED = """
seeds = [0, 1, 2]
against = "dense"
[settings]
total_steps = 600
[tasks.first]
env.name = "particles/nav_3"
[tasks.second]
env.name = "particles/nav_6"
[variants]
sparse.algorithm = "sparse"
dense.algorithm = "dense"
"""


def test_named_tasks_and_what_is_kept_of_them(
    tmp_path: Path, worker: type[FakeWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, keep = tmp_path / "mine.toml", tmp_path / "out", tmp_path / "kept"
    file.write_text(NAMED)
    assert run("sweep", file, "--out", out, "--keep", keep, "--only", "first") == 0
    assert "first/dense, seed 0 finished, 10.00; 2 of 12 runs finished" in capsys.readouterr().out
    assert len(worker.begun) == 6
    assert run("sweep", file, "--out", out, "--keep", keep) == 0
    assert len(worker.begun) == 12
    page = (keep / "comparison.md").read_text()
    assert "| second | 11.00 [10.00, 12.00] | 1.00 [0.00, 2.00] |" in page
    assert "| second | above |" in page
    # Another machine has what is kept, and not the runs.
    worker.begun = ()
    assert run("sweep", file, "--out", tmp_path / "elsewhere", "--keep", keep) == 0
    assert worker.begun == ()
    assert "| 3 | second | dense | finished | 11.00 [10.00, 12.00] |" in capsys.readouterr().out
    compared = [tmp_path / name for name in ("runs", "kept_runs")]
    for place, folder in zip((out, keep), compared, strict=True):
        assert run("compare", place, "--against", "dense", "--out", folder) == 0
    first, second = ((folder / "comparison.md").read_text() for folder in compared)
    assert first.splitlines()[:20] == second.splitlines()[:20]
    # What is kept must belong to this sweep, also what is not wanted now.
    (keep / "second" / "dense" / "seed_1.json").write_text("{}")
    assert run("sweep", file, "--out", tmp_path / "new", "--keep", keep, "--only", "first") == 1
    told = capsys.readouterr().err.replace("\n", " ")
    assert "seed_1.json holds no kept run: it has no 'kept'; remove it, or" in told
    assert run("sweep", file, "--out", tmp_path / "new", "--keep", file) == 1
    assert "choose another --keep" in capsys.readouterr().err.replace("\n", " ")
    assert run("sweep", file, "--quick", "--keep", keep) == 1
    assert "leave out --keep" in capsys.readouterr().err.replace("\n", " ")
    assert worker.begun == ()
    assert run("sweep", file, "--only", "third") == 1
    assert "has no task third; it has first, second" in capsys.readouterr().err.replace("\n", " ")
    assert run("sweep", file, "--only", "first/third") == 1
    assert "has no task first/third; it has first" in capsys.readouterr().err.replace("\n", " ")
    assert run("sweep", file, "--only", "first", "--trial", "0") == 1
    assert "leave out one of them" in capsys.readouterr().err.replace("\n", " ")
    assert run("sweep", file, "--out", tmp_path / "one", "--only", "second/sparse") == 0
    assert worker.begun == tuple(f"second/sparse/seed_{seed}" for seed in range(3))
    assert run("sweep", file, "--drop-checkpoints") == 1
    assert "give --keep, too" in capsys.readouterr().err.replace("\n", " ")


def test_ctrl_c_saves_the_runs_and_what_fails_says_why(tmp_path: Path) -> None:
    """Real processes: one run that trains for long, one whose environment is not there."""
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    changes = {
        "[0, 1]": "[0]",
        "evaluation_seeds = [5]": "",
        "= 600": "= 1_000_000_000",
        'env.name = "particles/nav_3"': 'algorithm = "sparse"',
        'algorithm = ["sparse", "dense"]': 'env.name = ["no_such:Env", "particles/nav_3"]',
    }
    content = FILE
    for old, new in changes.items():
        content = content.replace(old, new)
    file.write_text(content)
    command = [sys.executable, "-m", "marl", "sweep", str(file), "--trust", "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folder = out / "trials" / "0001" / "seed_0"
    assert process.stdout is not None
    failure = process.stdout.readline()
    assert failure.startswith("trial 0, seed 0 failed: environment 'no_such:Env': no module")
    while not ((folder / "metrics.csv").exists() and read_run(folder, ()).steps):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    shown = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "letting the runs finish their iterations and save; once more ends it at once" in shown
    assert "stopped and saved; the same command goes on: marl sweep" in shown
    assert "- trial 0, seed 0: environment 'no_such:Env'" in shown
    stopped = read_run(folder)
    assert stopped.state == "stopped"
    assert f"step_{stopped.steps:012d}.ckpt" in os.listdir(folder / "checkpoints")
