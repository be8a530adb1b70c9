"""Reward models, and how they are learned from preferences or returns."""

import torch
from torch import nn

from envs import EnvSpec
from marl.config import Config
from marl.config.presets import REWARD_LOSSES, REWARD_MODELS
from marl.learners.base import Actor
from marl.nn.normalisation import TeamNorm
from marl.rewards.base import RewardModel, ValueBasedReward
from marl.rewards.budget import fit_budget
from marl.rewards.calibration import CalibratedLoss
from marl.rewards.central import CentralReward
from marl.rewards.ensemble import Ensemble
from marl.rewards.factored import FactoredReward
from marl.rewards.learner import RewardLearner
from marl.rewards.losses import RewardLoss
from marl.rewards.ratio import PolicyRatio
from marl.rewards.ratio_learner import RatioLearner, make_ratio
from marl.rewards.sequence import SequenceReward
from marl.utils import plugins
from marl.utils.ranks import SINGLE, Ranks

__all__ = [
    "CentralReward",
    "Ensemble",
    "FactoredReward",
    "PolicyRatio",
    "RatioLearner",
    "RewardLearner",
    "RewardLoss",
    "RewardModel",
    "SequenceReward",
    "ValueBasedReward",
    "make_ensemble",
    "make_reward_learner",
]


def make_reward_learner(
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    generator: torch.Generator,
    device: torch.device,
    ranks: Ranks = SINGLE,
    actor: Actor | None = None,
    *,
    uniform: bool = False,
) -> RewardLearner:
    """Return the learner of the model and the loss that ``config.reward_choice`` names.

    Where the policy is its own reward model that is `actor`, or a new one, against what it is now
    or, with `uniform`, against the uniform policy.
    """
    choice, reward = config.reward_choice, config.fitted_reward
    if config.fits_policy:
        model: nn.Module = make_ratio(spec, config, norm, generator, actor, uniform=uniform)
    elif entry := REWARD_MODELS.get(choice.model):
        make = plugins.load(entry.path, "reward.model")
        model = make(spec, config.reward, choice.gamma, norm, generator)
    else:
        model = _own_model(choice.model, spec, generator)
    make_loss = plugins.load(REWARD_LOSSES[choice.loss].path, "reward.loss")
    loss: RewardLoss = make_loss(reward, spec.max_steps)
    if reward.calibration > 0.0:
        loss = CalibratedLoss(loss, reward, spec.max_steps)
    kind = RatioLearner if config.fits_policy else RewardLearner
    return kind(
        model,
        choice.model,
        reward,
        spec.max_steps,
        loss=loss,
        budget=fit_budget(config),
        threads=config.threads,
        device=device,
        ranks=ranks,
    )


def _own_model(path: str, spec: EnvSpec, generator: torch.Generator) -> nn.Module:
    """Return the user's model at an import path, seeded by the run, or raise `PluginError`."""
    with torch.random.fork_rng(devices=[]):  # its layers draw from PyTorch's global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = plugins.load(path, "reward.model")(spec)
    if not isinstance(model, nn.Module):
        raise plugins.PluginError(
            f"reward model {path} is a {type(model).__name__}, expected a torch.nn.Module "
            "whose forward takes Transitions"
        )
    return model


def make_ensemble(
    own: RewardLearner,
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    generator: torch.Generator,
    device: torch.device,
    ranks: Ranks = SINGLE,
) -> Ensemble | None:
    """Return the models that choose the questions; None where `preferences.query` needs none."""
    by_models = config.preferences.query in ("disagreement", "entropy")
    if not by_models or not config.learns_from_labels:
        return None
    others = [
        make_reward_learner(spec, config, norm, generator, device, ranks)
        for _ in range(config.preferences.ensemble_size - 1)
    ]
    return Ensemble(own, others)
