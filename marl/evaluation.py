"""How good a trained team is: whole episodes, greedy, sampled and steered, with intervals.

Axes: E environments, B episodes.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from envs import VecEnv, close_env, make_env
from marl.contrast import contrasted
from marl.data.rollout import Collector
from marl.learners.base import Actor
from marl.policy import Policy
from marl.utils.ranks import SINGLE, Ranks, together
from marl.utils.seeding import Seeds, process_stream

if TYPE_CHECKING:
    from marl.trainer import Trainer

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Episodic returns under one way of acting."""

    returns: npt.NDArray[np.float64]
    """(B,) true returns, the same number from every environment."""
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    facts: dict[str, float]
    """Mean of each fact that the environment tells of an episode."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())


def evaluate(
    policy: Policy,
    *,
    greedy: bool,
    episodes: int,
    seed: int,
    num_envs: int = 16,
    progress: Callable[[float], None] | None = None,
    ranks: Ranks = SINGLE,
) -> Evaluation:
    """Return at least `episodes` whole episodes, equally many from each of `num_envs` environments.

    Stopping at the first `episodes` to finish would favour short ones. Generators are apart from
    those of training: two calls with one seed return the same. `progress` is called
    again and again with the share of the episodes that have ended. Several processes play a part
    each, other episodes than one would; all return the results of all.
    """
    episodes, num_envs = part_of(episodes, num_envs, ranks)
    with ExitStack() as stack:
        with together(ranks):
            env = stack.enter_context(policy.open_env(num_envs))
        return evaluate_in(
            env,
            policy.actor,
            greedy=greedy,
            episodes=episodes,
            seed=seed,
            progress=progress,
            ranks=ranks,
        )


def part_of(episodes: int, num_envs: int, ranks: Ranks) -> tuple[int, int]:
    """Return how many episodes a process plays, and in how many environments."""
    episodes = -(-episodes // ranks.size)
    return episodes, min(-(-num_envs // ranks.size), episodes)


def evaluate_in(
    env: VecEnv,
    actor: Actor,
    *,
    greedy: bool,
    episodes: int,
    seed: int,
    device: torch.device = CPU,
    progress: Callable[[float], None] | None = None,
    ranks: Ranks = SINGLE,
) -> Evaluation:
    """Return what `evaluate` does, of an actor on a device, in environments that are reset.

    `episodes` are those of this process; what is returned is of all.
    """
    seeds = Seeds(seed, process_stream(ranks))
    with together(ranks):
        counted, told = _played(env, actor, greedy, episodes, seeds, device, progress)
    if ranks.size > 1:
        parts = ranks.gather([counted, told])
        counted, told = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    low, high = bootstrap_interval(counted, Seeds(seed).numpy("evaluation bootstrap"))
    means = told.mean(axis=0).tolist()
    return Evaluation(
        returns=counted,
        low=low,
        high=high,
        facts=dict(zip((fact.name for fact in env.spec.facts), means, strict=True)),
    )


def _played(
    env: VecEnv,
    actor: Actor,
    greedy: bool,
    episodes: int,
    seeds: Seeds,
    device: torch.device,
    progress: Callable[[float], None] | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the returns (B,) and facts (B, F) of whole episodes."""
    num_envs = env.spec.num_envs
    per_env = -(-episodes // num_envs)
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    facts: list[list[list[float]]] = [[] for _ in range(num_envs)]
    collector = Collector(
        env,
        min(env.spec.max_steps, 200),
        seed=seeds.integer("evaluation environment"),
        generator=seeds.torch("evaluation actions", device),
        device=device,
    )
    while min(len(r) for r in returns) < per_env:
        finished = collector.collect(actor, greedy=greedy)[0].episodes
        for index, env_index in enumerate(finished.env.tolist()):
            returns[env_index].append(float(finished.returns[index]))
            facts[env_index].append(
                [] if finished.facts is None else finished.facts[index].tolist()
            )
        if progress is not None:
            ended = sum(min(len(r), per_env) for r in returns)
            progress(ended / (num_envs * per_env))
    counted = np.array([r[:per_env] for r in returns]).flatten()
    told = np.array([f[:per_env] for f in facts])
    return counted, told.reshape(len(counted), told.shape[-1])


class Evaluator:
    """Evaluates a trainer's policy while it trains, in environments and with draws of its own.

    All evaluations play the same episodes, those of `marl evaluate` with the run's seed, started
    with as many processes; training does not notice.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        self._env: VecEnv | None = None

    def after_iteration(self) -> dict[str, float]:
        """Return the metrics of an evaluation where one is due after an iteration; else none.

        One is due where a multiple of ``eval.every`` was reached, and at the end.
        """
        trainer, config = self._trainer, self._trainer.config.eval
        if not config.every:
            return {}
        is_last = trainer.iteration >= trainer.config.num_iterations
        if not config.is_due(trainer.steps, trainer.config.batch_steps) and not is_last:
            return {}
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        with together(trainer.ranks):
            env = self._open_env()
        for name in ("greedy", "sampled"):
            result = evaluate_in(
                env,
                trainer.learner.actor,
                greedy=name == "greedy",
                episodes=part_of(config.episodes, config.num_envs, trainer.ranks)[0],
                seed=trainer.config.seed,
                device=trainer.device,
                ranks=trainer.ranks,
            )
            metrics[f"evaluation/{name}"] = result.mean
            for success in trainer.env.spec.successes:
                metrics[f"evaluation/{name}_{success}"] = result.facts[success]
        return metrics | {"time/evaluation": time.perf_counter() - started}

    def _open_env(self) -> VecEnv:
        """Return the environments, made at the first evaluation."""
        if self._env is None:
            config = self._trainer.config
            eval_ = config.eval
            _, num_envs = part_of(eval_.episodes, eval_.num_envs, self._trainer.ranks)
            self._env = make_env(config.env.name, num_envs, **self._trainer.env_options)
        return self._env

    def close(self) -> None:
        """Release what the environments hold."""
        if self._env is not None:
            close_env(self._env)


@dataclass(frozen=True, kw_only=True)
class SteeredEvaluation:
    """A team that is steered with one strength, and what must be compared with it."""

    strength: float
    sampled: Evaluation
    greedy: Evaluation
    sharpened: Evaluation | None
    """pi^(1 + strength), sampled: what a contrast to a uniform policy does. None where that is no
    distribution."""


@dataclass(frozen=True, kw_only=True)
class SteeringCurve:
    """A team that is steered with several strengths."""

    points: tuple[SteeredEvaluation, ...]
    greedy: Evaluation
    """The team itself, acting greedily: the limit of sharpening."""


def steering_curve(
    policy: Policy,
    steer: Callable[[float], Policy],
    strengths: Sequence[float],
    *,
    episodes: int,
    seed: int,
    num_envs: int = 16,
    progress: Callable[[str, float], None] | None = None,
) -> SteeringCurve:
    """Return how good `policy` is where `steer` steers it with each of the `strengths`.

    All are played with one seed, in environments that are made once. `progress` is told again and
    again what is played, and which share of its episodes has ended.
    """
    steered = [steer(strength) for strength in strengths]  # what is impossible is told at once
    with policy.open_env(min(num_envs, episodes)) as env:

        def played(name: str, team: Policy, *, greedy: bool) -> Evaluation:
            def ended(share: float) -> None:
                if progress is not None:
                    progress(name, share)

            counts: dict[str, Any] = {"episodes": episodes, "seed": seed}
            return evaluate_in(env, team.actor, greedy=greedy, progress=ended, **counts)

        points = []
        for strength, team in zip(strengths, steered, strict=True):
            sampled = played(f"strength {strength:g}, sampled", team, greedy=False)
            sharpened = sampled if strength == 0.0 else None
            if strength > -1.0 and strength != 0.0:
                sharp = contrasted(policy, None, strength)
                sharpened = played(f"sharpening by {strength:g}", sharp, greedy=False)
            points.append(
                SteeredEvaluation(
                    strength=strength,
                    sampled=sampled,
                    greedy=played(f"strength {strength:g}, greedy", team, greedy=True),
                    sharpened=sharpened,
                )
            )
        greedy = played("greedy", policy, greedy=True)
    return SteeringCurve(points=tuple(points), greedy=greedy)


def bootstrap_interval(
    values: npt.NDArray[np.float64], rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (2,000 resamples)."""
    means = rng.choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
