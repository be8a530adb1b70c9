"""A reward model fitted to a preference set, without an environment or a policy.

Axes: T steps of all episodes.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from marl.config import Config, ConfigError, EnvConfig, RewardConfig
from marl.config.files import load_config
from marl.disk import write_whole
from marl.fit_report import FitReport, measured
from marl.normalisers import TeamNorm
from marl.plots import plot_reliability
from marl.preferences.sets import Answer, EpisodeArchive, PreferenceSet
from marl.preferences.sets.batches import SetBatches
from marl.rewards import RewardLearner, make_reward_learner
from marl.rewards.saved import save_reward
from marl.seeding import Seeds
from marl.types import Transitions

BLOCK = 10
"""Gradient steps between two measurements where ``reward.gradient_steps`` is 0."""

MODELS = ("imap", "slf", "ipl", "sl")
"""Shipped reward models, by the algorithm that each belongs to."""


def fit_reward(
    data: PreferenceSet | Path | str,
    *,
    model: str = "imap",
    steps: int = 1000,
    seed: int = 0,
    out: Path | str | None = None,
    reward: RewardConfig | None = None,
    source: str = "*",
    holdout_every: int = 8,
    console: Console | None = None,
) -> FitReport:
    """Fit a reward model to the answers of a set and return how well it tells held-out ones.

    `model` is one of `MODELS` or the import path of your own, `steps` the gradient steps,
    `reward` the settings, and `source` a pattern of whose answers count, such as ``person:*``.
    `out` gets the model, in the form that ``preferences.model.run`` takes, ``report.json`` and
    ``calibration.png``. A `console` shows progress.
    """
    torch.set_num_threads(1)  # small matrices, as in training
    preferences = data if isinstance(data, PreferenceSet) else PreferenceSet(data)
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ConfigError(f"{folder} already exists and is not empty; choose another --out")
    if steps < 1 or holdout_every < 2:
        raise ConfigError(
            f"steps is {steps} and holdout_every {holdout_every}; expected at least 1 and 2"
        )
    config = _config(preferences, model, seed, reward or RewardConfig(), steps)
    everything = preferences.answers.answers()
    answers = [answer for answer in everything if fnmatchcase(answer.source, source)]
    archive = preferences.archive(holdout_every=holdout_every, progress=console is not None)
    seeds, spec = Seeds(seed), preferences.spec
    batches = SetBatches(
        archive, answers, config.reward, spec.max_steps, seeds.torch("preferences")
    )
    _check_answers(preferences, batches, everything, source)
    norm = TeamNorm(spec, enabled=config.network.normalise_inputs)
    norm.update(_steps_to_train_on(archive))
    device = archive.numbers.device
    learner = make_reward_learner(spec, config, norm, seeds.torch("reward"), device)
    _fit(learner, batches, steps, console)
    report = FitReport(
        preference_set=str(preferences.folder),
        environment=preferences.manifest.environment.name,
        model=model,
        seed=seed,
        steps=learner.num_fits,
        episodes=len(archive.numbers),
        sources=dict(Counter(answer.source for answer in answers)),
        skipped=batches.num_skipped,
        orphaned=batches.num_orphaned,
        train=measured(learner, batches, held_out=False),
        held_out=measured(learner, batches, held_out=True),
        folder=folder,
    )
    if folder is not None:
        save_reward(folder, learner.num_fits, config, spec, learner)
        write_whole(folder / "report.json", json.dumps(report.to_json(), indent=1).encode())
        plot_reliability(report.held_out.calibration, folder / "calibration.png")
    return report


def _config(
    preferences: PreferenceSet, model: str, seed: int, reward: RewardConfig, steps: int
) -> Config:
    """Return the settings of a run that would learn this reward."""
    if model not in MODELS and ":" not in model:
        raise ConfigError(
            f"model: got {model!r}, expected one of {', '.join(MODELS)}, or the import path of "
            "your own such as my_reward:NextObservationReward"
        )
    own = "" if model in MODELS else model
    environment = preferences.manifest.environment
    config = load_config(overrides={"algorithm": "imap" if own else model, "seed": seed})
    config = replace(
        config,
        env=EnvConfig(name=environment.name, options=environment.options),
        reward=replace(
            reward, model=own, gradient_steps=min(steps, reward.gradient_steps or BLOCK)
        ),
    )
    if not own and config.reward_gamma > 0.0 and reward.value_loss == "soft":
        raise ConfigError(
            'reward.value_loss: "soft" asks the policy, and a preference set has none; set '
            '"gumbel" or "expectile"'
        )
    return config


def _check_answers(
    preferences: PreferenceSet, batches: SetBatches, answers: Sequence[Answer], source: str
) -> None:
    """Raise `ConfigError` if there is nothing to learn from."""
    labels = batches.pairs(held_out=False)[2]
    if len(labels) and bool((labels != 0.5).any()):
        return
    found = ", ".join(f"{n} of {name}" for name, n in Counter(a.source for a in answers).items())
    raise ConfigError(
        f"{preferences.folder}: of the answers by {source!r}, {len(labels)} are there to train on, "
        f"and none of them prefers an episode (skipped: {batches.num_skipped}, about episodes that "
        f"are not there: {batches.num_orphaned}). The set holds {found or 'no answers'}"
    )


def _steps_to_train_on(archive: EpisodeArchive) -> Transitions:
    """Return all steps (T, 1) of the episodes that are not held out, for the input statistics."""
    numbers = archive.available()
    lengths: Tensor = archive.episodes(numbers).lengths
    ends = lengths.cumsum(0)
    rows = torch.arange(int(ends[-1]), device=lengths.device)
    offsets = rows - (ends - lengths).repeat_interleave(lengths)
    return archive.steps(numbers.repeat_interleave(lengths), offsets.unsqueeze(-1))


def _fit(learner: RewardLearner, batches: SetBatches, steps: int, console: Console | None) -> None:
    """Take at least `steps` gradient steps, whole fits of ``reward.gradient_steps`` each."""
    columns = (TextColumn("fitting"), BarColumn(), TextColumn("{task.description}"))
    quiet = console is None or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet
    ) as progress:
        task = progress.add_task("", total=steps)
        while learner.num_fits < steps:
            metrics = learner.fit(batches, _no_policy)
            shown = f"loss {metrics['preference/loss']:.3f}"
            if "preference/accuracy" in metrics:
                shown += f", {metrics['preference/accuracy']:.0%} of held-out pairs right"
            progress.update(task, completed=learner.num_fits, description=shown)


def _no_policy(transitions: Transitions) -> tuple[Tensor, Tensor]:
    raise AssertionError("no policy is at hand, and only the soft value loss asks one")
