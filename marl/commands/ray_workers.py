"""`marl train --ray-workers N`: Ray Train's TorchTrainer starts the processes of a run.

Every worker of Ray runs the command `marl train` in a process of its own, told as by torchrun which
of all it is: the signals that stop a run and the deadline of a labeller need a main thread, which a
worker does not have. Numbers, checkpoints and errors are those of torchrun.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import tomli_w

from marl import UserError
from marl.config import Config, ConfigError
from marl.config.io import to_dict
from marl.utils.child import child_command, python_flags
from marl.utils.cluster import LOST, Cluster, joined_cluster, reason_of
from marl.utils.files import is_held
from marl.utils.launch import (
    LAUNCH,
    RAY_WORKERS,
    answer_seconds,
    command_to_go_on,
    read_launch,
    share_of,
)
from marl.utils.stop_signal import StopSignal

START_SECONDS = 100
"""Seconds in which the cluster gives all processes a place; it is asked three times."""
_ATTEMPTS = 3
_POLL = 0.25
_FAREWELL = 60.0
"""Seconds in which the process of a node that is lost has finished its iteration and gone."""


def train_on_cluster(arguments: list[str], config: Config, folder: Path, workers: int) -> int:
    """Run `marl ARGUMENTS` in so many processes of a Ray cluster; return the exit status.

    The argument ``SETTINGS`` stands for a file with the settings. `folder`, the run's, is one that
    all nodes see. What code and servers the settings name was looked at: the processes may use it.
    Raises `UserError` where the processes do not come to be, or are lost too often.
    """
    if read_launch() is not None:
        raise ConfigError("--ray-workers: torchrun has started processes already; use one of them")
    share_of(config, workers)  # what cannot be shared out is told before anything starts
    given = {
        "arguments": arguments,
        "settings": tomli_w.dumps(to_dict(config)),
        "folder": str(folder),
        "here": os.getcwd(),
        "launch": secrets.token_hex(8),
        "flags": python_flags(),
    }
    storage = tempfile.mkdtemp(prefix="marl-ray-")  # of Ray Train's own notes
    try:
        with joined_cluster("--ray-workers", workers) as cluster:
            run = _Run(cluster, given, config, workers, storage)
            try:
                return run.status(StopSignal())
            except cluster.ray.exceptions.RayError as error:  # e.g. no memory is left
                raise UserError(
                    f"--ray-workers: Ray has ended the run ({reason_of(error)}); once that is "
                    f"mended, {_command(folder, workers)} goes on from the newest checkpoint"
                ) from None
    finally:
        shutil.rmtree(storage, ignore_errors=True)


class _Run:
    """The processes as the command sees them."""

    def __init__(
        self, cluster: Cluster, given: dict[str, Any], config: Config, workers: int, storage: str
    ) -> None:
        self._cluster, self._folder, self._workers = cluster, given["folder"], workers
        self._status: int | None = None
        self._has_begun = False
        self._error: Exception | None = None
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS)
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        self._trainer = TorchTrainer(
            _work,
            train_loop_config=given | {"mailbox": cluster.mailbox, "workers": workers},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=config.device.startswith("cuda")
            ),
            # Its group carries only when the processes begin and how they have ended.
            torch_config=TorchConfig(backend="gloo", timeout_s=int(answer_seconds(config)) + 60),
            run_config=RunConfig(
                name="run",
                storage_path=storage,
                failure_config=FailureConfig(
                    max_failures=LOST, controller_failure_limit=_ATTEMPTS - 1
                ),
            ),
        )

    def status(self, stop: StopSignal) -> int:
        """Show what the processes say until all have ended; return their status."""
        # Not in the main thread, where Ray would answer Ctrl-C by killing what has not saved.
        thread = threading.Thread(target=self._fit, daemon=True)
        thread.start()
        told = False
        while thread.is_alive():
            if stop.received and not told:
                told = True
                self._cluster.get(self._cluster.mailbox.stop.remote())
                if not self._has_begun:
                    return 128 + stop.received
            self._show()
            thread.join(_POLL)
        self._show()
        if self._error is not None and not stop.received:
            raise self._explained(self._error)
        if stop.received:
            return 128 + stop.received
        assert self._status is not None
        return self._status

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self._error = error

    def _show(self) -> None:
        for kind, what in self._cluster.get(self._cluster.mailbox.take.remote()):
            if kind == "status":
                self._status = what
            elif kind == "begun":
                self._has_begun = True
            else:
                print(what, end="", file=sys.stderr if kind == "stderr" else sys.stdout, flush=True)

    def _explained(self, error: Exception) -> Exception:
        """Return what Ray Train raises as a line for the user; what is nothing known, as it is."""
        from ray.train import ControllerError, WorkerGroupError

        workers, folder = self._workers, self._folder
        if isinstance(error, WorkerGroupError):
            reasons = [reason_of(failure) for failure in error.worker_failures.values()]
            return UserError(
                f"processes were lost {LOST + 1} times, at last: {reasons[0]}; once that is "
                f"mended, {_command(folder, workers)} goes on from the newest checkpoint"
            )
        failure = getattr(error, "controller_failure", None)
        if isinstance(error, ControllerError) and "Timeout" in type(failure).__name__:
            return UserError(
                f"--ray-workers: {workers} processes, with a processor each, have not all found a "
                f"place within {_ATTEMPTS * START_SECONDS} s; the cluster has "
                f"{self._cluster.num_cpus} processors, and `ray status` shows what is free"
            )
        return error


def _command(folder: object, workers: int) -> str:
    return command_to_go_on(folder, workers, {RAY_WORKERS: str(workers)})


def _work(given: dict[str, Any]) -> None:
    """Run one of the processes, in a worker of Ray Train; raises where one of them is lost."""
    import ray
    import torch
    import torch.distributed as dist
    from ray.train import get_context

    rank, mailbox = get_context().get_world_rank(), given["mailbox"]
    folder = Path(given["folder"])
    with tempfile.TemporaryDirectory() as own:
        settings = Path(own) / "settings.toml"
        settings.write_text(given["settings"], encoding="utf-8")
        agreed = torch.zeros(2, dtype=torch.int64)
        if rank == 0:
            agreed[0], agreed[1] = _free_port(), _was_begun(folder, given["launch"])
        dist.broadcast(agreed, src=0)
        port, again = agreed.tolist()
        if not os.path.isdir(given["here"]):
            raise RuntimeError(
                f"{socket.gethostname()} has no folder {given['here']}; start the command in a "
                "folder that all nodes share"
            )
        process = subprocess.Popen(
            child_command(
                given["flags"],
                str(settings if "SETTINGS" in given["arguments"] else folder),
                [str(settings) if word == "SETTINGS" else word for word in given["arguments"]],
            ),
            cwd=given["here"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ
            | {
                "MASTER_PORT": str(port),  # Ray's own group has the other
                "TORCHELASTIC_RUN_ID": given["launch"],
                "TORCHELASTIC_RESTART_COUNT": str(again),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                RAY_WORKERS: str(given["workers"]),
            },
            start_new_session=True,
        )
        if rank == 0:
            mailbox.tell.remote(("begun", None))
        status = _attended(process, mailbox)
    statuses = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(statuses, torch.tensor([status]))  # raises where a worker is lost
    found = [int(one) for one in statuses]
    if any(one < 0 for one in found):
        raise RuntimeError(
            "; ".join(
                f"process {k} was ended by {signal.Signals(-one).name}"
                for k, one in enumerate(found)
                if one < 0
            )
        )
    if rank == 0:
        ray.get(mailbox.tell.remote(("status", max(found))))


def _attended(process: "subprocess.Popen[str]", mailbox: Any) -> int:
    """Pass on what a process says and that it shall stop; return its exit status."""
    import ray

    def pass_on(kind: str, pipe: IO[str]) -> None:
        last = None
        for line in pipe:
            last = mailbox.tell.remote((kind, line))
        if last is not None:
            ray.get(last)

    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {"stdout": process.stdout, "stderr": process.stderr}
    threads = [threading.Thread(target=pass_on, args=pair, daemon=True) for pair in pipes.items()]
    for thread in threads:
        thread.start()
    try:
        while process.poll() is None:
            if ray.get(mailbox.is_stopping.remote()):
                process.stdin.close()
            time.sleep(_POLL)
    finally:
        with suppress(OSError):
            process.stdin.close()
    for thread in threads:
        thread.join(_FAREWELL)
    return process.returncode


def _was_begun(folder: Path, launch: str) -> bool:
    """Return whether processes of this launch have made the run, whose folder is free now."""
    with suppress(OSError, UnicodeDecodeError):
        if (folder / LAUNCH).read_text(encoding="utf-8").strip() == launch:
            until = time.monotonic() + _FAREWELL
            while is_held(folder / ".lock") and time.monotonic() < until:
                time.sleep(_POLL)
            return True
    return False


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("", 0))
        return int(held.getsockname()[1])
