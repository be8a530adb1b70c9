"""Worker processes that step blocks of environments, through gymnasium's `AsyncVectorEnv`.

A worker is one gymnasium environment whose observation is the bytes of its block's records, in
shared memory. It never ends, so gymnasium never resets it: the block resets its environments.

Axes are those of `envs.base`; W: workers, C: environments of one worker.
"""

import ctypes
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv

from envs.adapters.team import (
    Block,
    EpisodePlan,
    Records,
    TeamMaker,
    WorkerExit,
    episode_seed,
    record_dtype,
)
from envs.base import EnvError, EnvSpec
from envs.plugins import failure

if sys.platform != "win32":
    import fcntl
    import resource

_GRACE = 10.0
"""Seconds that workers have to close their environments before they are ended."""
_WATCH = 1.0
"""Seconds between two looks of a worker at whether its parent is there."""
_PR_SET_PDEATHSIG = 1
"""Linux's number for the signal that a process gets when its parent dies."""
_FILES_PER_WORKER, _FILES = 5, 12
"""Files that a worker, and all of them together, take in this process; 4 and 5 were counted."""
_PREFIX = "marl-workers-"
"""Of the folders in which workers leave their progress and stack traces."""


def num_processes(num_envs: int, workers: int) -> int:
    """Return how many of `workers` get any environments if all but the last get equally many."""
    return -(-num_envs // _share(num_envs, workers)) if workers else 0


def _share(num_envs: int, workers: int) -> int:
    """Return the environments of every worker but the last."""
    return -(-num_envs // workers)


class Workers:
    """E environments in W processes; the same records as one `Block` of all environments."""

    def __init__(
        self, make_team: TeamMaker, spec: EnvSpec, num_workers: int, timeout: float
    ) -> None:
        """`timeout` is how many seconds one environment may take for one reset or step."""
        self._spec = spec
        self._timeout = timeout
        share = _share(spec.num_envs, num_workers)
        starts = range(0, spec.num_envs, share)
        _check_files(spec, len(starts))
        self._folder = _WorkersFolder()
        self._works = [
            _Work(
                make_team=make_team,
                spec=spec,
                indices=range(start, min(start + share, spec.num_envs)),
                num_rows=share,
                folder=self._folder.path,
                index=index,
                parent=os.getpid(),
                from_main_thread=threading.current_thread() is threading.main_thread(),
            )
            for index, start in enumerate(starts)
        ]
        for work in self._works:
            np.array([work.indices.start, 0, 0]).tofile(work.folder / f"progress_{work.index}")
        self._progress = [work.progress() for work in self._works]
        self._spare_rows = len(self._works) * share - spec.num_envs
        self._episodes = np.zeros(spec.num_envs, np.int64)
        self._seeds = np.zeros(spec.num_envs, np.uint64)
        self._pool = self._started()
        # Runs before Python waits, at its exit, for workers that would ignore its signal.
        self._end = Finalize(
            self, _end, (self._pool, self._progress, self._folder), exitpriority=10
        )

    def _started(self) -> AsyncVectorEnv[Any, Any]:
        """Return the pool with its processes running; if that fails, none is left."""
        pool: AsyncVectorEnv[Any, Any] = AsyncVectorEnv.__new__(AsyncVectorEnv)
        try:
            pool.__init__(self._works, copy=False)  # type: ignore[misc]  # cleaned up if it raises
        except BaseException as error:
            pool.closed = True
            for process in getattr(pool, "processes", ()):
                if process.ident is not None:
                    process.kill()
                    process.join()
            self._folder.cleanup()
            if isinstance(error, OSError | EOFError):
                reason = failure(
                    error, "start fewer with `--env.options workers N`, or none with 0"
                )
                raise EnvError(
                    f"{self._spec.name}: starting {len(self._works)} workers raised {reason}"
                ) from error
            raise
        return pool

    def start(self, plan: EpisodePlan) -> Records:
        """Return what every environment sees after replaying its open episode.

        The records are valid until the next call.
        """
        self._seeds, self._episodes = plan.seeds, plan.episodes
        return self._answers(
            lambda: self._pool.reset_async(options={"plan": plan}), self._pool.reset_wait
        )

    def step(self, actions: npt.NDArray[Any]) -> Records:
        """Return what (E, N) or (E, N, A) actions led to; environments that ended were reset."""
        rows = np.concatenate([actions, actions[: self._spare_rows]])
        rows = rows.reshape(len(self._works), -1, *actions.shape[1:])
        return self._answers(lambda: self._pool.step_async(rows), self._pool.step_wait)

    def picture(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Return an environment's own picture of its state, if it draws any."""
        share = len(self._works[0].indices)
        index, own = divmod(row, share)
        try:
            self._pool.parent_pipes[index].send(("_call", ("picture", (own,), {})))
            self._await(index)
            drawn, is_sent = self._pool.parent_pipes[index].recv()
        except (EOFError, ConnectionError):
            self._raise_death()
        return drawn if is_sent else None

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._end()

    def _answers(self, send: Callable[[], None], receive: Callable[[], tuple[Any, ...]]) -> Records:
        """Return all environments' records once every worker has been asked and has answered."""
        try:
            send()
            for index in range(len(self._works)):
                self._await(index)
            observations, *_, infos = receive()
        except (EOFError, ConnectionError):
            self._raise_death()
        for error in infos.get("error", ()):
            if error:
                raise EnvError(error)
        records: Records = observations.view(record_dtype(self._spec)).reshape(-1)
        self._episodes = records["episodes"][: self._spec.num_envs].copy()
        return records[: self._spec.num_envs]

    def _await(self, index: int) -> None:
        """Wait for a worker's answer as long as it finishes a call within the time-out."""
        pipe, progress = self._pool.parent_pipes[index], self._progress[index]
        calls = int(progress[1])
        while not pipe.poll(self._timeout):
            if progress[1] == calls:
                raise EnvError(
                    f"{self._where(index)} did not come back from one call within "
                    f"{self._timeout:g} s; if it may take that long, set "
                    f"`--env.options timeout {10 * self._timeout:g}`.\n"
                    f"{self._stack(index)}"
                )
            calls = int(progress[1])

    def _raise_death(self) -> NoReturn:
        """Say which worker died, and where it was."""
        processes = self._pool.processes
        ended = wait([process.sentinel for process in processes], timeout=5.0)
        index = [process.sentinel in ended for process in processes].index(True) if ended else 0
        processes[index].join(timeout=5.0)
        code = processes[index].exitcode
        reason = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
        message = (
            f"{self._where(index)} was the last that its worker process called before it died "
            f"({reason})\n{self._stack(index)}"
        )
        raise EnvError(message.rstrip())

    def _where(self, index: int) -> str:
        """Return the environment that a worker was busy with, and the seed of its episode."""
        env = int(self._progress[index][0])
        episode = int(self._episodes[env])
        return (
            f"{self._spec.name}, copy {env} (episode {episode}, "
            f"reset(seed={episode_seed(self._seeds[env], episode)}))"
        )

    def _stack(self, index: int) -> str:
        """Return the stack of a worker that hangs, or that it left when it died."""
        process, trace = self._pool.processes[index], self._works[index].trace
        if process.is_alive() and process.pid is not None and hasattr(faulthandler, "register"):
            os.kill(process.pid, signal.SIGUSR1)
            ended = time.monotonic() + 2.0
            while time.monotonic() < ended and not trace.read_text().endswith("\n"):
                time.sleep(0.02)
        return trace.read_text() if trace.exists() else ""


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one worker gets: its environments, and where to leave its progress and stack."""

    make_team: TeamMaker
    spec: EnvSpec
    indices: range
    num_rows: int
    """C, the same for all workers; the last one may have fewer environments."""
    folder: Path
    index: int
    parent: int
    """Process that asks for the work."""
    from_main_thread: bool
    """Whether that process's main thread starts the worker."""

    def __call__(self) -> "_WorkerEnv":
        if os.getpid() != self.parent:  # gymnasium calls it there, too, to see the spaces
            _follow_parent(self)
        return _WorkerEnv(self)

    @property
    def trace(self) -> Path:
        """Where a hung or crashed worker writes its stack."""
        return self.folder / f"stack_{self.index}"

    def progress(self) -> npt.NDArray[np.int64]:
        """Return the block's progress, shared between the processes.

        Behind it stands whether the worker is to end.
        """
        return np.memmap(self.folder / f"progress_{self.index}", np.int64, "r+", shape=(3,))


class _WorkerEnv(gymnasium.Env[npt.NDArray[np.uint8], npt.NDArray[Any]]):
    """A block as gymnasium sees it. Errors come back as a word in `info`."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._block: Block | None = None
        spec, rows = work.spec, work.num_rows
        self.observation_space = Box(0, 255, (rows * record_dtype(spec).itemsize,), np.uint8)
        shape: tuple[int, ...] = (rows, spec.num_agents)
        discrete = spec.action_kind == "discrete"
        self.action_space = (
            Box(0, spec.action_size, shape, np.int64)
            if discrete
            else Box(-1.0, 1.0, (*shape, spec.action_size), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Bring the environments where the plan in `options` wants them."""
        assert options is not None
        if self._block is None:
            self._block = self._made()
        info: dict[str, Any] = {}
        try:
            self._block.start(options["plan"])
        except EnvError as error:
            info = {"error": str(error)}
        return self._bytes(self._block), info

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Step every environment; the records tell what came of it."""
        assert self._block is not None
        info: dict[str, Any] = {}
        try:
            self._block.step(action)
        except EnvError as error:
            info = {"error": str(error)}
        return self._bytes(self._block), 0.0, False, False, info

    def picture(self, row: int) -> npt.NDArray[np.uint8] | None:
        """Return the picture that one of the environments draws of itself."""
        assert self._block is not None
        return self._block.picture(row)

    def close(self) -> None:
        """Close the environments."""
        if self._block is not None:
            self._block.close()

    def _made(self) -> Block:
        """Return the block; from now on the process leaves its stack behind if it hangs or dies."""
        self._trace = self._work.trace.open("w")
        faulthandler.enable(self._trace)
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, self._trace)
        work = self._work
        block = Block(work.make_team, work.spec, work.indices, work.num_rows)
        block.progress = self._work.progress()
        return block

    def _bytes(self, block: Block) -> npt.NDArray[np.uint8]:
        return block.records.view(np.uint8)


class _Parent:
    """The process that asks for the work, as its worker sees it."""

    def __init__(self) -> None:
        self._parent, self._pid = parent_process(), os.getppid()

    def is_gone(self, wait_seconds: float = 0.0) -> bool:
        """Return whether it has ended; wait for that for a while.

        Its pipe alone does not tell: other workers that were forked later hold it open.
        """
        if self._parent is not None:
            self._parent.join(wait_seconds)
        return self._parent is None or not self._parent.is_alive() or os.getppid() != self._pid


def _follow_parent(work: "_Work") -> None:
    """End this process when its parent wants that or is gone, and at no other signal.

    Ctrl-C and `timeout`, systemd or Slurm reach the whole process group, and a parent that still
    finishes an iteration needs its workers. What ends them unwinds the stack, so that the
    environments are closed, which may have started programs of their own. After `_GRACE` seconds
    a worker whose parent is gone ends without that.
    """
    parent, progress = _Parent(), work.progress()

    def leave(number: int, frame: FrameType | None) -> None:
        if progress[2] or parent.is_gone():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise WorkerExit(0)

    def watch() -> None:
        while not parent.is_gone(_WATCH):
            pass
        shutil.rmtree(work.folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    if work.from_main_thread:
        _end_after_parent()
    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _end_after_parent() -> None:
    """Ask Linux to end this process soon after its parent, even where no Python code can run.

    The kernel sends a signal then whose handler is C's `alarm`. Called with the signal's number,
    12 (on MIPS 17), that ends the process in as many seconds, which is after `_GRACE`. The kernel
    means the parent's thread, so the parent's main thread must be the one that starts the worker.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGUSR2, ctypes.cast(libc.alarm, ctypes.c_void_p))
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR2))


