"""Fits any reward model to preferences and puts its rewards on one scale.

Axes: T time, E environments, N agents, M episodes, K sampled steps.
"""

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from marl.config import Config, RewardConfig
from marl.data.types import EpisodeBatch, History, Rewards, Transitions
from marl.learners.optimizer import Optimizer, SideBySide
from marl.nn.layers import check_finite, masked_mean
from marl.nn.normalisation import ValueNorm
from marl.rewards.base import Batches, ImplicitReward
from marl.rewards.factored import Mixed, PolicySampler
from marl.rewards.losses import (
    bradley_terry_loss,
    episode_scores,
    preference_accuracy,
    preference_logits,
    split_penalty,
)
from marl.utils.plugins import PluginError

# The guard against a value that runs away.


AVERAGED_FITS = 20
"""Fits over which the preference loss is averaged."""


class DriftGuard:
    """Slows the target networks of V down when the preference loss rises.

    With gamma_R near 1, V and Q can chase each other: the reward's scale grows, preferences that
    were once learned are lost again, and the loss that had fallen rises. When its running average
    stands `tolerance` nats above the lowest so far, the Polyak rate is halved and the
    measurement begins anew. The first fits only fill the average. A tolerance of 0 switches the
    guard off.
    """

    def __init__(self, rate: float, tolerance: float) -> None:
        self.rate = rate
        self.tolerance = tolerance
        self.fits = 0
        self.average = math.nan
        self.lowest = math.inf

    def update(self, loss: float) -> None:
        """Take one fit's mean preference loss into account."""
        self.fits += 1
        seen = min(self.fits, AVERAGED_FITS)
        self.average = loss if seen == 1 else self.average + (loss - self.average) / seen
        if seen < AVERAGED_FITS:
            return
        self.lowest = min(self.lowest, self.average)
        if self.tolerance > 0.0 and self.average > self.lowest + self.tolerance:
            self.rate /= 2.0
            warnings.warn(
                f"the preference loss rose from {self.lowest:.2f} to {self.average:.2f}; "
                f"reward.target_rate is halved to {self.rate:g} from here on. "
                "If it keeps rising, lower reward.gamma",
                stacklevel=2,
            )
            self.lowest = self.average

    def state_dict(self) -> dict[str, Any]:
        """Return the rate and what was seen."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        vars(self).update(state)


# How much work one fit of the reward may take.


@dataclass(frozen=True, kw_only=True)
class FitBudget:
    """What an iteration grants a fit: counts, so that a run can be repeated exactly."""

    block: int
    """Gradient steps that are taken in any case, and in every further block."""
    max_rows: int = 0
    """Rows passed through the networks at which a fit takes no further step; 0: one block only."""


def fit_budget(config: Config) -> FitBudget:
    """Return the budget of every fit of a run.

    A constant ``reward.gradient_steps`` is one block. Otherwise the first block follows the data,
    and the fit may take `fit_share` of the rows that it and the policy's update pass through their
    networks, whose share is 1 - `fit_share`.
    """
    reward = config.reward
    if reward.gradient_steps:
        return FitBudget(block=reward.gradient_steps)
    policy_rows = config.batch_steps * config.learner.epochs
    return FitBudget(
        block=-(-config.batch_steps // reward.env_steps_per_gradient_step),
        max_rows=int(policy_rows * reward.fit_share / (1.0 - reward.fit_share)),
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rewards and what they are made of."""

    rewards: Rewards
    bias: Tensor
    """The bias part of the team's reward; zero for a model that is not ours."""
    now: Mixed | None = None
    """Q at s. None: the model is not ours."""
    then: Mixed | None = None
    """gamma V at s'. None: there is no V."""


