"""Processes that torchrun or Ray has started, joined by torch.distributed.

gloo carries what is on the CPU, and nccl what is on GPUs of their own. Connections are neither
encrypted nor authenticated: use a network that you trust. What is exchanged is read without
unpickling, so that foreign bytes can spoil a run and not more.
"""

import hashlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from envs import EnvError
from marl import UserError
from marl.utils.encoding import decode, encode
from marl.utils.launch import (
    ANSWER_SECONDS,
    Launch,
    command_to_go_on,
    num_restarts,
    read_launch,
)
from marl.utils.ranks import SINGLE, LostError, Ranks
from marl.utils.text import one_line

P = ParamSpec("P")
T = TypeVar("T")

_PRECEDENCE = 0.5
"""Seconds that process 0 has to be the first to tell what all have."""
_STORE_SECONDS = 10.0
"""Seconds in which the store answers."""
JOIN_SECONDS = 300.0
"""Seconds in which all processes must have met."""


@dataclass(frozen=True)
class ProcessRanks(Ranks):
    """One of several processes, each of which torch.distributed can reach."""

    store: Store | None = None
    """Where the processes have met: names and values that all of them see."""
    thread: int = 0
    """The thread that exchanges."""

    def sum_(self, tensor: Tensor, group: str) -> Tensor:
        """Replace a tensor by its sum over all processes, the same bits in all, and return it."""
        self._exchange(dist.all_reduce, tensor)
        return tensor

    @torch.no_grad()
    def broadcast_(self, module: nn.Module) -> None:
        """Replace the parameters and buffers of a module by those of process 0."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._exchange(dist.broadcast, tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        largest = torch.tensor(int(flag))
        self._exchange(dist.all_reduce, largest, op=dist.ReduceOp.MAX)
        return bool(largest)

    def gather(self, value: object) -> list[Any]:
        """Return the values of all processes, by rank; tensors come on the CPU."""
        mine = _packed(value)
        size = torch.tensor([len(mine)])
        sizes = [torch.zeros_like(size) for _ in range(self.size)]
        self._exchange(dist.all_gather, sizes, size)
        room = int(torch.cat(sizes).max())
        parts = [torch.empty(room, dtype=torch.uint8) for _ in range(self.size)]
        self._exchange(dist.all_gather, parts, torch.cat((mine, mine.new_empty(room - len(mine)))))
        return [_unpacked(part[: int(n)]) for part, n in zip(parts, sizes, strict=True)]

    def is_first_to_say(self, text: str) -> bool:
        """Return whether no other process has said this before; True if it cannot be asked."""
        answers: list[bool] = []

        def ask(store: Store) -> None:
            key = hashlib.sha256(text.encode()).hexdigest()
            with suppress(RuntimeError):
                answers.append(store.add(f"said/{key}", 1) == 1)

        if self.store is not None:
            # Where the network is cut, the store would not answer before TCP gives up.
            asking = threading.Thread(target=ask, args=(self.store,), daemon=True)
            asking.start()
            asking.join(_STORE_SECONDS)
        return not answers or answers[0]

    def _exchange(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        assert threading.get_ident() == self.thread, "operations of two threads would get mixed up"
        try:
            operation(*args, **kwargs)
        except RuntimeError as error:
            raise LostError(
                "the other processes of this run cannot be reached any more: one has ended or "
                f"hangs, or the network between them ({_reason(error)}). The newest checkpoint is "
                f"whole; {command_to_go_on('RUN', self.size)} goes on from there"
            ) from None


@contextmanager
def joined(
    device: str = "cpu",
    *,
    join_seconds: float = JOIN_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
) -> Iterator[Ranks]:
    """Yield the processes that torchrun has started, joined; one alone where it has not.

    With `device` ``cuda``, process k of a machine has its GPU k. Raises `UserError` where they do
    not meet.
    """
    launch = read_launch()
    if launch is None:
        yield SINGLE
        return
    store = _meet(launch, join_seconds)
    if device == "cuda" and launch.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(launch.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=launch.rank,
            world_size=launch.size,
            timeout=timedelta(seconds=answer_seconds),
        )
    except RuntimeError as error:
        raise UserError(
            f"process {launch.rank} of {launch.size} has met the others at {_place(launch)}, but "
            f"they do not connect ({_reason(error)}); if a machine has several networks, name the "
            "interface to use by the environment variable GLOO_SOCKET_IFNAME"
        ) from None
    store.set_timeout(
        timedelta(seconds=_STORE_SECONDS)
    )  # from here on it only carries who said what
    ranks = ProcessRanks(
        rank=launch.rank,
        size=launch.size,
        local_rank=launch.local_rank,
        local_size=launch.local_size,
        store=store,
        thread=threading.get_ident(),
    )
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _meet(launch: Launch, seconds: float) -> Store:
    """Return the store at which all processes have met."""
    limit = timedelta(seconds=seconds)
    try:
        store, _, _ = next(rendezvous("env://", launch.rank, launch.size, timeout=limit))
        store = PrefixStore(f"prefmarl/{num_restarts()}", store)
        store.set(f"joined/{launch.rank}", "")
        store.wait([f"joined/{rank}" for rank in range(launch.size)], limit)
    except (RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            raise UserError(
                f"port {launch.port} of {launch.host} is used by another program; choose another "
                "by torchrun's --master-port, or let --standalone take a free one"
            ) from None
        raise UserError(
            f"process {launch.rank} of {launch.size}: the processes have not all met at "
            f"{_place(launch)} within {seconds:g} s ({_reason(error)}). Check that the same "
            "torchrun command runs on every machine, with one --rdzv-endpoint (or MASTER_ADDR and "
            f"MASTER_PORT); that every machine finds {launch.host}; and that no firewall closes "
            "the port"
        ) from None
    return store


@contextmanager
def one_voice(ranks: Ranks) -> Iterator[None]:
    """Let process 0 alone print, and every error that several have be told once.

    Warnings and errors of the others say whose they are. A process that does not report its error
    ends with status 1.
    """
    if not isinstance(ranks, ProcessRanks):
        yield
        return
    shown, told = sys.stdout, warnings.formatwarning
    if ranks.rank:

        def with_number(message: Warning | str, *rest: Any) -> str:
            return told(f"process {ranks.rank}: {message}", *rest)

        warnings.formatwarning = with_number  # type: ignore[assignment]
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # closed below
    try:
        yield
    except (UserError, EnvError, OSError) as error:
        if ranks.rank:
            time.sleep(_PRECEDENCE)
        key = "lost" if isinstance(error, LostError) else f"{type(error).__name__}: {error}"
        if not ranks.is_first_to_say(key):
            raise SystemExit(1) from None
        if ranks.rank and not isinstance(error, OSError):
            error.args = (f"process {ranks.rank}: {error}",)
        raise
    finally:
        if ranks.rank:
            sys.stdout.close()
            sys.stdout, warnings.formatwarning = shown, told


def _packed(value: object) -> Tensor:
    """Return a value as bytes."""
    file = BytesIO()
    torch.save(encode({"value": value}), file)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _unpacked(content: Tensor) -> Any:
    """Return the value of `_packed`."""
    encoded = torch.load(BytesIO(content.numpy().tobytes()), weights_only=True)
    return decode(encoded)["value"]


def _place(launch: Launch) -> str:
    return f"{launch.host}:{launch.port}"


def _reason(error: Exception) -> str:
    """Return what torch.distributed says, without the places in its source code."""
    text = " ".join(str(error).split("\nException raised from")[0].split())
    text = text.rpartition("] ")[2] if text.startswith("[") else text
    return one_line(text.split(". ")[0], 200)
