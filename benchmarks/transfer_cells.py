"""What each cell of `benchmarks.transfer` does: runs, datasets and fits, and what is measured.

A cell is one task, one variant and one seed; its result is one small JSON file. Stages that several
variants of a seed share, such as the run that comes first, are made once, in a folder of their own,
and found again.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks import ROOT
from benchmarks.transfer_segments import Worth, by_step, cut
from marl.utils.origin import commit, machine

NUM_ENVS = 16
"""Environments in which policies are evaluated."""
STRENGTHS = (-0.5, 0.0, 0.5, 1.0, 2.0)
CALIBRATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "return": {"reward.calibration": 1.0},
    "label": {"reward.calibration": 1.0, "reward.calibrate_to": "label"},
    "regression": {"reward.calibration": 1.0, "reward.preference_weight": 0.0},
}
"""Settings of the variants of that question."""


@dataclass(frozen=True, kw_only=True)
class TransferTask:
    """One question about one task."""

    name: str
    """Key in the tasks file and name of the folder of results."""
    title: str
    """Name in tables."""
    config: str
    """Path of the settings, from the root of the repository."""
    steps: int
    """Environment steps of each run that is measured, summed over environments."""
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from `config`, by dotted name."""
    measure: str = "return/mean"
    """The metric that is compared, a mean over finished episodes; larger is better."""
    question: str
    """A key of `QUESTIONS`."""
    variants: tuple[str, ...]
    """What is compared."""
    source_steps: int = 0
    """Steps of the run that comes first."""
    strong: str = ""
    """Settings of the strong team, of weak_to_strong."""
    second_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run that comes second: of the strong team, or what a team is tuned on."""
    fact: str = ""
    """The second of two things that a contrast trades, or what answers about segments add up."""
    lower_is_better: bool = False
    """Whether less of it is better."""

    @property
    def measured(self) -> str:
        """Return what the measure is called in tables."""
        return {"return/mean": "return", "episode/won": "win rate"}.get(self.measure, self.measure)


@dataclass(frozen=True)
class Cell:
    """One variant of a task with one seed."""

    task: TransferTask
    variant: str
    seed: int

    def path(self, folder: Path) -> Path:
        """Return where the finished cell is kept."""
        return folder / self.task.name / self.variant / f"seed_{self.seed}.json"

    def __str__(self) -> str:
        """Return the name that progress is reported under."""
        return f"{self.task.name}/{self.variant}/seed_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done in a cell beside the steps of its task."""

    episodes: int = 64
    """Evaluated, greedy and sampled each."""
    fit_steps: int = 1000
    """Gradient steps of every fit to a dataset."""
    samples: int = 256
    """Episodes that a weak team plays for a strong one."""
    segment_pairs: int = 1000
    """Pairs of segments that are answered."""


QUICK = Sizes(episodes=4, fit_steps=20, samples=8, segment_pairs=20)
"""Those of a trial that only shows that everything runs."""