class RewardLearner:
    """A reward model with its optimizer, its running scale and its diagnostics."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        config: RewardConfig,
        max_steps: int,
        *,
        budget: FitBudget | None = None,
        threads: int,
        device: torch.device,
    ) -> None:
        """Without a `budget` every fit takes ``config.gradient_steps``."""
        self.model = model.to(device)
        self.device = device
        self.name = name
        self.config = config
        self.own = model if isinstance(model, ImplicitReward) else None
        self.max_steps = max_steps
        self.budget = budget or FitBudget(block=config.gradient_steps)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise PluginError(
                f"reward model {name} has no parameters to fit; give it at least one "
                "torch.nn.Parameter or layer"
            )
        of_value = [] if self.own is None else self.own.value_parameters()
        others = [p for p in self.parameters if all(p is not v for v in of_value)]
        settings = config.learning_rate, config.max_grad_norm
        self.q_optimizer = Optimizer(others, *settings)
        self.v_optimizer = Optimizer(of_value, *settings) if of_value else None
        self.guard = DriftGuard(config.target_rate, config.drift_tolerance)
        self.side_by_side = SideBySide(threads, device)
        self.team_scale, self.local_scale = ValueNorm().to(device), ValueNorm().to(device)
        self.num_fits = 0
        self.hidden: dict[str, Tensor] | None = None
        """Hidden state of a recurrent model after the last rollout; None: zero."""

    @property
    def is_fitted(self) -> bool:
        """Whether any preference has been seen; before that the rewards are noise."""
        return self.num_fits > 0

    def fit(self, source: Batches, policy: PolicySampler) -> dict[str, float]:
        """Take gradient steps on labelled batches and return metrics.

            L_q = BCE(S(tau_1) - S(tau_2), y) + lambda mean(R^2)
                  + mu mean(sum_i (S_i - S_bar)^2)                      -> q, mixer
            L_v = extreme V (or its options) of w_i v_i on w_i q_i      -> v

        The gradients of the two losses reach disjoint parameters, so they are found side by side
        and clipped apart. `RewardConfig.gradient_steps` says how many steps there are.
        """
        steps, held_out = self._descend(source, policy)
        self.num_fits += len(steps)
        if not steps:
            return {"preference/ties": float("nan"), "reward/gradient_steps": 0.0}
        names = ("preference/loss", "preference/ties", "reward/bias_share", "reward/value_drift")
        means = torch.stack(steps).mean(dim=0)
        check_finite(preference_loss=means[0])
        metrics = dict(zip(names, means.tolist(), strict=True))
        if self.v_optimizer is not None:
            self.guard.update(metrics["preference/loss"])
            metrics["reward/target_rate"] = self.guard.rate
        metrics["reward/gradient_steps"] = float(len(steps))
        return metrics | self._held_out(held_out or source.batch(held_out=True))

    def _descend(
        self, source: Batches, policy: PolicySampler
    ) -> tuple[list[Tensor], EpisodeBatch | None]:
        """Take one block of gradient steps, and more while they help and the budget lasts.

        Return each step's metrics and, if more than one block was possible, the held-out batch.
        """
        block, max_rows = self.budget.block, self.budget.max_rows
        held_out = source.batch(held_out=True) if max_rows else None
        loss = self._held_out_loss(held_out)
        steps: list[Tensor] = []
        num_rows = 0
        while True:
            end = len(steps) + block
            while len(steps) < end and (len(steps) < block or num_rows < max_rows):
                batch = source.batch()
                if batch is None:
                    return steps, held_out
                steps.append(self._step(batch, policy))
                num_rows += batch.step_weights.numel()
            if held_out is None or num_rows >= max_rows:
                return steps, held_out
            before, loss = loss, self._held_out_loss(held_out)
            if loss > (1.0 - self.config.held_out_fall) * before:
                return steps, held_out

    def _step(self, batch: EpisodeBatch, policy: PolicySampler) -> Tensor:
        split = self._split(batch.transitions)
        rewards, now = split.rewards, split.now
        logits = preference_logits(rewards.team, batch, self.config, self.max_steps)
        preference_loss = bradley_terry_loss(logits, batch.labels)
        present = batch.step_weights > 0
        loss = preference_loss + self.config.regularisation * masked_mean(rewards.team**2, present)
        if self.config.split_regularisation > 0.0 and rewards.local is not None:
            local_scores = episode_scores(
                rewards.local.movedim(-1, 0),
                batch.step_weights,
                batch.lengths,
                self.config,
                self.max_steps,
            )
            loss = loss + self.config.split_regularisation * split_penalty(local_scores)
        drift = torch.zeros_like(preference_loss)
        if self.own is None or self.v_optimizer is None or now is None:
            self.q_optimizer.minimize(loss)
        else:
            self.side_by_side(
                partial(self.q_optimizer.backward, loss),
                partial(self._backward_value, self.own, self.v_optimizer, batch, now, policy),
            )
            self.q_optimizer.step()
            self.v_optimizer.step()
            drift = self.own.update_targets(self.guard.rate)
        share = split.bias.detach().var() / rewards.team.detach().var().clamp(min=1e-12)
        ties = (batch.labels == 0.5).to(loss.dtype).mean()
        return torch.stack((preference_loss.detach(), ties, share, drift))

    @staticmethod
    def _backward_value(
        model: ImplicitReward,
        optimizer: Optimizer,
        batch: EpisodeBatch,
        now: Mixed,
        policy: PolicySampler,
    ) -> None:
        """Set the gradient of the parameters of V to that of L_v."""
        optimizer.backward(model.value_loss(batch.transitions, now, batch.step_weights, policy))

    def _split(self, transitions: Transitions) -> Split:
        """Return checked rewards and, for our own models, what they are made of."""
        if self.own is None:
            rewards = checked_rewards(self.model(transitions), self.name, transitions)
            return Split(rewards=rewards, bias=torch.zeros_like(rewards.team))
        now, then = self.side_by_side(
            partial(self.own.now, transitions),
            partial(self.own.then, transitions),
        )
        rewards, bias = self.own.rewards(transitions, now, then)
        return Split(rewards=rewards, bias=bias, now=now, then=then)

    def _held_out_loss(self, batch: EpisodeBatch | None) -> float:
        """Return the preference loss of a held-out batch; NaN without one."""
        return self._held_out(batch).get("preference/held_out_loss", float("nan"))

    @torch.no_grad()
    def _held_out(self, batch: EpisodeBatch | None) -> dict[str, float]:
        """Return accuracy and loss on pairs that were never trained on."""
        if batch is None:
            return {}
        team = self._split(batch.transitions).rewards.team
        logits = preference_logits(team, batch, self.config, self.max_steps)
        return {
            "preference/accuracy": float(preference_accuracy(logits, batch.labels)),
            "preference/held_out_loss": float(bradley_terry_loss(logits, batch.labels)),
        }

    @torch.no_grad()
    def scores(
        self,
        transitions: Transitions,
        step_weights: Float[Tensor, "M K"],
        lengths: Int64[Tensor, "M"],
    ) -> Float[Tensor, "M"]:
        """Return each episode's score S, estimated from its sampled steps."""
        team = self._split(transitions).rewards.team
        return episode_scores(team, step_weights, lengths, self.config, self.max_steps)

    @torch.no_grad()
    def _raw(
        self,
        transitions: Transitions,
        done: Bool[Tensor, "T E"] | None,
        hidden: dict[str, Tensor] | None,
    ) -> tuple[Rewards, dict[str, Tensor] | None]:
        """Return raw rewards of a rollout and the hidden state after it; `done` ends episodes.

        A recurrent model begins with `hidden`: in training, with its own hidden state, a fit ago,
        after the last rollout. It needs `done`.
        """
        if self.config.recurrence == "none" or self.own is None:
            return self._split(transitions).rewards, None
        assert done is not None, "a recurrent reward model must know where episodes end"
        starts = torch.cat((torch.zeros_like(done[:1]), done[:-1]))
        history = History(starts=starts, time_axis=0, hidden=hidden)
        split = self._split(replace(transitions, history=history))
        parts = {"q": split.now, "v": split.then}
        next_hidden = {
            name: part.hidden[-1].masked_fill(done[-1].view(-1, 1, 1), 0.0)
            for name, part in parts.items()
            if part is not None and part.hidden is not None
        }
        return split.rewards, next_hidden

    def rewards(
        self,
        transitions: Transitions,
        done: Bool[Tensor, "T E"] | None = None,
        *,
        hidden: dict[str, Tensor] | None = None,
    ) -> Rewards:
        """Return rewards of a rollout, divided by their deviation as it stands; to look at them.

        Nothing here changes by it. A recurrent model needs `done`; it takes the first steps for
        those of new episodes, or follows on from `hidden`, such as its own after the last rollout.
        """
        return self._scaled(self._raw(transitions, done, hidden)[0])

    def rollout_rewards(
        self, transitions: Transitions, done: Bool[Tensor, "T E"], *, informed: bool
    ) -> tuple[Rewards | None, dict[str, float]]:
        """Return rewards of a new rollout, divided by their running deviation, and metrics.

        None while no fit was `informed`: what ties alone have taught is noise, scaled up. The
        mean is not shifted: a constant reward must stay a reason to live or to end.
        """
        known = self.is_fitted and informed
        if not known and self.config.recurrence == "none":
            return None, {}
        raw, self.hidden = self._raw(transitions, done, self.hidden)
        if not known:
            return None, {}  # read all the same: a recurrent model follows the episodes
        check_finite(learned_reward=raw.team)
        self.team_scale.update(raw.team)
        if raw.local is not None:
            check_finite(learned_local_rewards=raw.local)
            self.local_scale.update(raw.local, transitions.alive)
        metrics = {
            "reward/std": float(raw.team.std()),
            "reward/mean": float(raw.team.mean()),
        }
        return self._scaled(raw), metrics

    def _scaled(self, raw: Rewards) -> Rewards:
        local = None if raw.local is None else raw.local / self.local_scale.std
        return Rewards(team=raw.team / self.team_scale.std, local=local)

    def state_dict(self) -> dict[str, Any]:
        """Return the model, the optimizer and the scales."""
        state = {
            "model": self.model.state_dict(),
            "q_optimizer": self.q_optimizer.state_dict(),
            "v_optimizer": None if self.v_optimizer is None else self.v_optimizer.state_dict(),
            "team_scale": self.team_scale.state_dict(),
            "local_scale": self.local_scale.state_dict(),
            "guard": self.guard.state_dict(),
            "num_fits": self.num_fits,
        }
        return state if self.hidden is None else state | {"hidden": self.hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner with the same settings."""
        self.model.load_state_dict(state["model"])
        self.q_optimizer.load_state_dict(state["q_optimizer"])
        if self.v_optimizer is not None:
            self.v_optimizer.load_state_dict(state["v_optimizer"])
        self.team_scale.load_state_dict(state["team_scale"])
        self.local_scale.load_state_dict(state["local_scale"])
        self.guard.load_state_dict(state["guard"])
        self.num_fits = state["num_fits"]
        hidden = state.get("hidden")
        self.hidden = hidden and {name: tensor.to(self.device) for name, tensor in hidden.items()}


def checked_rewards(returned: object, name: str, transitions: Transitions) -> Rewards:
    """Return what a plugged-in model gave as `Rewards`, or raise `PluginError`.

    A bare tensor counts as the team's reward.
    """
    lead = tuple(transitions.terminated.shape)
    rewards = Rewards(team=returned) if isinstance(returned, Tensor) else returned
    if not isinstance(rewards, Rewards):
        raise PluginError(
            f"reward model {name} returned {type(returned).__name__}, expected marl.Rewards or "
            f"a tensor of shape {lead}"
        )
    agents = transitions.obs.shape[-2]
    for part, tensor, shape in (
        ("team", rewards.team, lead),
        ("local", rewards.local, (*lead, agents)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise PluginError(
                f"reward model {name} returned {part} rewards of shape {tuple(tensor.shape)}, "
                f"expected {shape}"
            )
        if not tensor.is_floating_point():
            raise PluginError(
                f"reward model {name} returned {part} rewards of dtype {tensor.dtype}, "
                "expected a floating dtype"
            )
    return rewards
