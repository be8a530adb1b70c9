"""A reward model fitted to a preference dataset, without an environment or a policy.

Axes: T steps of all episodes, B pairs.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from marl.config import Config, ConfigError, EnvConfig, RewardConfig
from marl.config.io import load_config
from marl.config.presets import PRESETS
from marl.data.types import Transitions
from marl.nn.normalisation import TeamNorm
from marl.preferences.dataset import Answer, EpisodeArchive, PreferenceDataset
from marl.preferences.dataset.dataset import DatasetBatches
from marl.rewards import RewardLearner, make_reward_learner
from marl.rewards.io import save_reward
from marl.rewards.losses import bradley_terry_loss, preference_accuracy
from marl.rewards.scoring import Reliability, reliability, score_episodes
from marl.utils.checkpoint import CheckpointError
from marl.utils.files import OutputError, atomic_write, output, whole_folder
from marl.utils.seeding import Seeds

_OTHER_FOLDER = "choose another --out"
BLOCK = 10
"""Gradient steps between two measurements where ``reward.gradient_steps`` is 0."""

MODELS = tuple(name for name, choice in PRESETS.items() if choice.loss == "preference")
"""Presets whose reward is learned from preferences."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well a reward model tells the preferred episodes of some pairs."""

    pairs: int
    ties: int
    accuracy: float
    """Share of the decided pairs that it orders as the labels do; NaN of none."""
    loss: float
    """Bradley-Terry cross-entropy in nats, ties included; guessing costs 0.693."""
    calibration: Reliability

    def to_json(self) -> dict[str, Any]:
        """Return plain values; None where a number is not known."""
        return {
            "pairs": self.pairs,
            "ties": self.ties,
            "accuracy": _known(self.accuracy),
            "loss": _known(self.loss),
            "expected_calibration_error": _known(self.calibration.error),
            "reliability": self.calibration.rows(),
        }


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What `fit_reward` found."""

    dataset: str
    environment: str
    model: str
    seed: int
    steps: int
    """Gradient steps taken."""
    episodes: int
    sources: dict[str, int]
    """Answers by who gave them, skipped ones among them."""
    skipped: int
    """Answers without a preference."""
    orphaned: int
    """Answers about episodes that are not there."""
    train: Measured
    held_out: Measured
    folder: Path | None
    """Where the model, this report and its picture are; None: nowhere."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``report.json`` holds them."""
        flat = {k: v for k, v in vars(self).items() if k not in ("train", "held_out", "folder")}
        return flat | {"train": self.train.to_json(), "held_out": self.held_out.to_json()}


