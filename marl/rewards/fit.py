"""A reward model fitted to a preference dataset, without an environment or a policy.

Axes: T steps of all episodes, B pairs.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from envs import EnvSpec
from marl.config import Config, ConfigError, EnvConfig, NetworkConfig, RewardConfig
from marl.config.io import load_config
from marl.config.presets import PRESETS
from marl.nn.normalisation import team_norm
from marl.preferences.dataset import Answer, EpisodeArchive, PreferenceDataset
from marl.preferences.dataset.dataset import DatasetBatches
from marl.rewards import RewardLearner, make_reward_learner
from marl.rewards.base import Batches
from marl.rewards.budget import never
from marl.rewards.cloning import check_playable
from marl.rewards.demonstrations import (
    LEAST_REGULARISATION,
    DemonstrationBatches,
    DemonstrationLoss,
)
from marl.rewards.fit_policy import (
    UNIFORM,
    PolicyFit,
    PolicyReport,
    StepProgress,
    check_extractable,
    extract_policy,
    fit_ratio,
    known,
    no_policy,
    progress_bar,
    report_of,
    update_norm,
)
from marl.rewards.io import write_fit
from marl.rewards.losses import bradley_terry_loss, preference_accuracy
from marl.rewards.scoring import Reliability, reliability, score_episodes
from marl.utils.files import OutputError, whole_folder
from marl.utils.seeding import Seeds

_OTHER_FOLDER = "choose another --out"
BLOCK = 10
"""Gradient steps between two measurements where ``reward.gradient_steps`` is 0."""

OMAPL = "omapl"
"""The reward of imap, and a policy that is cloned by it."""
MODELS = (*(name for name, choice in PRESETS.items() if choice.loss == "preference"), OMAPL)
"""What can be fitted: presets that learn from preferences, and a policy extracted from one."""


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
            "accuracy": known(self.accuracy),
            "loss": known(self.loss),
            "expected_calibration_error": known(self.calibration.error),
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
    demonstrations: int = 0
    """Demonstrations that it was fitted to, in place of answers; pairs then hold one each."""
    policy: PolicyReport | None = None
    """Of a policy that was fitted; None: none was."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``report.json`` holds them."""
        parts = ("train", "held_out", "folder", "policy")
        flat = {k: v for k, v in vars(self).items() if k not in parts}
        flat |= {"train": self.train.to_json(), "held_out": self.held_out.to_json()}
        return flat if self.policy is None else flat | {"policy": self.policy.to_json()}


def measured(
    learner: RewardLearner, batches: DatasetBatches | DemonstrationBatches, *, held_out: bool
) -> Measured:
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


def fit_reward(
    data: PreferenceDataset | Path | str,
    *,
    model: str = "slf",
    steps: int = 1000,
    seed: int = 0,
    out: Path | str | None = None,
    reward: RewardConfig | None = None,
    source: str = "*",
    holdout_every: int = 8,
    console: Console | None = None,
    reference: str = "",
    network: NetworkConfig | None = None,
    demonstrations: bool = False,
    stop: Callable[[], bool] = never,
) -> FitReport:
    """Fit a reward model to the answers of a dataset and return how well it tells held-out ones.

    `model` is one of `MODELS` or the import path of your own, `steps` the gradient steps,
    `reward` the settings, and `source` a pattern of whose answers count, such as ``person:*``.
    `out` gets the model, in the form that ``preferences.model.run`` takes, ``report.json`` and
    ``calibration.png``. A `console` shows progress; once `stop` returns True no further gradient
    step is taken, and what was fitted is measured and written.

    Models ``dpo`` and ``omapl`` are policies, too, with a `network` of these settings, and `out` is
    a folder that `marl.load` plays. The `reference` of ``dpo`` is ``uniform`` (if empty),
    ``cloned`` from the episodes, or a run or fit. With `demonstrations` a reward is fitted to the
    difference of the dataset's demonstrations and its other episodes, and to no answers.
    """
    preferences = data if isinstance(data, PreferenceDataset) else PreferenceDataset(data)
    _check_options(model, steps, holdout_every, reference, demonstrations)
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else whole_folder(folder, _OTHER_FOLDER) as partial:
        config = _config(preferences, model, seed, reward or RewardConfig(), steps)
        config = replace(config, network=network or NetworkConfig())
        if demonstrations:
            least = max(config.reward.regularisation, LEAST_REGULARISATION)
            config = replace(config, reward=replace(config.reward, regularisation=least))
        everything = preferences.answers.answers()
        answers = [answer for answer in everything if fnmatchcase(answer.source, source)]
        answers = [] if demonstrations else answers
        archive = preferences.archive(holdout_every=holdout_every, progress=console is not None)
        seeds, spec = Seeds(seed), preferences.spec
        where, generator = str(preferences.folder), seeds.torch("preferences")
        batches: DatasetBatches | DemonstrationBatches
        num_demonstrations = 0
        if demonstrations:
            batches = DemonstrationBatches(archive, config.reward, generator, where)
            sides = [archive.demonstrations(held_out=held_out) for held_out in (False, True)]
            num_demonstrations = sum(map(len, sides))
        else:
            batches = DatasetBatches(archive, answers, config.fitted_reward, generator)
            _check_answers(preferences, batches, everything, source)
        if model in ("dpo", OMAPL):
            check_playable(archive, spec, where)
        with progress_bar(steps, console) as progress:
            learner, policy = _fitted(
                model,
                reference or UNIFORM,
                archive,
                batches,
                config,
                spec,
                seeds,
                steps,
                progress,
                stop,
            )
        config = config if policy is None else policy.config
        report = FitReport(
            dataset=where,
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
            demonstrations=num_demonstrations,
            policy=None if policy is None else report_of(policy, reference or UNIFORM, archive),
        )
        if folder is not None and partial is not None:
            actor, fitted = (None, "") if policy is None else (policy.actor, _in_words(report))
            content = report.to_json()
            write_fit(folder, partial, content, config, spec, learner, actor=actor, fitted=fitted)
            _draw(report, partial / "calibration.png")
    return report


