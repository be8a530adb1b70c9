"""A Ray cluster of two nodes trains a run and a sweep, and loses a node.

The continuous integration has no Ray: CONTRIBUTING.md says how to run this.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.trials import differences, flags
from marl.config.io import load_config
from marl.reports.recorded import find_runs, read_run
from marl.utils.checkpoint import list_checkpoints
from tests.processes import ROOT, SIX_ITERATIONS

pytest.importorskip("ray")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ |= {"RAY_memory_monitor_refresh_ms": "0"}  # whatever else runs on this machine
from ray.cluster_utils import Cluster

SWEEP = """
seeds = [0]
[settings]
env.name = "particles/nav_3"
env.num_envs = 4
learner.rollout_steps = 25
preferences.replay_steps = 800
checkpoint_every = 400
total_steps = 2000
[search]
learner.gamma = [0.9, 0.95, 0.98, 0.99]
algorithm = ["sparse", "dense"]
"""
"""Eight trials."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Yield a cluster: a node for the command, on which nothing is trained, and one of two."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def add_node(cluster: Cluster) -> Any:
    """Return a new node, on which a run or one of two processes has room.

    On one host, Ray takes a command to be on the node that was added last: lose an older one.
    """
    address = f"127.0.0.{len(cluster.worker_nodes) + len(_lost) + 2}"
    return cluster.add_node(num_cpus=1, node_ip_address=address)


def lose(cluster: Cluster, node: Any) -> None:
    """Kill a node."""
    _lost.append(node)
    cluster.remove_node(node, allow_graceful=False)


_lost: list[Any] = []


def begin(cluster: Cluster | None, cwd: Path, *arguments: object) -> "subprocess.Popen[str]":
    """Start `marl ARGUMENTS` in a cluster, or in one that it starts itself."""
    address = {} if cluster is None else {"RAY_ADDRESS": cluster.address}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | address
    return subprocess.Popen(
        [sys.executable, "-m", "marl", *map(str, arguments)],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", status: int = 0) -> tuple[str, str]:
    """Return what a command has printed and said, having ended with a status."""
    printed, said = process.communicate(timeout=900)
    assert process.returncode == status, (printed, said)
    return printed, said


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two processes that torchrun has started."""
    folder = tmp_path_factory.mktemp("runs") / "torchrun"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    training = ["train", *flags(SIX_ITERATIONS), "--run-dir", str(folder)]
    subprocess.run(
        [*torchrun, "--nproc-per-node=2", "-m", "marl", *training],
        cwd=folder.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=240,
        check=True,
    )
    return folder


def test_two_nodes_come_to_what_torchrun_comes_to(
    cluster: Cluster, by_torchrun: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        add_node(cluster)
    run = tmp_path / "runs" / "of two"
    training = ["train", *flags(SIX_ITERATIONS), "--ray-workers", 2, "--run-dir", run]
    printed, said = ended(begin(cluster, tmp_path, *training))
    assert "2 processes" in printed
    assert printed.count("done; look at") == 1
    assert "error: " not in said
    assert differences(by_torchrun, run) == []
    assert len(list((run / "checkpoints").glob("*.process1"))) == 3
    # What is wrong is one line, whoever finds it.
    _, said = ended(begin(cluster, tmp_path, *training), 1)
    assert said.startswith("error: ")
    assert "already holds a run" in said
    _, said = ended(begin(cluster, tmp_path, "resume", run, "--ray-workers", 1), 1)
    assert said.count("error: ") == 1
    assert "was saved by 2 processes, and here train 1" in said
    resumed = begin(
        cluster, tmp_path, "resume", run, "--ray-workers", 1, "--reshard", "--total-steps", 800
    )
    printed, _ = ended(resumed)
    assert "saved by 2, now trained by 1 processes" in printed
    assert read_run(run).steps == 800


def test_a_run_goes_on_when_a_node_is_lost(
    cluster: Cluster, by_torchrun: Path, tmp_path: Path
) -> None:
    lost, other = add_node(cluster), add_node(cluster)
    assert other is not lost
    longer = SIX_ITERATIONS | {"total_steps": 2000}
    run = tmp_path / "run"
    process = begin(
        cluster, tmp_path, "train", *flags(longer), "--ray-workers", 2, "--run-dir", run
    )
    while not list_checkpoints(run / "checkpoints"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    lose(cluster, lost)
    add_node(cluster)
    ended(process)
    alone = tmp_path / "alone"
    training = ["train", *flags(longer), "--ray-workers", 2, "--run-dir", alone]
    ended(begin(cluster, tmp_path, *training))
    assert read_run(run).steps == 2000
    assert differences(alone, run) == []


def test_ctrl_c_saves_and_a_cluster_of_this_machine_is_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = ["train", *flags(SIX_ITERATIONS | {"total_steps": 10**7}), "--ray-workers", 2]
    process = begin(None, tmp_path, *training, "--run-dir", run)
    while not list_checkpoints(run / "checkpoints"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = ended(process, 130)
    assert f"continue with: marl resume {run} --ray-workers 2" in printed
    assert read_run(run).state == "stopped"


def test_a_sweep_ends_complete_though_a_node_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    lost, other = add_node(cluster), add_node(cluster)
    assert other is not lost
    file = tmp_path / "mine.toml"
    file.write_text(SWEEP)
    process = begin(cluster, tmp_path, "sweep", file, "--ray", "--out", "out")
    trials = tmp_path / "out" / "trials"
    while sum(1 for run in find_runs(trials) if read_run(run, ()).steps) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    lose(cluster, lost)
    printed, _ = ended(process)
    assert "8 of 8 runs finished" in printed
    for run in find_runs(trials):
        assert read_run(run).steps == load_config(run / "config.toml").total_steps
    # The same as on this machine, bit for bit.
    ended(begin(None, tmp_path, "sweep", file, "--jobs", 2, "--out", "alone"))
    for name in ("trials.csv", "trials.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_what_finds_no_place_is_told(cluster: Cluster, tmp_path: Path) -> None:
    code = (
        "import marl.commands.ray_workers as ours\n"
        "ours.START_SECONDS = 1\n"
        "from marl.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *flags(SIX_ITERATIONS), "--ray-workers", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "have not all found a place within 3 s; the cluster has 0 processors" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, "-m", "marl", "sweep", str(file), "--ray"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: --ray: the Ray cluster at RAY_ADDRESS=127.0.0.1:1 cannot")
    assert not (tmp_path / "sweeps").exists()