def measured(learner: RewardLearner, batches: DatasetBatches, *, held_out: bool) -> Measured:
    """Return how a model does on all pairs of one side of the split, from all of their steps."""
    first, second, labels = batches.pairs(held_out=held_out)
    numbers, places = torch.stack((first, second)).unique(return_inverse=True)
    scores = score_episodes(learner, batches.archive.episodes(numbers))
    logits = scores[places[0]] - scores[places[1]]
    return Measured(
        pairs=len(labels),
        ties=int((labels == 0.5).sum()),
        accuracy=float(preference_accuracy(logits, labels)),
        loss=float(bradley_terry_loss(logits, labels)),
        calibration=reliability(torch.sigmoid(logits.to(torch.float64)), labels),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fit_reward(
    data: PreferenceDataset | Path | str,
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
    """Fit a reward model to the answers of a dataset and return how well it tells held-out ones.

    `model` is one of `MODELS` or the import path of your own, `steps` the gradient steps,
    `reward` the settings, and `source` a pattern of whose answers count, such as ``person:*``.
    `out` gets the model, in the form that ``preferences.model.run`` takes, ``report.json`` and
    ``calibration.png``. A `console` shows progress.
    """
    preferences = data if isinstance(data, PreferenceDataset) else PreferenceDataset(data)
    if steps < 1 or holdout_every < 2:
        raise ConfigError(
            f"steps is {steps} and holdout_every {holdout_every}; expected at least 1 and 2"
        )
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else whole_folder(folder, _OTHER_FOLDER) as partial:
        config = _config(preferences, model, seed, reward or RewardConfig(), steps)
        everything = preferences.answers.answers()
        answers = [answer for answer in everything if fnmatchcase(answer.source, source)]
        archive = preferences.archive(holdout_every=holdout_every, progress=console is not None)
        seeds, spec = Seeds(seed), preferences.spec
        batches = DatasetBatches(
            archive, answers, config.reward, spec.max_steps, seeds.torch("preferences")
        )
        _check_answers(preferences, batches, everything, source)
        norm = TeamNorm(spec, enabled=config.network.normalise_inputs)
        norm.update(_steps_to_train_on(archive))
        device = archive.numbers.device
        learner = make_reward_learner(spec, config, norm, seeds.torch("reward"), device)
        _fit(learner, batches, steps, console)
        report = FitReport(
            dataset=str(preferences.folder),
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
        if partial is not None:
            with output(folder or partial, _OTHER_FOLDER):
                try:
                    save_reward(partial, learner.num_fits, config, spec, learner)
                except CheckpointError as error:
                    raise error.__cause__ or error from None
                content = json.dumps(report.to_json(), indent=1).encode()
                atomic_write(partial / "report.json", content)
            _draw(report, partial / "calibration.png")
    return report


def _draw(report: FitReport, path: Path) -> None:
    """Draw the calibration; without that picture the fit is whole."""
    from marl.reports.plots import plot_reliability  # a second of imports

    try:
        plot_reliability(report.held_out.calibration, path)
    except OutputError as error:
        warnings.warn(f"{path.name} is not drawn: {error.__cause__}", stacklevel=3)


def _config(
    preferences: PreferenceDataset, model: str, seed: int, reward: RewardConfig, steps: int
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
            'reward.value_loss: "soft" asks the policy, and a preference dataset has none; set '
            '"gumbel" or "expectile"'
        )
    return config


def _check_answers(
    preferences: PreferenceDataset, batches: DatasetBatches, answers: Sequence[Answer], source: str
) -> None:
    """Raise `ConfigError` if there is nothing to learn from."""
    labels = batches.pairs(held_out=False)[2]
    if len(labels) and bool((labels != 0.5).any()):
        return
    found = ", ".join(f"{n} of {name}" for name, n in Counter(a.source for a in answers).items())
    raise ConfigError(
        f"{preferences.folder}: of the answers by {source!r}, {len(labels)} are there to train on, "
        f"and none of them prefers an episode (skipped: {batches.num_skipped}, about episodes that "
        f"are not there: {batches.num_orphaned}). The dataset holds {found or 'no answers'}"
    )


def _steps_to_train_on(archive: EpisodeArchive) -> Transitions:
    """Return all steps (T, 1) of the episodes that are not held out, for the input statistics."""
    numbers = archive.available()
    lengths: Tensor = archive.episodes(numbers).lengths
    ends = lengths.cumsum(0)
    rows = torch.arange(int(ends[-1]), device=lengths.device)
    offsets = rows - (ends - lengths).repeat_interleave(lengths)
    return archive.steps(numbers.repeat_interleave(lengths), offsets.unsqueeze(-1))


def _fit(
    learner: RewardLearner, batches: DatasetBatches, steps: int, console: Console | None
) -> None:
    """Take at least `steps` gradient steps, whole fits of ``reward.gradient_steps`` each."""
    columns = (TextColumn("fitting"), BarColumn(), TextColumn("{task.description}"))
    quiet = console is None or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet
    ) as progress:
        task = progress.add_task("", total=steps)
        while learner.num_fits < steps:
            metrics = learner.fit(batches, _no_policy)
            losses = [value for name, value in metrics.items() if name.endswith("/loss")]
            shown = f"loss {sum(losses):.3f}"
            if "preference/accuracy" in metrics:
                shown += f", {metrics['preference/accuracy']:.0%} of held-out pairs right"
            progress.update(task, completed=learner.num_fits, description=shown)


def _no_policy(transitions: Transitions) -> tuple[Tensor, Tensor]:
    raise AssertionError("no policy is at hand, and only the soft value loss asks one")