@dataclass(frozen=True)
class Bench:
    """One cell, where its stages lie, and the steps they take."""

    cell: Cell
    work: Path
    """The folder of this task and seed."""
    sizes: Sizes

    @property
    def task(self) -> TransferTask:
        """The cell's question and its settings."""
        return self.cell.task

    def stage(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the folder of a stage, made whole if it is not there."""
        folder = self.work / name
        if not folder.exists():
            partial = folder.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            make(partial)
            os.replace(partial, folder)
        return folder

    def run(self, name: str, steps: int, overrides: Mapping[str, Any], config: str = "") -> Path:
        """Return the folder of a run, trained if it is not there."""
        from marl import load_config, train

        def make(folder: Path) -> None:
            values = {
                "algorithm": "imap",
                "seed": self.cell.seed,
                "total_steps": steps,
                "threads": 1,
                "checkpoint_every": max(1, steps // 4),
                "keep_checkpoints": 4,
            }
            settings = load_config(ROOT / (config or self.task.config), values | dict(overrides))
            for _ in train(settings, folder):
                pass

        return self.stage(f"{name}_{steps}", make)

    def command(self, *arguments: str | Path | float) -> None:
        """Run a command of `marl` in this process; raise if it fails."""
        from marl.cli import main

        words = [str(argument) for argument in arguments]
        try:
            main(words)
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"marl {' '.join(words)} ended with {end.code}") from None

    def measured(self, place: Path | str, **more: Any) -> dict[str, Any]:
        """Return how good the policy of a run or a fit is."""
        from marl import load

        return self.measured_policy(load(place), **more)

    def measured_policy(self, policy: Any, **more: Any) -> dict[str, Any]:
        """Return how good a policy is, acting greedily and sampling."""
        from marl.evaluation import evaluate_in

        counts = {"episodes": self.sizes.episodes, "seed": self.cell.seed}
        found = {}
        with policy.open_env(min(NUM_ENVS, self.sizes.episodes)) as env:
            for name in ("greedy", "sampled"):
                result = evaluate_in(env, policy.actor, greedy=name == "greedy", **counts)
                found[name] = self.value(result)
        return found | more

    def value(self, result: Any) -> float:
        """Return the measure of an evaluation: the mean return, or a fact's mean."""
        fact = self.task.measure.removeprefix("episode/")
        return float(result.mean if fact == self.task.measure else result.facts[fact])


def run_cell(cell: Cell, work: Path, sizes: Sizes) -> dict[str, Any]:
    """Return everything that is kept of a cell.

    Cells of one task and seed share their stages, so that one process at a time makes them.
    """
    code = commit()
    bench = Bench(cell, work / cell.task.name / f"seed_{cell.seed}", sizes)
    bench.work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(bench.work.with_suffix(".lock")):
        begin = time.perf_counter()
        found = QUESTIONS[cell.task.question](bench)
        seconds = round(time.perf_counter() - begin, 1)
    return {
        "task": cell.task.name,
        "algorithm": cell.variant,
        "seed": cell.seed,
        "steps": cell.task.steps,
        "commit": code,
        "machine": machine(),
        "seconds": seconds,
    } | found


def offline(bench: Bench) -> dict[str, Any]:
    """Learn from the answers of a dataset: without the environment, or with it (ppo)."""
    task, (method, _, pairs) = bench.task, bench.cell.variant.partition("_")
    source = bench.run("source", task.source_steps, task.overrides)
    if method == "behaviour":
        return bench.measured(source)
    data = bench.stage(
        f"data_{pairs}",
        lambda folder: bench.command(
            "export", source, folder, "--pairs", pairs, "--labeller", "return"
        ),
    )
    fit = ["--steps", bench.sizes.fit_steps, "--seed", bench.cell.seed, "--out"]
    name = bench.cell.variant
    if method == "bc":
        chosen = bench.stage(f"preferred_{pairs}", lambda folder: keep_preferred(data, folder))
        return bench.measured(
            bench.stage(name, lambda out: bench.command("imitate", chosen, *fit, out))
        )
    model = {"dpo": ["dpo", "--reference", "cloned"], "omapl": ["omapl"], "ppo": ["slf"]}[method]
    made = bench.stage(
        name, lambda out: bench.command("fit-reward", data, "--model", *model, *fit, out)
    )
    if method != "ppo":
        return bench.measured(made)
    labels = {"preferences.labeller": "model", "preferences.model.run": str(made)}
    return bench.measured(bench.run(f"{name}_run", task.steps, {**task.overrides, **labels}))


def keep_preferred(data: Path, folder: Path) -> None:
    """Write a dataset of those episodes that are preferred more often than not."""
    from marl.preferences.dataset import PreferenceDataset

    given = PreferenceDataset(data)
    score: dict[int, float] = {}
    for answer in given.answers.answers():
        if answer.label is not None:
            score[answer.first] = score.get(answer.first, 0.0) + answer.label - 0.5
            score[answer.second] = score.get(answer.second, 0.0) + 0.5 - answer.label
    environment = given.manifest.environment
    made = PreferenceDataset.create(
        folder, given.spec, environment=environment.name, options=environment.options
    )
    for number in sorted(one for one, value in score.items() if value > 0.0):
        made.add_episode(given.episode(number), number)


def calibration(bench: Bench) -> dict[str, Any]:
    """Train with preferences whose scores are tied to a scale, or are not."""
    overrides = {**bench.task.overrides, **CALIBRATIONS[bench.cell.variant]}
    run = bench.run(bench.cell.variant, bench.task.steps, overrides)
    return bench.measured(run, final=late_measure(run, bench.task.measure))


def late_measure(run: Path, name: str) -> float:
    """Return the mean of a metric over the last tenth of a run's steps."""
    import numpy as np

    from marl.utils.metrics import read_metrics

    metrics = read_metrics(run)
    late = metrics["step"] > 0.9 * metrics["step"][-1]
    return float(np.nanmean(metrics[name][late]))


def contrast(bench: Bench) -> dict[str, Any]:
    """Play the contrast of a tuned team to what it was before, or its guidance, by strength."""
    from marl import evaluate, load
    from marl.contrast import contrasted, guided
    from marl.evaluation import steering_curve
    from marl.rewards.io import load_reward
    from marl.utils.checkpoint import list_checkpoints

    task = bench.task
    if task.source_steps:
        base: Path = bench.run("source", task.source_steps, task.overrides)
        start = {**task.overrides, **task.second_overrides, "init": str(base)}
        tuned = bench.run("tuned", task.steps, start)
    else:
        tuned = bench.run("tuned", task.steps, task.overrides)
        base = list_checkpoints(tuned / "checkpoints")[-1]
    policy, before = load(tuned), load(base)
    reward = load_reward(tuned, policy.spec, "guide")
    counts = {"episodes": bench.sizes.episodes, "seed": bench.cell.seed}
    curve = steering_curve(
        policy,
        (lambda a: contrasted(policy, before, a))
        if bench.cell.variant == "contrast"
        else (lambda a: guided(policy, reward, a)),
        STRENGTHS,
        **counts,
    )

    def both(result: Any) -> list[float]:
        return [round(bench.value(result), 4), round(float(result.facts[task.fact]), 4)]

    points = [
        {
            "strength": point.strength,
            "sampled": both(point.sampled),
            "greedy": both(point.greedy),
            "sharpened": None if point.sharpened is None else both(point.sharpened),
        }
        for point in curve.points
    ]
    at_zero = curve.points[STRENGTHS.index(0.0)]
    return {
        "greedy": bench.value(curve.greedy),
        "sampled": bench.value(at_zero.sampled),
        "points": points,
        "before": both(evaluate(before, greedy=False, **counts)),
    }


def weak_to_strong(bench: Bench) -> dict[str, Any]:
    """Train a strong team by what a weak one has learned, and never by the return."""
    from marl import load, load_config
    from marl.team_size import resized
    from marl.utils.checkpoint import list_checkpoints

    task, variant = bench.task, bench.cell.variant
    weak = bench.run("weak", task.source_steps, task.overrides)
    before = list_checkpoints(weak / "checkpoints")[-1]
    strong: dict[str, Any] = dict(task.second_overrides)

    def trained(overrides: Mapping[str, Any], steps: int = task.steps) -> dict[str, Any]:
        return bench.measured(bench.run(variant, steps, strong | dict(overrides), task.strong))

    if variant == "scratch":  # at equal total steps, with true labels
        return trained({}, task.steps + task.source_steps)
    if variant == "labeller":
        places = {"preferences.contrast.before": before, "preferences.contrast.after": weak}
        named = {name: str(place) for name, place in places.items()}
        return trained({"preferences.labeller": "contrast"} | named)
    if variant == "model":
        return trained({"preferences.labeller": "model", "preferences.model.run": str(weak)})
    settings = load_config(ROOT / task.strong, strong)
    if variant == "weak":
        from envs import open_env

        with open_env(settings.env.name, 1, **settings.env.options) as env:
            placed = resized(load(weak), settings, env.spec, "weak")
        return bench.measured_policy(placed)
    sampled = ["--episodes", bench.sizes.samples, "--seed", bench.cell.seed]
    steered = [] if variant == "bc_weak" else ["--contrast", before, "--strength", "1"]
    name = "demos_weak" if variant == "bc_weak" else "demos_contrast"
    file = ROOT / task.strong
    demos = bench.stage(
        name,
        lambda folder: bench.command("sample", weak, folder, "--config", file, *steered, *sampled),
    )
    fit = ["--steps", bench.sizes.fit_steps, "--seed", bench.cell.seed]
    network = bench.work / "network.toml"
    write_network(network, settings)
    cloned = bench.stage(
        name.replace("demos", "cloned"),
        lambda out: bench.command("imitate", demos, "--config", network, *fit, "--out", out),
    )
    if variant != "pairs_contrast":
        return bench.measured(cloned)
    pairs = bench.stage(
        "pairs",
        lambda folder: bench.command(
            "sample", weak, folder, "--rejected", cloned, *steered, *sampled
        ),
    )
    model = ["--model", "dpo", "--reference", cloned]
    made = bench.stage(
        "pairs_fit", lambda out: bench.command("fit-reward", pairs, *model, *fit, "--out", out)
    )
    return bench.measured(made)


def reward_transfer(bench: Bench) -> dict[str, Any]:
    """Train `slf` by the labels of a reward learned in another run, or by true ones (`labels`)."""
    task = bench.task
    algorithm, _, how = bench.cell.variant.partition("_")
    new: dict[str, Any] = {"algorithm": "slf", "seed": bench.cell.seed + 10}
    if algorithm != "labels":
        made_by = {"algorithm": algorithm, **(task.overrides if how != "recent" else {})}
        name = f"source_{algorithm}_recent" if how == "recent" else f"source_{algorithm}"
        source = bench.run(name, task.source_steps, made_by)
        new |= {
            "preferences.labeller": "model",
            "preferences.model.run": str(source),
            "preferences.model.length_control": how == "controlled",
        }
    run = bench.run(f"labelled_{bench.cell.variant}", task.steps, new)
    return bench.measured(run, final=late_measure(run, task.measure))


def segments(bench: Bench) -> dict[str, Any]:
    """Fit a reward to answers about cut episodes, and train `slf` by the labels of that reward.

    Variants are `ALGORITHM_STEPS`: which reward, and how many steps a segment has.
    """
    task = bench.task
    algorithm, _, steps = bench.cell.variant.partition("_")
    source = bench.run("source", task.source_steps, task.overrides)
    episodes = bench.stage(
        "episodes",
        lambda folder: bench.command("export", source, folder, "--labeller", "return"),
    )
    worth = Worth(task.fact, task.lower_is_better)
    seed, count = bench.cell.seed, bench.sizes.segment_pairs
    data = bench.stage(
        f"segments_{steps}",
        lambda folder: cut(episodes, folder, worth, int(steps), count, seed),
    )
    fit = ["--model", algorithm, "--steps", bench.sizes.fit_steps, "--seed", seed]
    made = bench.stage(
        bench.cell.variant, lambda out: bench.command("fit-reward", data, *fit, "--out", out)
    )
    new = {
        **task.overrides,
        "algorithm": "slf",
        "seed": seed + 10,
        "preferences.labeller": "model",
        "preferences.model.run": str(made),
    }
    run = bench.run(f"labelled_{bench.cell.variant}", task.steps, new)
    final = late_measure(run, task.measure)
    return bench.measured(run, final=final, **by_step(made, episodes, worth))


def write_network(path: Path, settings: Any) -> None:
    """Write a file of settings with a run's section network alone."""
    sizes = ", ".join(map(str, settings.network.hidden_sizes))
    path.write_text(f"[network]\nhidden_sizes = [{sizes}]\n")


def warm_start(bench: Bench) -> dict[str, Any]:
    """Learn from preferences after a start: none, another run's, or an imitation's."""
    from marl import load_config

    task, variant = bench.task, bench.cell.variant
    overrides: dict[str, Any] = dict(task.overrides)
    more: dict[str, Any] = {}
    if variant != "none":
        expert = bench.run("expert", task.source_steps, task.overrides)
        overrides["init"] = str(expert)
        if variant != "run":
            objective, _, count = variant.partition("_")
            demos = bench.stage(
                f"demos_{count}",
                lambda folder: bench.command(
                    *("sample", expert, folder, "--episodes", count, "--num-envs", 1),
                    *("--seed", bench.cell.seed),
                ),
            )
            network = bench.work / "network.toml"
            write_network(network, load_config(ROOT / task.config, dict(task.overrides)))
            start = bench.stage(
                variant,
                lambda out: bench.command(
                    *("imitate", demos, "--objective", objective, "--seed", bench.cell.seed),
                    *("--config", network, "--steps", bench.sizes.fit_steps, "--out", out),
                ),
            )
            overrides["init"] = str(start)
        more["before"] = bench.measured(overrides["init"])["sampled"]
    run = bench.run(f"run_{variant}", task.steps, overrides)
    return bench.measured(run, final=late_measure(run, task.measure), **more)


QUESTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "offline": offline,
    "calibration": calibration,
    "contrast": contrast,
    "weak_to_strong": weak_to_strong,
    "warm_start": warm_start,
    "reward_transfer": reward_transfer,
    "segments": segments,
}


def quick(task: TransferTask, batch_steps: int) -> TransferTask:
    """Return a task of two iterations a run, on its first seed."""
    steps = 2 * batch_steps
    return replace(
        task,
        steps=steps,
        source_steps=steps if task.source_steps else 0,
        seeds=task.seeds[:1],
    )
