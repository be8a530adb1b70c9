"""Runs of a sweep on the nodes of a Ray cluster, which all see the sweep's folder.

A run is a task of Ray: a node with free processors trains it in a process, as this machine would.
Where a node is lost, Ray gives the task to another one, which goes on from the newest checkpoint.
"""

import os
import time
from typing import Any

from marl import UserError
from marl.config import Config
from marl.sweeps.folder import Job
from marl.sweeps.runner import Worker
from marl.utils.child import python_flags
from marl.utils.cluster import LOST, Cluster, reason_of

_POLL = 0.5
"""Seconds between two looks of a node at the process and at whether it shall stop."""


class RayRuns:
    """Starts runs on a cluster: the `start` of `run_jobs`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._task = cluster.ray.remote(_train)

    def __call__(self, job: Job, config: Config, trust: bool) -> "RayRun":
        """Give a run to the cluster, to train with these settings."""
        threads = config.threads
        if threads > self._cluster.largest_node:
            raise UserError(
                f"--ray: the setting threads is {threads}, but no node of the cluster has more "
                f"than {self._cluster.largest_node} processors; set it to that"
            )
        task = self._task.options(num_cpus=threads, max_retries=LOST)
        given = (job, config, trust, os.getcwd(), python_flags(), self._cluster.mailbox)
        return RayRun(self._cluster, job, task.remote(*given))


class RayRun:
    """One run that the cluster has or will have: `marl.sweeps.runner.Training`."""

    def __init__(self, cluster: Cluster, job: Job, task: Any) -> None:
        self.job = job
        self._cluster, self._task = cluster, task
        self._reason = ""

    def status(self) -> int | None:
        """Return the exit status, None while it runs or waits for a node."""
        done, _ = self._cluster.ray.wait([self._task], timeout=0)
        if not done:
            return None
        try:
            status, self._reason = self._cluster.get(self._task)
        except self._cluster.ray.exceptions.RayError as error:
            status, self._reason = 1, reason_of(error)
        return int(status)

    def stop(self) -> None:
        """Let all runs of the sweep finish their iterations and save, and no other begin."""
        self._cluster.get(self._cluster.mailbox.stop.remote())

    def wait(self) -> None:
        """Wait until it has ended."""
        self._cluster.ray.wait([self._task])

    def reason(self) -> str:
        """Return why it failed, in a line."""
        return self._reason


def _train(
    job: Job, config: Config, trust: bool, cwd: str, flags: list[str], mailbox: Any
) -> tuple[int, str]:
    """Train a run on this node to its end; return the exit status, and why it failed if it did."""
    import ray

    if ray.get(mailbox.is_stopping.remote()):
        return 0, ""
    worker = Worker(job, config, trust, cwd, flags)
    try:
        while (status := worker.status()) is None:
            if ray.get(mailbox.is_stopping.remote()):
                worker.stop()
            time.sleep(_POLL)
    finally:
        worker.stop()
    return status, worker.reason() if status else ""