def _check_options(
    model: str, steps: int, holdout_every: int, reference: str, demonstrations: bool
) -> None:
    """Raise `ConfigError` for options that are out of range or contradict each other."""
    if steps < 1 or holdout_every < 2:
        raise ConfigError(
            f"steps is {steps} and holdout_every {holdout_every}; expected at least 1 and 2"
        )
    if reference and model != "dpo":
        raise ConfigError(
            f"reference: got {reference!r}, but model {model} is fitted against none; leave it out "
            "or fit model dpo"
        )
    if demonstrations and model == "dpo":
        raise ConfigError(
            "demonstrations: model dpo is fitted to preferences; `marl imitate` fits a policy to "
            "demonstrations"
        )


def _draw(report: FitReport, path: Path) -> None:
    """Draw the calibration; a picture that cannot be written is a warning."""
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
    preset = {} if own else {"algorithm": "imap" if model == OMAPL else model}
    config = load_config(overrides={**preset, "seed": seed})
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
    if model == OMAPL:
        check_extractable(config)
    return config


def _fitted(
    model: str,
    reference: str,
    archive: EpisodeArchive,
    batches: DatasetBatches | DemonstrationBatches,
    config: Config,
    spec: EnvSpec,
    seeds: Seeds,
    steps: int,
    progress: StepProgress,
    stop: Callable[[], bool],
) -> tuple[RewardLearner, PolicyFit | None]:
    """Return the fitted reward model and, of models ``dpo`` and ``omapl``, the policy."""
    norm = team_norm(spec, config.network)
    update_norm(norm, archive, archive.available())
    if model == "dpo":

        def loss(learner: RewardLearner) -> float:
            return measured(learner, batches, held_out=True).loss

        policy = fit_ratio(
            reference,
            archive,
            batches,
            loss,
            config,
            spec,
            norm,
            seeds,
            steps=steps,
            progress=progress,
            stop=stop,
        )
        return policy.learner, policy
    device = archive.numbers.device
    learner = make_reward_learner(spec, config, norm, seeds.torch("reward"), device)
    if isinstance(batches, DemonstrationBatches):
        learner.loss = DemonstrationLoss()
    _fit(learner, batches, steps, progress, stop)
    if model != OMAPL:
        return learner, None
    return learner, extract_policy(
        learner, archive, config, spec, norm, seeds, steps=steps, progress=progress, stop=stop
    )


def _in_words(report: FitReport) -> str:
    """Return how a policy was fitted."""
    assert report.policy is not None
    return f"fitted by {report.model} in {report.policy.kept:,} gradient steps"


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


def _fit(
    learner: RewardLearner,
    batches: Batches,
    steps: int,
    progress: StepProgress,
    stop: Callable[[], bool],
) -> None:
    """Take at least `steps` gradient steps, whole fits of ``reward.gradient_steps`` each."""
    while learner.num_fits < steps and not stop():
        metrics = learner.fit(batches, no_policy)
        losses = [value for name, value in metrics.items() if name.endswith("/loss")]
        shown = f"loss {sum(losses):.3f}"
        if "preference/accuracy" in metrics:
            shown += f", {metrics['preference/accuracy']:.0%} of held-out pairs right"
        progress(shown, learner.num_fits)
