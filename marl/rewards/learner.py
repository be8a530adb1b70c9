"""Fits any reward model to preferences and puts its rewards on one scale.

Axes: T time, E environments, N agents, M episodes, K sampled steps.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from marl.config import RewardConfig
from marl.descent import Descent
from marl.normalisers import ValueNorm
from marl.numerics import check_finite, masked_mean
from marl.parallel import SideBySide
from marl.plugins import PluginError
from marl.rewards.drift import DriftGuard
from marl.rewards.factored import PolicySampler
from marl.rewards.fit_budget import FitBudget
from marl.rewards.losses import (
    bradley_terry_loss,
    episode_scores,
    preference_accuracy,
    preference_logits,
    split_penalty,
)
from marl.rewards.mixers import Mixed
from marl.rewards.protocols import Batches, ImplicitReward
from marl.types import History, LabelledSegments, Rewards, Transitions

PATIENCE = 2
"""Blocks without a new lowest held-out loss after which a fit ends: one may fail by chance."""


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
    """A reward model with its optimiser, its running scale and its diagnostics."""

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
        self.q_descent = Descent(others, *settings)
        self.v_descent = Descent(of_value, *settings) if of_value else None
        self.guard = DriftGuard(config.target_rate, config.drift_tolerance)
        self.side_by_side = SideBySide(threads, device)
        self.team_scale, self.local_scale = ValueNorm().to(device), ValueNorm().to(device)
        self.num_fits = 0
        self.memory: dict[str, Tensor] | None = None
        """What a model with memory remembers of the rollouts so far; None: nothing."""

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
        if self.v_descent is not None:
            self.guard.watch(metrics["preference/loss"])
            metrics["reward/target_rate"] = self.guard.rate
        metrics["reward/gradient_steps"] = float(len(steps))
        return metrics | self._held_out(held_out or source.batch(held_out=True))

    def _descend(
        self, source: Batches, policy: PolicySampler
    ) -> tuple[list[Tensor], LabelledSegments | None]:
        """Take one block of gradient steps, and more while they help and the budget lasts.

        The target networks follow in the first block only: with the data, not with the fit.
        Return each step's metrics and, if more than one block was possible, the held-out batch.
        """
        block, max_rows = self.budget.block, self.budget.max_rows
        held_out = source.batch(held_out=True) if max_rows else None
        lowest, since = self._held_out_loss(held_out), 0
        steps: list[Tensor] = []
        num_rows = 0
        while True:
            end = len(steps) + block
            while len(steps) < end and (len(steps) < block or num_rows < max_rows):
                segments = source.batch()
                if segments is None:
                    return steps, held_out
                rate = self.guard.rate if len(steps) < block else 0.0
                steps.append(self._step(segments, policy, rate))
                num_rows += segments.step_weights.numel()
            if held_out is None or num_rows >= max_rows:
                return steps, held_out
            loss = self._held_out_loss(held_out)
            if loss <= (1.0 - self.config.held_out_fall) * lowest:
                lowest, since = loss, 0
            else:
                since += 1
            if since == PATIENCE:
                return steps, held_out

    def _step(self, segments: LabelledSegments, policy: PolicySampler, rate: float) -> Tensor:
        """Take one gradient step, move the target networks by the rate, and return metrics."""
        split = self._split(segments.transitions)
        rewards, now = split.rewards, split.now
        logits = preference_logits(rewards.team, segments, self.config, self.max_steps)
        preference_loss = bradley_terry_loss(logits, segments.labels)
        present = segments.step_weights > 0
        loss = preference_loss + self.config.regularisation * masked_mean(rewards.team**2, present)
        if self.config.split_regularisation > 0.0 and rewards.local is not None:
            local_scores = episode_scores(
                rewards.local.movedim(-1, 0),
                segments.step_weights,
                segments.lengths,
                self.config,
                self.max_steps,
            )
            loss = loss + self.config.split_regularisation * split_penalty(local_scores)
        drift = torch.zeros_like(preference_loss)
        if self.own is None or self.v_descent is None or now is None:
            self.q_descent.step(loss)
        else:
            self.side_by_side(
                partial(self.q_descent.differentiate, loss),
                partial(self._differentiate_value, self.own, self.v_descent, segments, now, policy),
            )
            self.q_descent.optimiser.step()
            self.v_descent.optimiser.step()
            drift = self.own.follow(rate)
        share = split.bias.detach().var() / rewards.team.detach().var().clamp(min=1e-12)
        ties = (segments.labels == 0.5).to(loss.dtype).mean()
        return torch.stack((preference_loss.detach(), ties, share, drift))

    @staticmethod
    def _differentiate_value(
        model: ImplicitReward,
        descent: Descent,
        segments: LabelledSegments,
        now: Mixed,
        policy: PolicySampler,
    ) -> None:
        """Leave the gradient of L_v in the parameters of V."""
        descent.differentiate(
            model.value_loss(segments.transitions, now, segments.step_weights, policy)
        )

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

    def _held_out_loss(self, segments: LabelledSegments | None) -> float:
        """Return the preference loss of a held-out batch; NaN without one."""
        return self._held_out(segments).get("preference/held_out_loss", float("nan"))

    @torch.no_grad()
    def _held_out(self, segments: LabelledSegments | None) -> dict[str, float]:
        """Return accuracy and loss on pairs that were never trained on."""
        if segments is None:
            return {}
        team = self._split(segments.transitions).rewards.team
        logits = preference_logits(team, segments, self.config, self.max_steps)
        return {
            "preference/accuracy": float(preference_accuracy(logits, segments.labels)),
            "preference/held_out_loss": float(bradley_terry_loss(logits, segments.labels)),
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
        memory: dict[str, Tensor] | None,
    ) -> tuple[Rewards, dict[str, Tensor] | None]:
        """Return raw rewards of a rollout and what is remembered at its end; `done` ends episodes.

        A model with memory begins with `memory`: in training, with what that model, a fit ago,
        remembered at the end of the last rollout. It needs `done`.
        """
        if self.config.memory == "none" or self.own is None:
            return self._split(transitions).rewards, None
        assert done is not None, "a reward model with memory must know where episodes end"
        starts = torch.cat((torch.zeros_like(done[:1]), done[:-1]))
        history = History(starts=starts, time_axis=0, memory=memory)
        split = self._split(replace(transitions, history=history))
        parts = {"q": split.now, "v": split.then}
        remembered = {
            name: part.memory[-1].masked_fill(done[-1].view(-1, 1, 1), 0.0)
            for name, part in parts.items()
            if part is not None and part.memory is not None
        }
        return split.rewards, remembered

    def rewards(
        self,
        transitions: Transitions,
        done: Bool[Tensor, "T E"] | None = None,
        *,
        memory: dict[str, Tensor] | None = None,
    ) -> Rewards:
        """Return rewards of a rollout, divided by their deviation as it stands; to look at them.

        Nothing here changes by it. A model with memory needs `done`; it takes the first steps for
        those of new episodes, or follows on from `memory`, such as its own of the last rollout.
        """
        return self._scaled(self._raw(transitions, done, memory)[0])

    def rollout_rewards(
        self, transitions: Transitions, done: Bool[Tensor, "T E"], *, informed: bool
    ) -> tuple[Rewards | None, dict[str, float]]:
        """Return rewards of a new rollout, divided by their running deviation, and metrics.

        None while no fit was `informed`: what ties alone have taught is noise, scaled up. The
        mean is not shifted: a constant reward must stay a reason to live or to end.
        """
        known = self.is_fitted and informed
        if not known and self.config.memory == "none":
            return None, {}
        raw, self.memory = self._raw(transitions, done, self.memory)
        if not known:
            return None, {}  # read all the same, so that a model with memory follows the episodes
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
        """Return the model, the optimiser and the scales."""
        state = {
            "model": self.model.state_dict(),
            "q_descent": self.q_descent.state_dict(),
            "v_descent": None if self.v_descent is None else self.v_descent.state_dict(),
            "team_scale": self.team_scale.state_dict(),
            "local_scale": self.local_scale.state_dict(),
            "guard": self.guard.state_dict(),
            "num_fits": self.num_fits,
        }
        return state if self.memory is None else state | {"memory": self.memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner with the same settings."""
        self.model.load_state_dict(state["model"])
        self.q_descent.load_state_dict(state["q_descent"])
        if self.v_descent is not None:
            self.v_descent.load_state_dict(state["v_descent"])
        self.team_scale.load_state_dict(state["team_scale"])
        self.local_scale.load_state_dict(state["local_scale"])
        self.guard.load_state_dict(state["guard"])
        self.num_fits = state["num_fits"]
        memory = state.get("memory")
        self.memory = memory and {name: tensor.to(self.device) for name, tensor in memory.items()}


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
