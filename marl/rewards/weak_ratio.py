"""What a weak team has learned, as a reward for a strong one (ConG, arXiv 2510.07884).

The log-ratio of a weak team's policy after some training to what it was before is the reward that
its training followed, as far as it got. A strong team, of larger networks or of more agents, is
judged by it. Away from what the weak team did, the ratio is noise, and of a nearly deterministic
team it has no bound: it is clipped, and counts for plausible actions only.

Axes: N agents, A actions; ``*L`` any leading axes, (M, K) of a batch.
"""

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError, RewardConfig
from marl.config.preferences import ContrastConfig
from marl.contrast import PLAUSIBLE, check_not_composite, plausible_actions
from marl.data.types import Rewards, Transitions
from marl.learners.actors import CategoricalActor, GaussianActor
from marl.learners.distributions import Categorical, Distribution, Gaussian
from marl.policy import config_in, restored
from marl.rewards.base import RewardModel
from marl.rewards.io import CPU, freeze
from marl.rewards.learner import RewardLearner
from marl.rewards.ratio import distributions, is_recurrent
from marl.team_size import check_agents_alike, folded_steps, unfold
from marl.utils.checkpoint import load_saved

TAIL = -2.0 * math.log(PLAUSIBLE)
"""Squared distance from the mean, in deviations, at which a density is a tenth of its largest."""


class PlausibleRatio(RewardModel):
    """r_i = clip(log pi_after,i - log pi_before,i) of plausible actions, else 0; R = sum_i r_i.

    An action is plausible that either policy takes at least a tenth as often as its likeliest one;
    of continuous actions each dimension by itself. The policies may be of a team of another size.
    """

    def __init__(
        self,
        after: CategoricalActor | GaussianActor,
        before: CategoricalActor | GaussianActor,
        size: int,
        clip: float,
    ) -> None:
        """The policies are of `size` agents; `clip` bounds each agent's r_i in every step, in
        nats."""
        super().__init__()
        self.after = after
        self.before = before
        self.size = size
        self.clip = clip

    @torch.no_grad()
    def forward(self, transitions: Transitions) -> Rewards:
        """Return R and r_i; an absent agent's r_i is zero."""
        count = transitions.obs.shape[-2]
        steps = transitions if count == self.size else folded_steps(transitions, self.size)
        after, _ = distributions(self.after, steps, "after")
        before, _ = distributions(self.before, steps, "before")
        local = plausible_ratio(after, before, steps.actions).clamp(-self.clip, self.clip)
        local = local if count == self.size else unfold(local, count, -2)
        if transitions.alive is not None:
            local = local.where(transitions.alive, torch.zeros_like(local))
        return Rewards(team=local.sum(dim=-1), local=local)


def plausible_ratio(
    after: Distribution, before: Distribution, actions: Tensor
) -> Float[Tensor, "*L N"]:
    """Return log pi_after - log pi_before of plausible actions, and 0 of others."""
    if isinstance(after, Categorical) and isinstance(before, Categorical):
        ratio = after.log_prob(actions) - before.log_prob(actions)
        known = plausible_actions(after) | plausible_actions(before)
        is_plausible = known.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return ratio.where(is_plausible, torch.zeros_like(ratio))
    assert isinstance(after, Gaussian)
    assert isinstance(before, Gaussian)
    z_after, z_before = _standardised(after, actions), _standardised(before, actions)
    ratio = 0.5 * (z_before - z_after) + before.log_std - after.log_std
    is_counted: Bool[Tensor, "*L N A"] = (z_after <= TAIL) | (z_before <= TAIL)
    if after.present is not None:
        is_counted = is_counted & after.present
    return ratio.where(is_counted, torch.zeros_like(ratio)).sum(dim=-1)


def _standardised(policy: Gaussian, actions: Tensor) -> Float[Tensor, "*L N A"]:
    """Return the squared distances of actions from the mean, in deviations."""
    return ((actions - policy.mean) * (-policy.log_std).exp()) ** 2


def load_weak_ratio(config: ContrastConfig, spec: EnvSpec) -> RewardLearner:
    """Return the frozen ratio of two checkpoints of a weak run, for transitions of `spec`.

    Raises `ConfigError` where they are of two runs, in the wrong order, or of agents that see or do
    something else.
    """
    before, after = (load_saved(place) for place in (config.before, config.after))
    actors: list[CategoricalActor | GaussianActor] = []
    for name, (_, saved, folder) in (("before", before), ("after", after)):
        policy = restored(saved, folder)
        setting = f"preferences.contrast.{name}"
        check_agents_alike(policy.spec, spec, setting, folder)
        check_not_composite(spec, setting)
        if not isinstance(policy.actor, CategoricalActor | GaussianActor):
            raise ConfigError(
                f"{setting}: the actor of {folder} (learner.kind = "
                f"{policy.config.learner.kind!r}) is none of this package; name a run of mappo or "
                "ippo"
            )
        actors.append(policy.actor)
        size = policy.spec.num_agents
    _check_one_run(config, before, after)
    earlier, later = actors
    model = PlausibleRatio(later, earlier, size, config.clip)
    reads_past = is_recurrent(earlier) or is_recurrent(later)
    reward = RewardConfig(recurrence="gru" if reads_past else "none")
    learner = RewardLearner(model, "contrast", reward, spec.max_steps, threads=1, device=CPU)
    freeze(model)
    return learner


def _check_one_run(
    config: ContrastConfig,
    before: tuple[int, dict[str, Any], Path],
    after: tuple[int, dict[str, Any], Path],
) -> None:
    """Raise `ConfigError` unless one checkpoint is of the same training as the other, and later.

    A run that started from another (``init``) is later than that.
    """
    runs = [saved.get("run", "") for _, saved, _ in (before, after)]
    if runs[0] != runs[1] or not runs[0]:
        if _started_from(config_in(after[1], str(after[2])), before[2]):
            return
        if _started_from(config_in(before[1], str(before[2])), after[2]):
            raise ConfigError(
                f"preferences.contrast: {config.before} started from {config.after}, so that it is "
                "the later one; swap before and after"
            )
        raise ConfigError(
            f"preferences.contrast: {config.before} and {config.after} are of two different runs, "
            "whose ratio says nothing of what either has learned; name two checkpoints of one run, "
            "or a run and one that started from it (init)"
        )
    if before[0] >= after[0]:
        raise ConfigError(
            f"preferences.contrast: {config.before} ({before[0]:,} steps) is not earlier than "
            f"{config.after} ({after[0]:,} steps); name an earlier checkpoint of the run as before"
        )


def _started_from(config: Config, folder: Path) -> bool:
    """Return whether a run of these settings started from the run in a folder."""
    if not config.init:
        return False
    source = Path(config.init)
    source = source.parent.parent if source.suffix == ".ckpt" else source
    return source.resolve() == folder.resolve()
