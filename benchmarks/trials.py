"""Commands that `benchmarks.chaos` attacks, what they are compared with, and what was found."""

import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from marl.config.io import set_dotted
from marl.utils.checkpoint import list_checkpoints
from marl.utils.metrics import read_metrics

ROOT = Path(__file__).parents[1]
IGNORED = ("time/", "memory/")
PATIENCE = 90.0
"""Seconds after which a command hangs; the slowest takes a few on a free core."""
FAREWELL = 30.0
"""Seconds that workers may outlive their parent; one that is stuck takes about 23."""
FOUND = ("lost", "differing", "hangs", "tracebacks", "strays")

SMALL = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "network.hidden_sizes": [16, 16],
    "learner.rollout_steps": 20,
    "learner.epochs": 2,
    "learner.minibatches": 2,
    "reward.hidden_sizes": [16, 16],
    "reward.gradient_steps": 2,
    "reward.batch_episodes": 8,
    "preferences.replay_steps": 800,
    "checkpoint_every": 240,
    "total_steps": 2400,
    "threads": 1,
}
"""Thirty iterations of 80 steps, a checkpoint every third; episodes of 25 span rollouts of 20."""
KINDS: dict[str, dict[str, object]] = {
    "nav": {},
    "physics": {"env.name": "mamujoco/reacher_2x1", "preferences.replay_steps": 2000},
    "gru": {"network.recurrence": "gru", "learner.chunk_length": 8},
    "queries": {"preferences.queries_per_iteration": 6, "preferences.query": "disagreement"},
    "workers": {
        "env.name": "tests.village:Village",
        "env.options": {"max_steps": 10, "workers": 2, "team_reward": "sum"},
        "preferences.replay_steps": 2000,
    },
}

# Commands are forked from a process without threads that has imported everything.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "marl.cli",
        "marl.trainer",
        "marl.preferences.dataset.export",
        "marl.preferences.llm",
        "marl.preferences.people.server",
        "marl.reports.audit",
        "marl.reports.plots",
        "marl.rewards.fit",
        "tensorboard.summary.writer.record_writer",
        "tests.fragile",
        "tests.village",
    ]
)


def flags(*settings: dict[str, object]) -> list[str]:
    """Return settings as options of `marl train`; later ones win."""
    merged: dict[str, object] = {}
    for part in settings:
        merged |= part
    options: list[str] = []
    for name, value in merged.items():
        options.append("--" + name.replace("_", "-"))
        if isinstance(value, dict):
            options += [str(word) for item in value.items() for word in item]
        else:
            options += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return options


def nested(settings: dict[str, object]) -> dict[str, Any]:
    """Return settings as a file has them."""
    values: dict[str, Any] = {}
    set_dotted(values, settings, "settings")
    return values


