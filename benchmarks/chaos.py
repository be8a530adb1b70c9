"""Attacks runs at random, and counts what it loses: kills, damaged files, faulty servers and code.

    python -m benchmarks.chaos --kills 200 --files 500 --servers 100 --code 50 --signals 50 \\
        --disks 50 --seed 0
    python -m benchmarks.chaos --sweeps 5 --processes 10

A trial is one run, command or labelling that is attacked and then has to be as if it never was:

- kills: SIGKILL at random moments while a run trains or asks a language model, while a reward is
  fitted, while a dataset is exported, while a person answers; started again, every number must be
  that of an undisturbed one, bit for bit, and every reply and answer that was kept must still be
  there. Counted by the kill.
- files: a file of a run, of a dataset or of a fitted reward is cut, flipped, zeroed, emptied,
  deleted, or replaced by a directory or a pipe. Every command ends by itself: well, or with one
  line of error and everything else as it was.
- servers: a language model's server answers with faults; no run may end of it, and no export that
  asks it. Before the first step it may refuse the start, by one line.
- code: an environment or labeller raises, exits, hangs, or returns NaN or the wrong shape; the run
  stops with a line and, once that is mended, continues to the numbers of an undisturbed one.
- signals: Ctrl-C once and twice, SIGTERM, SIGHUP at any moment, imports included; no process and no
  folder of workers may be left, and the run continues to the same numbers.
- disks: from a random moment on, no file grows beyond a random size, as on a full disk; there is
  one line of error, and once there is room again the numbers are those of an undisturbed run.
- processes: SIGKILL of one of the two processes that train a run, after they have met; the other
  one must end within 60 s with a line, and both, started again, come to the numbers of an
  undisturbed run, bit for bit. Counted by the kill; the longest of these seconds is printed.
- sweeps: SIGKILL of a sweep of `SWEEP_TRIALS` trials, alone or with its runs, up to five times; it
  must end with the table of an undisturbed one, byte for byte. Counted by the kill.

Timings and memory are left out of the comparison. The exit status is 1 if anything was found.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.kills import MODEL, fill_disk, kill, kill_process
from benchmarks.trials import (
    FOUND,
    KINDS,
    PATIENCE,
    SMALL,
    Attack,
    Command,
    Undisturbed,
    contents,
    differences,
    flags,
    nested,
)
from marl.preferences.dataset.answers import AnswerLog
from marl.reports.recorded import find_runs
from marl.utils.checkpoint import list_checkpoints
from marl.utils.metrics import read_metrics
from tests.fragile import ENV_FAULTS, JUDGE_FAULTS
from tests.llm_faults import FAULTS
from tests.llm_server import ModelServer

AT_THE_START = 2
"""Questions that are answered well before the faults begin."""
TRIED = 47
"""Steps that are played twice to see whether an environment repeats itself. One that fails only the
second time does not: that is told, and its open episodes are cut when the run is resumed."""
TURNED_DOWN = {"no key", "not found", "redirect", "bad request"}
"""Answers at the start that only the user can do something about."""


def truncated(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size or 1)])


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(min(len(data), rng.choice([1, 3, 100]))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zeroed(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data) or 1)
    end = min(len(data), start + rng.choice([1, 64, len(data)]))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))


def emptied(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def deleted(path: Path, rng: random.Random) -> None:
    path.unlink()


def a_directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = (truncated, flipped, zeroed, noise, emptied, deleted, a_directory, a_pipe)


def damage(attack: Attack, plain: Undisturbed) -> int:
    """Damage one file, now and then two, and run a command that reads it."""
    rng, lab = attack.rng, attack.lab
    stopped = plain.stopped()
    sources = {"run": stopped, "dataset": plain.dataset(), "fit": plain.fit()}
    what = rng.choice(["run", "run", "run", "dataset", "dataset", "fit"])
    folder = lab / what
    shutil.copytree(
        sources[what], folder, ignore=shutil.ignore_patterns("curve.png", "tensorboard")
    )
    if what == "run":
        name = rng.choice(["evaluate", "resume", "labels", "export"])
        few = {"evaluate": ["--episodes=4", "--num-envs=4"], "export": [lab / "made"]}
        arguments = [name, folder, *few.get(name, [])]
    elif what == "dataset":
        arguments = ["fit-reward", folder, "--steps", 5, "--out", lab / "made"]
        arguments += rng.choice([[], ["--skip-damaged"]])
    else:
        model = {"preferences.labeller": "model", "preferences.model.run": str(folder)}
        arguments = ["train", *flags(SMALL, model, {"total_steps": 160}), "--run-dir", lab / "made"]
    kinds = sorted({path.suffix or path.name for path in folder.rglob("*") if path.is_file()})
    damaged: dict[Path, str] = {}
    for _ in range(rng.choice([1, 1, 1, 2])):
        kind = rng.choice(kinds)
        files = [p for p in folder.rglob("*") if p.is_file() and (p.suffix or p.name) == kind]
        if files:
            path, how = rng.choice(sorted(files)), rng.choice(DAMAGES)
            how(path, rng)
            damaged[path] = how.__name__
    told = ", ".join(f"{p.relative_to(lab)} {how}" for p, how in damaged.items())
    label = f"{arguments[0]} with {told}"
    before, command = contents(folder), Command(lab, *arguments)
    if not attack.judge(command, label, (0, 1)):
        return 1
    after, resumed = contents(folder), arguments[0] == "resume" and command.status() == 0
    changed = [name for name, data in before.items() if after.get(name) != data]
    if changed and not resumed:
        attack.note("lost", label, "changed", *changed)
    if resumed:
        alone, names = plain.run("queries", KINDS["queries"]), {path.name for path in damaged}
        steps = {int(step) for step in read_metrics(alone)["step"]}
        if "metrics.csv" in names:  # a flipped digit looks like any other
            newest = list_checkpoints(stopped / "checkpoints")[0]
            steps = {step for step in steps if step > int(newest.stem.removeprefix("step_"))}
        if different := differences(alone, folder, steps):
            attack.note("differing", label, *different[:5])
    return 1


def serve_faults(attack: Attack, plain: Undisturbed) -> int:
    """Let a run ask a server that answers with two kinds of fault, and now and then well.

    A server that turns the model down before the first step may refuse the start, by a line: what
    is wrong is the user's to mend, nothing was trained, and no folder is left. Then the faults
    begin after the start.
    """
    names = attack.rng.sample(sorted(FAULTS), 2)
    chance = attack.rng.choice([0.3, 1.0])
    rng = random.Random(attack.rng.random())
    if attack.rng.random() < 0.25:
        return export_by_faults(attack, plain, names, chance)
    faultless = 0

    def fault(handler: Any, body: dict[str, Any]) -> bool:
        if len(server.asked) <= faultless or rng.random() >= chance:
            return False
        return FAULTS[rng.choice(names)](handler, body)

    with ModelServer() as server:
        server.fault = fault
        address = {
            "preferences.llm.base_url": server.base_url,
            "preferences.llm.cache": str(attack.lab / "cache.sqlite"),
            "preferences.llm.ask": attack.rng.choice(["pointwise", "pairwise"]),
        }
        faultless = attack.rng.choice([0, AT_THE_START])
        run = attack.lab / "run"
        training = ["train", *flags(SMALL, MODEL, address), "--run-dir", run]
        what = f"{' and '.join(names)} ({chance:.0%}, after {faultless})"
        command = Command(attack.lab, *training)
        if not faultless and TURNED_DOWN & set(names) and command.status() == 1:
            attack.judge(command, what, (1,))
            if "turned the model" not in command.said or run.exists():
                attack.note("lost", what, "was not refused as it should:", command.said[-500:])
            faultless = len(server.asked) + AT_THE_START
            command = Command(attack.lab, *training)
        if attack.judge(command, what):
            steps = read_metrics(run)["step"]
            if len(steps) != 6:
                attack.note("lost", what, f"rows: {len(steps)} of 6")
    return 1


PAIRS = 12
"""That a language model labels while episodes are exported."""


def export_by_faults(
    attack: Attack, plain: Undisturbed, names: Sequence[str], chance: float
) -> int:
    """Export episodes that a faulty server labels, and again without faults."""
    model = {name: value for name, value in MODEL.items() if "llm." in name}
    cache = plain.lab / "cache.sqlite"
    for left in plain.lab.glob(f"{cache.name}*"):  # of an earlier trial
        left.unlink()
    run = plain.run("unasked", model | {"preferences.llm.cache": str(cache)})
    what, made = f"export by {' and '.join(names)} ({chance:.0%})", attack.lab / "made"
    rng = random.Random(attack.rng.random())

    def fault(handler: Any, body: dict[str, Any]) -> bool:
        return rng.random() < chance and FAULTS[rng.choice(names)](handler, body)

    words = ["export", run, made, "--pairs", PAIRS, "--labeller", "llm", "--trust"]
    with ModelServer() as server:
        for is_faulty in (True, False):
            server.fault = fault if is_faulty else None
            command = Command(attack.lab, *words, variables={"OPENAI_BASE_URL": server.base_url})
            may_refuse = is_faulty and bool(TURNED_DOWN & set(names))
            if not attack.judge(command, what, (0, 1) if may_refuse else (0,)):
                break
            if command.status() == 1 and made.exists():
                attack.note("lost", what, "was refused, and left a dataset")
            elif command.status() == 0:
                if (kept := len(AnswerLog(made / "answers.jsonl").answers())) != PAIRS:
                    attack.note("lost", what, f"answers: {kept} of {PAIRS}")
                shutil.rmtree(made)
    return 1


def break_code(attack: Attack, plain: Undisturbed) -> int:
    """Let an environment or a labeller fail in the middle of a run, mend it, and resume."""
    rng, lab = attack.rng, attack.lab
    workers = rng.choice([None, None, 0, 2])
    if workers is None:
        who, fault, fails_at = "labeller", rng.choice(JUDGE_FAULTS), rng.randint(1, 16)
        changes: dict[str, object] = {"preferences.labeller": "tests.fragile:Judge"}
        changes |= {"total_steps": 800}
    else:
        who, fault, fails_at = f"{workers} workers", rng.choice(ENV_FAULTS), rng.randint(1, TRIED)
        changes = {"env.name": "tests.fragile:told", "env.options": {"workers": workers}}
        changes |= {"learner.rollout_steps": 6, "total_steps": 240, "checkpoint_every": 72}
    alone = plain.run(who, changes)
    (lab / "fault").write_text(f"{fault} at {fails_at}")
    training, what = flags(SMALL, changes), f"{who}: {fault} at {fails_at}"
    command = attack.begin(training)
    if fault == "hang" and not workers:
        until = time.monotonic() + PATIENCE
        while not (lab / "fault.hung").exists() and time.monotonic() < until:
            if command.status(0.05) is not None:
                break
        command.send(signal.SIGINT)
        time.sleep(1.5)
        command.send(signal.SIGINT)
        allowed = [-signal.SIGINT, 0]
    elif fault == "exit" and not workers:
        allowed = [7, 0]  # nothing can be told by a process that is no more
    else:
        allowed = [1, 0]  # 0: what was to fail was not called that often
    attack.judge(command, what, allowed)
    attack.nothing_left(command, what)
    (lab / "fault").unlink()
    attack.go_on(training, alone, f"{what}, resumed")
    return 1


def interrupt(attack: Attack, plain: Undisturbed) -> int:
    """Send a signal to a run at any moment of its life, and resume it."""
    rng, run = attack.rng, attack.lab / "run"
    kind, number = (
        rng.choice(["nav", "workers"]),
        rng.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]),
    )
    twice = number == signal.SIGINT and rng.random() < 0.5
    training, alone = flags(SMALL, KINDS[kind]), plain.run(kind, KINDS[kind])
    started = time.monotonic()
    command = attack.begin(training, imports=True)
    if rng.random() < 0.4:
        # While it imports: from when the interpreter has begun with the package itself.
        command.status(rng.uniform(0.3, 3.0))
    else:
        while not (run / "metrics.csv").exists() and command.status(0.02) is None:
            pass
        command.status(rng.uniform(0.0, plain.seconds[kind]))
    moment = time.monotonic() - started
    what = f"{kind}, {number.name}{' twice' if twice else ''} after {moment:.2f} s"
    command.send(number)
    if twice:
        command.status(rng.choice([0.1, 1.2]))
        command.send(number)
    attack.judge(command, what, (0, 128 + number, -number))
    attack.nothing_left(command, what)
    if run.exists():
        attack.go_on(training, alone, f"{what}, resumed")
    return 1


SWEEP_TRIALS = 20
SWEEPS = {
    "random": """