def _end(
    pool: AsyncVectorEnv[Any, Any],
    progress: list[npt.NDArray[np.int64]],
    folder: "_WorkersFolder",
) -> None:
    """End the workers of a pool, whatever they are doing."""
    pool.closed = True
    for shared, process in zip(progress, pool.processes, strict=True):
        shared[2] = True
        process.terminate()
    until = time.monotonic() + _GRACE
    for process in pool.processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
    for process in pool.processes:
        process.join()
    for pipe in pool.parent_pipes:
        if pipe is not None:  # gymnasium drops those of workers that raised
            pipe.close()
    folder.cleanup()


class _WorkersFolder:
    """A temporary folder, which the next pool removes if its processes were killed.

    Its users hold a lock, which the system lets go with the last of their processes.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock: int | None = None
        if sys.platform != "win32":
            _remove_abandoned(self.path.parent)
            fresh = self.path / "new"
            self._lock = os.open(fresh, os.O_CREAT | os.O_RDWR)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            fresh.rename(self.path / "lock")  # no process finds it unlocked

    def cleanup(self) -> None:
        """Remove the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's folders of workers that no process uses any more."""
    if sys.platform == "win32":
        return
    for lock in parent.glob(f"{_PREFIX}*/lock"):
        try:
            if lock.stat().st_uid != os.getuid():
                continue
            handle = os.open(lock, os.O_RDWR)
        except OSError:  # another process removed it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # in use
            pass
        finally:
            os.close(handle)


def _check_files(spec: EnvSpec, workers: int) -> None:
    """Raise if this process may not open as many files as the workers need."""
    if sys.platform == "win32":
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    listing = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)
    try:
        used = len(os.listdir(listing)) if listing else 0
    except OSError:  # none is left to look with
        used = limit
    needed = _FILES + _FILES_PER_WORKER * workers
    if limit != resource.RLIM_INFINITY and used + needed > limit:
        raise EnvError(
            f"{spec.name}: {workers} workers need about {needed} open files, and of the {limit} "
            f"that this process may have, {limit - used} are left; allow more before the start, "
            "e.g. `ulimit -n 4096`, or set `--env.options workers 0`"
        )
