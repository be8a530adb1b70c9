"""Two hosts train one run, are cut off from each other, and go on: two network namespaces of Linux.

    sudo python -m benchmarks.two_hosts

Each namespace has an address of its own and sees the other one over a pair of virtual Ethernet
devices, and nothing else. torchrun is started in both with one rendezvous. Then the connection is
cut: no packet tells either side, as when a cable is drawn. Both processes that train must end by
themselves, with whole checkpoints; the same commands, connected again, go on from there, and every
metric must be that of a run that was not cut off. The exit status is 1 if anything is not so.

The 15 minutes that a run waits for a process that does not answer are 20 s here. torchrun itself
may wait longer for its other half, which it has no time-out for: it is killed then.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.trials import ROOT, SMALL, differences, flags
from marl.reports.recorded import read_run
from marl.utils.checkpoint import list_checkpoints
from marl.utils.origin import commit, machine

NAMES = ("marl-one", "marl-two")
DEVICES = ("marl-veth1", "marl-veth2")
ADDRESSES = ("10.77.77.1", "10.77.77.2")
PORT = 29477
ANSWER = 20.0
"""Seconds after which a process that does not answer is taken for lost."""
PATIENCE = 300.0
LONG: dict[str, object] = {"total_steps": 4_800, "checkpoint_every": 800}
_CODE = f"""
import marl.utils.launch
marl.utils.launch.ANSWER_SECONDS = {ANSWER}
from marl.__main__ import main
main()
"""


def ip(*words: str) -> None:
    """Run the command ip."""
    subprocess.run(["ip", *words], check=True)


def inside(host: int, *words: str) -> list[str]:
    """Return a command that runs in a namespace."""
    return ["ip", "netns", "exec", NAMES[host], *words]


@contextmanager
def two_hosts() -> Iterator[None]:
    """Make both namespaces, connected, and remove them."""
    for name in NAMES:
        ip("netns", "add", name)
    try:
        ip("link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1])
        for name, device, address in zip(NAMES, DEVICES, ADDRESSES, strict=True):
            ip("link", "set", device, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMES:
            ip("netns", "delete", name)


def connect(is_up: bool) -> None:
    """Connect the hosts or cut them off."""
    ip("-n", NAMES[1], "link", "set", DEVICES[1], "up" if is_up else "down")


def start(lab: Path, run: Path, *arguments: Any) -> list["subprocess.Popen[str]"]:
    """Start torchrun on both hosts."""
    started = []
    for host, device in enumerate(DEVICES):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += [f"--node-rank={host}", f"--master-addr={ADDRESSES[0]}"]
        torchrun += [f"--master-port={PORT}"]
        command = [sys.executable, *torchrun, str(lab / "train.py"), *map(str, arguments)]
        with (lab / f"said{host}").open("a") as said:
            started.append(
                subprocess.Popen(
                    inside(host, *command),
                    cwd=lab,
                    stdout=said,
                    stderr=said,
                    text=True,
                    env=os.environ
                    | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
                    | {"GLOO_SOCKET_IFNAME": device, "XDG_STATE_HOME": str(lab / "state")},
                )
            )
    return started


def ended(processes: list["subprocess.Popen[str]"]) -> tuple[list[int], float]:
    """Return the statuses of both and the seconds until the later one has ended."""
    since = time.monotonic()
    return [process.wait(PATIENCE) for process in processes], time.monotonic() - since


def cut_off(processes: list["subprocess.Popen[str]"]) -> float:
    """Return the seconds until nothing trains on either host; what torchrun leaves is killed."""
    since = time.monotonic()
    launchers = {str(process.pid) for process in processes}
    while any(set(pids(name)) - launchers for name in NAMES):
        assert time.monotonic() - since < PATIENCE, "a process goes on waiting"
        time.sleep(0.2)
    seconds = time.monotonic() - since
    for process in processes:
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            print(f"torchrun on {NAMES[processes.index(process)]} goes on waiting: killed")
            process.kill()
            process.wait()
    return seconds


def pids(name: str) -> list[str]:
    """Return the processes in a namespace."""
    listed = ["ip", "netns", "pids", name]
    return subprocess.run(listed, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def main() -> None:
    """Cut off and go on, and print what was found."""
    lab = Path(tempfile.mkdtemp(prefix="marl-hosts-"))
    (lab / "train.py").write_text(_CODE)
    training = ["train", *flags(SMALL, LONG), "--run-dir"]
    alone, run = lab / "alone", lab / "run"
    sys.stdout.reconfigure(line_buffering=True)
    print(f"commit {commit()} on {machine()}")
    with two_hosts():
        statuses, seconds = ended(start(lab, alone, *training, alone))
        print(f"two hosts train: statuses {statuses}, {seconds:.0f} s")
        processes = start(lab, run, *training, run)
        while len(list_checkpoints(run / "checkpoints")) < 2:
            assert all(process.poll() is None for process in processes), lab
            time.sleep(0.05)
        connect(False)
        gave_up = cut_off(processes)
        kept = list_checkpoints(run / "checkpoints")[0].name
        print(f"cut off: both processes have ended after {gave_up:.0f} s; newest is {kept}")
        connect(True)
        again, _ = ended(start(lab, run, "resume", run))
        different = differences(alone, run) if again == [0, 0] else ["not finished"]
    steps = read_run(run, ()).steps
    print(f"connected again: statuses {again}, {steps:,} steps; differing metrics: {different}")
    is_good = statuses == again == [0, 0] and not different
    if is_good:
        shutil.rmtree(lab)
    else:
        print(f"see {lab}")
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
