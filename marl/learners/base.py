"""What the trainer asks of a learner, and the learners by name.

Axes: T time, E environments, N agents, O observation features, A actions; ``*L`` any leading axes.
"""

from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.learners.direct import DirectLearner
from marl.nn.normalisation import TeamNorm
from marl.utils.plugins import PluginError, load
from marl.utils.ranks import SINGLE, Ranks

LEARNERS = {
    "mappo": "marl.learners.mappo:Mappo",
    "ippo": "marl.learners.mappo:Ippo",
    "happo": "marl.learners.happo:Happo",
}
"""Import paths of the shipped learners, by `learner.kind`."""


@runtime_checkable
class Actor(Protocol):
    """The policy of all agents: what collects, evaluates and is exported.

    Hidden states have the environments as their leading axis and are zero at the start of an
    episode; a feed-forward policy has none.
    """

    def initial_hidden(self, num_envs: int) -> Tensor | None:
        """Return the hidden state at the start of an episode; None for a feed-forward policy."""
        ...

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return the random numbers of `act` for leading axes `shape`, e.g. (T, E)."""
        ...

    def act(
        self,
        obs: Tensor,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return actions, their (*L, N) log-probabilities, and the hidden state after the step.

        `obs` is (*L, N, O), as the environment shows it; `mask` (*L, N, A) says which actions are
        legal (None: all). Actions are drawn by `noise`; without it, the most likely ones.
        Continuous actions are not clipped.
        """
        ...

    def log_prob(self, obs: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the (*L, N) log-probabilities of actions at single steps, with gradient.

        Raises `ValueError` for a recurrent policy, whose steps depend on those before.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `act` depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from `state_dict()`."""
        ...


@runtime_checkable
class Learner(Protocol):
    """What improves the policy on a rollout and its rewards.

    Made as ``Class(spec, network, learner, norm, local_stream=, threads=, generator=, device=,
    ranks=)``: the environment's constants, the sections ``network`` and ``learner`` of the
    settings, the input normaliser (updated by the trainer), whether rewards may have local ones,
    the number of threads, a random generator, the device of networks and rollouts, and the
    processes that train together.
    """

    actor: Actor

    @staticmethod
    def make_actor(
        spec: EnvSpec, network: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> Actor:
        """Return a new actor, without the rest of the learner: to load an exported policy into."""
        ...

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        """Improve the policy on a rollout under `rewards`, and return metrics.

        `remaining` in (0, 1] is the share of the run still ahead, for annealing.
        """
        ...

    def advance(self, rollout: Rollout) -> None:
        """Take note of a rollout that nothing is learned from: hidden states move on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly; ``actor`` holds the actor's own."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner with the same settings."""
        ...


def learner_class(kind: str) -> type[Learner]:
    """Return the class of a learner, by its name or by the import path of your own."""
    if kind not in LEARNERS and ":" not in kind:
        raise ConfigError(
            f"learner.kind: got {kind!r}, expected {', '.join(LEARNERS)}, or an import path such "
            "as my_module:MyLearner"
        )
    return cast(type[Learner], load(LEARNERS.get(kind, kind), "learner.kind"))


def make_learner(
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    generator: torch.Generator,
    device: torch.device,
    ranks: Ranks = SINGLE,
) -> Learner:
    """Return the learner that the settings name."""
    kind = config.learner.kind
    make: Any = DirectLearner if config.fits_policy else learner_class(kind)
    # A learned reward or the hidden one pays every step, and goes on behind an interruption.
    if spec.paid_at_end and config.reward_choice.source == "task":
        spec = replace(spec, finite_horizon=True)
    options: dict[str, Any] = {"local_stream": config.is_factored, "threads": config.threads}
    options |= {"generator": generator, "device": device, "ranks": ranks}
    try:
        learner: object = make(spec, config.network, config.learner, norm, **options)
    except TypeError as error:
        raise PluginError(
            f"learner.kind: {kind} is made as `marl.learners.base.Learner` says; it raised "
            f"TypeError: {error}"
        ) from error
    if not isinstance(learner, Learner) or not isinstance(learner.actor, Actor):
        raise PluginError(
            f"learner.kind: {kind} is no learner; it needs every method of "
            "marl.learners.base.Learner, and its actor every method of Actor"
        )
    return learner