def _run(arguments: list[str], lab: str, environment: dict[str, str]) -> None:
    """Run `marl ARGUMENTS` in a process that was forked for it."""
    from marl.cli import main

    os.setsid()
    os.environ |= environment
    tempfile.tempdir = None
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "printed"), (2, "said")):
        os.dup2(os.open(f"{lab}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    main(arguments)


class Command:
    """`marl ARGUMENTS` in a session of its own, whose temporary files lie in `lab`."""

    def __init__(
        self,
        lab: Path,
        *arguments: object,
        imports: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """With `imports`, the process begins as a new interpreter, as it would for a user.

        `variables` are of its environment.
        """
        self._lab, self._said = lab, lab / "said"
        words = [str(argument) for argument in arguments]
        temporary = lab / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = {
            "TMPDIR": str(temporary),
            "XDG_STATE_HOME": str(lab.parent / "state"),
            "FRAGILE": str(lab / "fault"),
        } | dict(variables)
        self._process: Any
        if imports:
            with open(self._said, "w") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "marl", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    env=os.environ | environment,
                    start_new_session=True,
                    cwd=ROOT,
                )
        else:
            for name in ("said", "printed"):
                (lab / name).unlink(missing_ok=True)
            self._process = FORKS.Process(target=_run, args=(words, str(lab), environment))
            self._process.start()

    @property
    def said(self) -> str:
        """What stands on standard error."""
        with contextlib.suppress(FileNotFoundError):
            return self._said.read_text(errors="replace")
        return ""

    @property
    def printed(self) -> str:
        """What stands on standard output; nothing of a new interpreter."""
        with contextlib.suppress(FileNotFoundError):
            return (self._lab / "printed").read_text(errors="replace")
        return ""

    def fill_disk(self, size: int | None) -> None:
        """Let no file of the process grow beyond so many bytes, as on a full disk; None: free."""
        limit = resource.RLIM_INFINITY if size is None else size
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(
                self._process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def status(self, seconds: float = PATIENCE) -> int | None:
        """Return the exit status, or None if it has not ended after so many seconds."""
        if isinstance(self._process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(seconds)
            return None
        self._process.join(seconds)
        status: int | None = self._process.exitcode
        return status

    def kill(self, *, with_children: bool) -> None:
        """Kill the process, and perhaps those that it has started."""
        children = self._children() if with_children else []
        self.send(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.status()

    def _children(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = stat.read_text().rpartition(")")[2].split()[1]
                if int(parent) == self._process.pid:
                    found.append(int(stat.parent.name))
        return found

    def processes(self) -> list[int]:
        """Return the processes of this session that have not ended."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self._process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def end(self) -> bool:
        """Kill what is left of the session; return whether there was anything."""
        left = self.processes()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.status()
        return bool(left)


class Page:
    """The page of `marl label`, as a browser would ask its server."""

    def __init__(self, command: Command) -> None:
        """Wait for its address."""
        self.base, self._token = "", ""
        while not self.base and command.status(0.01) is None:
            if found := re.search(r"(http://[\d.:]+)/#(\S+)", command.printed):
                self.base, self._token = found.groups()

    def ask(self, path: str, post: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Return the status and the reply; status 0 where there is none."""
        if not self.base:  # it was killed before it had an address
            return 0, {}
        data = None if post is None else json.dumps(post).encode()
        headers = {"x-marl-token": self._token, "content-type": "application/json"}
        request = urllib.request.Request(f"{self.base}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}


def differences(left: Path, right: Path, steps: Collection[int] | None = None) -> list[str]:
    """Return the metrics in which two runs differ, at these steps or at all; NaN equals NaN."""
    first, second = read_metrics(left), read_metrics(right)
    if steps is not None:
        first, second = (
            {name: column[np.isin(run["step"], list(steps))] for name, column in run.items()}
            for run in (first, second)
        )
    names = [n for n in sorted(first.keys() | second.keys()) if not n.startswith(IGNORED)]
    return [
        name
        for name in names
        if name not in first
        or name not in second
        or not np.array_equal(first[name], second[name], equal_nan=True)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder, byte for byte."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def timeless(folder: Path) -> dict[str, bytes]:
    """Return the contents of a dataset or of a fit, but for times, and for ids that are random."""
    times = re.compile(rb'"at": "[^"]*"|^created = .*$', re.MULTILINE)
    found = {name: times.sub(b"", data) for name, data in contents(folder).items()}
    return {n: data for n, data in found.items() if n != "run_id" and not n.endswith(".ckpt")}


class Attack:
    """One class of trials: what was found in them, and what they compare with.

    A trial has a folder of its own, which is kept if anything was found and `keep` says so.
    """

    def __init__(self, name: str, scratch: Path, seed: int, keep: bool) -> None:
        self.name, self.scratch, self.seed, self.keep = name, scratch, seed, keep
        self.trials = 0
        self.found: Counter[str] = Counter()
        self.seconds: list[float] = []
        """What a trial has timed."""
        self.lab, self.rng = scratch, random.Random(seed)

    def run(self, trial: Callable[["Attack"], int], count: int, only: int | None) -> None:
        """Make trials until `count` are counted; `trial` returns how many it was."""
        for number in itertools.count() if only is None else [only]:
            if self.trials >= count:
                break
            before = self.found.total()
            self.lab = self.scratch / f"{self.name}_{number}"
            self.lab.mkdir()
            self.rng = random.Random(f"{self.seed} {self.name} {number}")
            self.trials += trial(self)
            if not (self.keep and self.found.total() > before):
                shutil.rmtree(self.lab)
            print(f"{self.name}: {self.trials} of {count}, {self.found.total()} found", flush=True)

    def note(self, kind: str, *words: object) -> None:
        """Count a finding and print it."""
        self.found[kind] += 1
        print(f"  {kind} in {self.lab.name}:", *words, flush=True)

    def judge(
        self,
        command: Command,
        what: object,
        allowed: Collection[int | None] = (0,),
        patience: float = PATIENCE,
    ) -> bool:
        """Wait for a command; return whether it ended with one of these statuses, all being well.

        Status 1 must come with one line of error.
        """
        status, before = command.status(patience), self.found.total()
        if status is None:
            self.note("hangs", what)
        elif status not in allowed:
            self.note("lost", what, f"ended with {status}:", command.said[-500:])
        elif status == 1 and command.said.count("error: ") != 1:
            self.note("lost", what, "no line of error:", command.said[-500:])
        if "Traceback" in command.said:
            self.note("tracebacks", what, command.said[-1500:])
        if status is None:
            command.end()
        return self.found.total() == before

    def same(self, alone: Path, run: Path, what: object) -> None:
        """Compare two runs."""
        if different := differences(alone, run):
            self.note("differing", what, *different[:5])

    def outlives(self, command: Command) -> bool:
        """Return whether anything of a command outlives it for long, and kill that."""
        until = time.monotonic() + FAREWELL
        while command.processes() and time.monotonic() < until:
            time.sleep(0.05)
        return command.end()

    def nothing_left(self, command: Command, what: object) -> None:
        """Check that the processes and folders of a command go with it."""
        if self.outlives(command):
            self.note("strays", what, "left processes")
        if folders := list((self.lab / "tmp").glob("marl-workers-*")):
            self.note("strays", what, *folders)

    def begin(self, training: list[str], *, imports: bool = False) -> Command:
        """Resume the run of this trial, or begin it where it never came to be."""
        run = self.lab / "run"
        begun = (run / "config.toml").exists()
        arguments = ["resume", run] if begun else ["train", "--run-dir", run, *training]
        return Command(self.lab, *arguments, imports=imports)

    def go_on(self, training: list[str], alone: Path, what: object) -> None:
        """Let the run of this trial come to its end, and compare it."""
        if self.judge(self.begin(training), what):
            self.same(alone, self.lab / "run", what)


class Undisturbed:
    """What the attacked are compared with, made when first asked for; all in one folder."""

    def __init__(self, scratch: Path) -> None:
        self.lab = scratch / "undisturbed"
        self.lab.mkdir()
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, *arguments: object, patience: float = PATIENCE) -> Path:
        """Return the folder that `marl ARGUMENTS FOLDER` makes."""
        folder = self.lab / name
        if not folder.exists():
            started = time.monotonic()
            command = Command(self.lab, *arguments, folder)
            if command.status(patience) != 0:
                raise RuntimeError(f"undisturbed {name}: {command.said}")
            self.seconds[name] = time.monotonic() - started
        return folder

    def run(self, name: str, *settings: dict[str, object]) -> Path:
        """Return a run with these settings."""
        return self(name, "train", *flags(SMALL, *settings), "--run-dir")

    def stopped(self) -> Path:
        """Return a run of the kind "queries" that was stopped halfway."""
        folder = self.lab / "stopped"
        if not folder.exists():
            training = flags(SMALL, KINDS["queries"])
            command = Command(self.lab, "train", *training, "--run-dir", folder)
            while len(list_checkpoints(folder / "checkpoints")) < 3:
                if command.status(0.01) is not None:
                    raise RuntimeError(f"it ended before it was stopped: {command.said}")
            command.send(signal.SIGTERM)
            command.status()
        return folder

    def dataset(self) -> Path:
        """Return the dataset of a run."""
        return self("dataset", "export", self.run("nav"), "--pairs", 100)

    def fit(self) -> Path:
        """Return a reward that was fitted to the dataset."""
        return self("fit", "fit-reward", self.dataset(), "--steps", 100, "--out")