method = "random"
seeds = [0, 1]
[search]
learner.learning_rate = { low = 1e-4, high = 1e-2, log = true }
algorithm = ["imap", "sparse"]
""",
    "optuna": """
method = "optuna"
seeds = [0, 1]
[search]
learner.epochs = { low = 1, high = 4 }
learner.learning_rate = { low = 1e-4, high = 1e-2, log = true }
""",
}
"""Sweeps by their method; the settings of `SMALL` come to them."""


def kill_sweep(attack: Attack, plain: Undisturbed) -> int:
    """Kill a sweep up to five times, let it end, and compare its table; return the kills."""
    method = attack.rng.choice([m for m in SWEEPS if m == "random" or find_spec("optuna")])
    file = plain.lab / f"{method}.toml"
    settings = nested(SMALL | {"total_steps": 560})
    text = SWEEPS[method].replace("seeds", f"trials = {SWEEP_TRIALS}\nseeds")
    file.write_text(f"{text}\n{tomli_w.dumps({'settings': settings})}")
    jobs = 1 if method == "optuna" else 2  # side by side its choices depend on who is first
    words = ["sweep", file, "--jobs", jobs, "--out"]
    patience = PATIENCE * SWEEP_TRIALS
    alone, out = plain(method, *words, patience=patience), attack.lab / "sweep"
    kills = 0
    for _ in range(attack.rng.randint(1, 5)):
        command = Command(attack.lab, *words, out)
        if command.status(attack.rng.uniform(0.0, 0.5) * plain.seconds[method]) is not None:
            break
        with_runs = attack.rng.random() < 0.5
        command.kill(with_children=with_runs)
        kills += 1
    last = Command(attack.lab, *words, out)
    if attack.judge(last, f"{method} after {kills} kills", patience=patience):
        for name in ("trials.csv", "trials.md"):
            if (out / name).read_bytes() != (alone / name).read_bytes():
                attack.note("differing", f"{name} of {method} after {kills} kills")
        for run in find_runs(alone):
            attack.same(run, out / run.relative_to(alone), f"{method} after {kills} kills")
    return kills


ATTACKS = {
    "kills": kill,
    "files": damage,
    "servers": serve_faults,
    "code": break_code,
    "signals": interrupt,
    "disks": fill_disk,
    "sweeps": kill_sweep,
    "processes": kill_process,
}


def chaos(
    counts: dict[str, int],
    seed: int,
    scratch: Path,
    *,
    keep: bool = False,
    only: int | None = None,
    plain: Undisturbed | None = None,
) -> dict[str, Attack]:
    """Make so many trials of each class; return what was found.

    `plain`: the undisturbed of earlier trials.
    """
    plain = plain or Undisturbed(scratch)
    attacks = {name: Attack(name, scratch, seed, keep) for name, count in counts.items() if count}
    for name, attack in attacks.items():
        attack.run(lambda a, trial=ATTACKS[name]: trial(a, plain), counts[name], only)
    return attacks


def main() -> None:
    """Print every finding and a table, and exit with 1 if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ATTACKS:
        parser.add_argument(f"--{name}", type=int, default=0, help="trials of this class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep folders in which anything was found here")
    parser.add_argument("--only", type=int, help="only the trial of this number of each class")
    options = parser.parse_args()
    counts = {name: getattr(options, name) for name in ATTACKS}
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=options.keep))
    try:
        attacks = chaos(
            counts, options.seed, scratch, keep=options.keep is not None, only=options.only
        )
    finally:
        if options.keep is None:
            shutil.rmtree(scratch)
    print(f"{'':<10}{'trials':>10}" + "".join(f"{kind:>12}" for kind in FOUND))
    for name, attack in attacks.items():
        found = "".join(f"{attack.found[kind]:>12}" for kind in FOUND)
        longest = f"  longest {max(attack.seconds):.1f} s" if attack.seconds else ""
        print(f"{name:<10}{attack.trials:>10}{found}{longest}")
    sys.exit(1 if any(attack.found.total() for attack in attacks.values()) else 0)


if __name__ == "__main__":
    main()
