"""Policies fitted to a preference dataset, without an environment.

`fit_ratio` fits the policy itself by the loss of preferences (DPO; `marl.rewards.ratio`), and
`extract_policy` clones the episodes, every action as often as a factored reward thinks it is worth
(O-MAPL, arXiv 2501.18944).

Axes: N agents; ``*L`` any leading axes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError
from marl.data.types import Transitions
from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.nn.normalisation import TeamNorm
from marl.policy import load
from marl.preferences.dataset import EpisodeArchive
from marl.rewards import RatioLearner, RewardLearner, make_reward_learner
from marl.rewards.base import Batches, check_episode_length
from marl.rewards.budget import BLOCKS, FitResult, descend, never
from marl.rewards.cloning import (
    StepDraws,
    Steps,
    cloning_loss,
    fit_steps,
    mean_entropy,
    steps_of,
)
from marl.rewards.factored import FactoredReward
from marl.rewards.ratio import NetworkActor, check_comparable
from marl.utils.seeding import Seeds

UNIFORM, CLONED = "uniform", "cloned"
"""References that need no run."""

StepProgress = Callable[[str, int], None]
"""Told what is done, and how many gradient steps of it were taken."""


@dataclass(frozen=True, kw_only=True)
class PolicyFit:
    """A policy that was fitted, and what came out."""

    actor: NetworkActor
    learner: RewardLearner
    """The reward model that belongs to it."""
    config: Config
    """Settings, with the network that the policy has."""
    result: FitResult
    """How the last fit went: of preferences, or of the weighted cloning."""


@dataclass(frozen=True, kw_only=True)
class PolicyReport:
    """How a policy was fitted. Losses are those of the held-out data; NaN of none."""

    reference: str
    """What it started from, and was fitted against."""
    steps: int
    """Gradient steps taken."""
    kept: int
    """Gradient steps behind the policy that was kept."""
    first_loss: float
    """Loss of the policy that it started from."""
    loss: float
    entropy: float
    """Mean entropy of an agent's actions in nats, over the held-out episodes, or all if there are
    none. A policy without entropy explores nothing in a run that starts from it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; None where a number is not known."""
        return {k: known(v) if isinstance(v, float) else v for k, v in vars(self).items()}


def known(value: float) -> float | None:
    """Return a number for JSON, which has none that is not finite."""
    return value if math.isfinite(value) else None


def report_of(policy: PolicyFit, reference: str, archive: EpisodeArchive) -> PolicyReport:
    """Return what to tell of a fitted policy."""
    numbers = archive.available(held_out=True)
    numbers = numbers if len(numbers) else archive.numbers
    history = policy.config.network.recurrence != "none"
    result = policy.result
    return PolicyReport(
        reference=reference,
        steps=result.steps,
        kept=result.kept,
        first_loss=result.first,
        loss=result.lowest,
        entropy=mean_entropy(policy.actor, steps_of(archive, numbers, reads_history=history)),
    )


def update_norm(norm: TeamNorm, archive: EpisodeArchive, numbers: Int64[Tensor, "M"]) -> None:
    """Take all steps of some episodes into the input statistics."""
    lengths: Tensor = archive.episodes(numbers).lengths
    ends = lengths.cumsum(0)
    rows = torch.arange(int(ends[-1]), device=lengths.device)
    offsets = rows - (ends - lengths).repeat_interleave(lengths)
    norm.update(archive.steps(numbers.repeat_interleave(lengths), offsets.unsqueeze(-1)))


@contextmanager
def progress_bar(steps: int, console: Console | None) -> Iterator[StepProgress]:
    """Yield what shows how many of the gradient steps of a fit were taken."""
    columns = (BarColumn(), TextColumn("{task.description}"))
    quiet = console is None or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet
    ) as bar:
        task = bar.add_task("", total=steps)
        yield lambda what, taken: bar.update(task, completed=taken, description=what)


def start_policy(
    reference: str,
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    seeds: Seeds,
    setting: str,
    names: tuple[str, ...] = (UNIFORM, CLONED),
) -> tuple[NetworkActor, Config]:
    """Return the policy that a fit starts from, and the settings with its network.

    That of the run or fit at `reference`; a new one for one of `names`. Raises
    `ConfigError`, which `setting` begins, for one that acts on something else.
    """
    if reference in names:
        if config.network.recurrence != "none":
            check_episode_length(spec, "network.recurrence")
        return make_actor(spec, config.network, norm, seeds.torch("policy")), config
    if not (Path(reference).exists()):
        raise ConfigError(
            f"{setting}: got {reference!r}, expected {', '.join(names)}, or the folder of a run "
            "or of a fitted policy"
        )
    policy = load(reference)
    check_comparable(policy, spec, setting)
    if not isinstance(policy.actor, CategoricalActor | GaussianActor):
        raise ConfigError(
            f"{setting}: the policy of {reference} is that of a learner of your own "
            f"({policy.config.learner.kind}); name a run of mappo or ippo"
        )
    policy.actor.requires_grad_(True)
    return policy.actor, replace(config, network=policy.config.network)


def draws_of(archive: EpisodeArchive, config: Config, seeds: Seeds, *, history: bool) -> StepDraws:
    """Return what draws steps of all episodes of a dataset; `history` reads them in order."""
    reward = replace(config.reward, recurrence="gru" if history else "none")
    return StepDraws(
        archive,
        archive.available(),
        archive.available(held_out=True),
        reward,
        seeds.torch("cloning"),
    )


def fit_ratio(
    reference: str,
    archive: EpisodeArchive,
    batches: Batches,
    held_out_loss: Callable[[RewardLearner], float],
    config: Config,
    spec: EnvSpec,
    norm: TeamNorm,
    seeds: Seeds,
    *,
    steps: int,
    progress: StepProgress,
    stop: Callable[[], bool] = never,
) -> PolicyFit:
    """Fit a policy by the loss of its log-ratio to a reference, which is also where it starts.

    With ``cloned`` that is a policy cloned from all episodes; the optimizer then starts anew (as in
    CPL, arXiv 2310.13639). The policy of the lowest `held_out_loss` is kept.
    """
    actor, config = start_policy(reference, spec, config, norm, seeds, "--reference")
    reward = config.reward
    if reference == CLONED:
        history = config.network.recurrence != "none"
        fit_steps(
            actor,
            cloning_loss(actor),
            draws_of(archive, config, seeds, history=history),
            steps=steps,
            learning_rate=reward.learning_rate,
            max_grad_norm=reward.max_grad_norm,
            progress=lambda taken: progress("cloning", taken),
            stop=stop,
        )
    per_fit = -(-steps // BLOCKS)
    config = replace(
        config,
        reward=replace(
            reward, gradient_steps=per_fit, ratio=replace(reward.ratio, reference_period=0)
        ),
    )
    learner = make_reward_learner(
        spec,
        config,
        norm,
        seeds.torch("reward"),
        archive.numbers.device,
        actor=actor,
        uniform=reference == UNIFORM,
    )
    assert isinstance(learner, RatioLearner)
    learner.stops_early = False  # here it is the whole fit that stops

    def fit() -> bool:
        learner.fit(batches, no_policy)
        progress("fitting", learner.num_fits)
        return True

    fits = descend(
        fit,
        lambda: held_out_loss(learner),
        learner.parameters,
        steps=-(-steps // per_fit),
        block=1,
        stop=stop,
    )
    result = replace(fits, steps=fits.steps * per_fit, kept=fits.kept * per_fit)
    return PolicyFit(actor=actor, learner=learner, config=config, result=result)


def check_extractable(config: Config) -> None:
    """Raise `ConfigError` where a reward has no advantage of each agent's action."""
    reward = config.reward
    if config.reward_gamma == 0.0 or reward.mixer != "linear" or not reward.shared_mixer:
        raise ConfigError(
            "model: omapl weighs actions by w_i (q_i - v_i) of one linear mixer; it takes "
            'reward.gamma > 0, reward.mixer = "linear" and reward.shared_mixer = true'
        )


