"""A Ray cluster, where one is asked for: how it is joined, and what its nodes are told and tell.

Ray is imported here and in what uses this module, and only then; its usage statistics are off.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from marl import UserError
from marl.utils.text import one_line

LOST = 3
"""How often work of a node that was lost is given to another."""
_REACH = 10.0
"""Seconds in which a cluster answers."""


class Mailbox:
    """What nodes tell the command that has started their work, and whether it wants them to stop.

    One of it is an actor of the cluster, on the command's own node.
    """

    def __init__(self) -> None:
        self._told: list[Any] = []
        self._stopping = False

    def tell(self, what: Any) -> None:
        """Lay down what the command shall know."""
        self._told.append(what)

    def take(self) -> list[Any]:
        """Return what was laid down since the last time."""
        told, self._told = self._told, []
        return told

    def stop(self) -> None:
        """Let all work be saved and ended."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Return whether work shall be saved and ended."""
        return self._stopping


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined."""

    ray: Any
    """The package."""
    mailbox: Any
    """Handle of the `Mailbox`."""

    def get(self, reference: Any) -> Any:
        """Return the value of a reference."""
        return self.ray.get(reference)

    @property
    def num_cpus(self) -> int:
        """Number of processors of all nodes."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    @property
    def largest_node(self) -> int:
        """Number of processors of the node that has most."""
        nodes = [node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"]]
        return int(max(nodes, default=0))


@contextmanager
def joined_cluster(option: str, num_cpus: int) -> Iterator[Cluster]:
    """Yield the cluster at RAY_ADDRESS; without that, one of this machine alone, which is ended.

    `option` is the one that asks for it. The cluster of this machine has `num_cpus` to give away.
    Raises `UserError` where Ray is not installed or the cluster cannot be joined.
    """
    ray = _imported(option)
    address = os.environ.get("RAY_ADDRESS", "")
    own = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    try:
        _check_reachable(address)  # Ray would try for ten minutes
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (RuntimeError, ValueError, OSError) as error:  # ConnectionError is an OSError
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray cluster"
        raise UserError(
            f"{option}: {where} cannot be joined ({one_line(str(error), 300)}); check that "
            "`ray status` shows it, and that Ray and Python have the same versions there"
        ) from None
    try:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node_id=ray.get_runtime_context().get_node_id(), soft=False
        )
        mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        yield Cluster(ray=ray, mailbox=mailbox)
    finally:
        ray.shutdown()


def reason_of(error: BaseException) -> str:
    """Return what an error of Ray says, in a line: of one that work has raised, that error's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return one_line(str(cause), 300)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return one_line(lines[-1 if lines[0].startswith("Traceback") else 0], 300)


def _check_reachable(address: str) -> None:
    """Raise `ValueError` or `OSError` unless something answers at an address HOST:PORT."""
    if "://" in address:
        raise ValueError("start the command on one of its nodes, with RAY_ADDRESS=HOST:PORT")
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_REACH).close()


def _imported(option: str) -> Any:
    """Return the package ray, or raise `UserError` with how to install it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError:
        raise UserError(
            f"{option} needs the extra cluster: pip install -c constraints.txt '.[cluster]'"
        ) from None
    return ray
