"""Reward models learned from preferences."""

import torch
from torch import nn

from envs import EnvSpec
from marl.config import Config
from marl.nn.normalisation import TeamNorm
from marl.rewards.base import ImplicitReward, RewardModel
from marl.rewards.central import CentralReward
from marl.rewards.ensemble import Ensemble
from marl.rewards.factored import FactoredReward
from marl.rewards.trainer import RewardLearner, fit_budget
from marl.utils import plugins

__all__ = [
    "CentralReward",
    "Ensemble",
    "FactoredReward",
    "ImplicitReward",
    "RewardLearner",
    "RewardModel",
    "make_ensemble",
    "make_reward_learner",
]


def make_reward_learner(
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    generator: torch.Generator,
    device: torch.device,
) -> RewardLearner:
    """Return the learner of the reward that the algorithm, or ``reward.model``, names."""
    name = config.reward.model
    gamma = config.reward_gamma
    if name:
        with torch.random.fork_rng(devices=[]):  # its layers draw from PyTorch's global generator
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            model = plugins.load(name, "reward.model")(spec)
        if not isinstance(model, nn.Module):
            raise plugins.PluginError(
                f"reward model {name} is a {type(model).__name__}, expected a torch.nn.Module "
                "whose forward takes Transitions"
            )
    else:
        kind = FactoredReward if config.is_factored else CentralReward
        model = kind(spec, config.reward, gamma, norm, generator)
    return RewardLearner(
        model,
        name,
        config.reward,
        spec.max_steps,
        budget=fit_budget(config),
        threads=config.threads,
        device=device,
    )


def make_ensemble(
    own: RewardLearner,
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    generator: torch.Generator,
    device: torch.device,
) -> Ensemble | None:
    """Return the models that choose the questions; None where the query needs none."""
    if config.preferences.query not in ("disagreement", "entropy"):
        return None
    others = [
        make_reward_learner(spec, config, norm, generator, device)
        for _ in range(config.preferences.ensemble_size - 1)
    ]
    return Ensemble(own, others)