def extract_policy(
    learner: RewardLearner,
    archive: EpisodeArchive,
    config: Config,
    spec: EnvSpec,
    norm: TeamNorm,
    seeds: Seeds,
    *,
    steps: int,
    progress: StepProgress,
    stop: Callable[[], bool] = never,
) -> PolicyFit:
    """Clone the episodes, each action weighted by what a fitted factored reward thinks of it:

        L_pi = -mean(exp(clip(w_i (q_i - v_i) / (tau sd))) log pi_i)

    sd is the deviation of w_i (q_i - v_i) over the data and tau ``reward.ratio.temperature``. Where
    v is the soft value of q under the policy mu of the data, the minimum is proportional to mu
    exp((q - v) / (tau sd)). O-MAPL divides by the beta of its value loss instead, in the unit of q;
    but that unit is the loss's own, and with small q all weights are nearly 1. The exponent is
    clipped at ``reward.exponent_clip``.
    """
    model, reward = learner.model, config.reward
    assert isinstance(model, FactoredReward)
    history = config.reads_history or config.network.recurrence != "none"
    deviation = _advantage_deviation(
        model, steps_of(archive, archive.available(), reads_history=history)
    )
    scale = reward.ratio.temperature * deviation

    @torch.no_grad()
    def factors(transitions: Transitions) -> Float[Tensor, "*L N"]:
        exponents = model.local_advantages(transitions) / scale
        return exponents.clamp(max=reward.exponent_clip).exp()

    actor, config = start_policy(UNIFORM, spec, config, norm, seeds, "model")
    result = fit_steps(
        actor,
        cloning_loss(actor, factors),
        draws_of(archive, config, seeds, history=history),
        steps=steps,
        learning_rate=reward.learning_rate,
        max_grad_norm=reward.max_grad_norm,
        progress=lambda taken: progress("cloning", taken),
        stop=stop,
    )
    return PolicyFit(actor=actor, learner=learner, config=config, result=result)


@torch.no_grad()
def _advantage_deviation(model: FactoredReward, parts: Iterator[Steps]) -> float:
    """Return the standard deviation of w_i (q_i - v_i) over all actions of some steps.

    1 where they are all alike.
    """
    present = [
        model.local_advantages(steps.transitions)[steps.by_agent() > 0].double() for steps in parts
    ]
    deviation = float(torch.cat(present).std(correction=0))
    return deviation if deviation > 1e-12 else 1.0


def no_policy(transitions: Transitions) -> tuple[Tensor, Tensor]:
    """Raise: a dataset has no policy that acts, and only the soft value loss asks one."""
    raise AssertionError("no policy is at hand, and only the soft value loss asks one")
