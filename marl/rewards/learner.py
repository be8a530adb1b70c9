"""Fits any reward model by its loss, and puts its rewards on one scale.

Axes: T time, E environments, N agents, M episodes, K sampled steps.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from marl.config import Config, RewardConfig
from marl.data.types import EpisodeBatch, FinishedEpisodes, History, Rewards, Transitions
from marl.nn.layers import check_finite, masked_mean
from marl.nn.normalisation import ValueNorm
from marl.nn.optimizer import Optimizer
from marl.rewards.base import Batches, PolicySampler, TeamValue, ValueBasedReward
from marl.rewards.constant import ConstantReward
from marl.rewards.losses import PreferenceLoss, RewardLoss, episode_scores, split_penalty
from marl.rewards.ratio import PolicyRatio
from marl.rewards.sequence import SequenceReward
from marl.utils.devices import TwoThreads
from marl.utils.plugins import PluginError
from marl.utils.ranks import SINGLE, Ranks, mean_over_ranks

AVERAGED_FITS = 20
"""Fits over which the drift guard averages the loss."""

PATIENCE = 2
"""Blocks without a new lowest held-out loss after which a fit ends: one may fail by chance."""


@dataclass(frozen=True, kw_only=True)
class FitBudget:
    """Budget of a fit, in counts rather than seconds, so that a run can be repeated exactly."""

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


class DriftGuard:
    """Slows the target networks of V down when the loss of the rewards rises.

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
        """Take the mean loss of one fit into account."""
        self.fits += 1
        seen = min(self.fits, AVERAGED_FITS)
        self.average = loss if seen == 1 else self.average + (loss - self.average) / seen
        if seen < AVERAGED_FITS:
            return
        self.lowest = min(self.lowest, self.average)
        if self.tolerance > 0.0 and self.average > self.lowest + self.tolerance:
            self.rate /= 2.0
            warnings.warn(
                f"the reward's loss rose from {self.lowest:.2f} to {self.average:.2f}; "
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


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """Rewards and, of a value-based model, what they are made of."""

    rewards: Rewards
    bias: Tensor
    """The bias part of the team's reward; zero for other models."""
    q: TeamValue | None = None
    """Q at s. None: the model is not value-based."""
    next_v: TeamValue | None = None
    """gamma_R V at s'. None: there is no V."""
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    """Of each recurrent network, by its name in `History.hidden`, the state after each step."""


@dataclass(frozen=True, kw_only=True)
class GradientStep:
    """Metrics of one gradient step."""

    loss: Tensor
    """That of the `RewardLoss`, without penalties."""
    metrics: dict[str, Tensor]


class RewardLearner:
    """A reward model with its loss, its optimizers, its running scale and its diagnostics."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        config: RewardConfig,
        max_steps: int,
        *,
        loss: RewardLoss | None = None,
        budget: FitBudget | None = None,
        threads: int,
        device: torch.device,
        ranks: Ranks = SINGLE,
    ) -> None:
        """Without a `loss` it is `PreferenceLoss`; without a `budget` every fit takes
        ``config.gradient_steps``. Errors call the model `name`."""
        self.model = model.to(device)
        self.ranks = ranks
        ranks.broadcast_(self.model)
        self.device = device
        self.name = name
        self.config = config
        self.value_based = model if isinstance(model, ValueBasedReward) else None
        self.sequence = model if isinstance(model, SequenceReward) else None
        self.max_steps = max_steps
        self.loss = loss or PreferenceLoss(config, max_steps)
        self.budget = budget or FitBudget(block=config.gradient_steps)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.is_constant = isinstance(model, ConstantReward)
        if not self.parameters and not self.is_constant:
            raise PluginError(
                f"reward model {name} has no parameters to fit; give it at least one "
                "torch.nn.Parameter or layer"
            )
        of_value = [] if self.value_based is None else self.value_based.value_parameters()
        others = [p for p in self.parameters if all(p is not v for v in of_value)]
        make = partial(
            Optimizer,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            ranks=ranks,
        )
        self.q_optimizer = make(others) if others else None
        self.v_optimizer = make(of_value) if of_value else None
        self.guard = DriftGuard(config.target_rate, config.drift_tolerance)
        self.two_threads = TwoThreads(threads if ranks.size == 1 else 1, device)
        self.team_scale, self.local_scale = ValueNorm().to(device), ValueNorm().to(device)
        self.num_fits = 0
        self.is_inherited = False
        """Whether it started from a model that had learned before, and is paid from the start."""
        self.hidden: dict[str, Tensor] | None = None
        """What a model that reads episodes keeps of those that go on; None: nothing."""

    @property
    def reads_history(self) -> bool:
        """Whether the model reads episodes, and so must know which steps follow which."""
        if self.sequence is not None:
            return True
        if isinstance(self.model, PolicyRatio):
            return self.model.is_recurrent
        return self.config.recurrence != "none" and self.value_based is not None

    @property
    def is_fitted(self) -> bool:
        """Whether there was anything to fit to; before that the rewards are noise."""
        return self.num_fits > 0 or self.is_constant or self.is_inherited

    def inherit(
        self, model: dict[str, Any], team_scale: dict[str, Any], local_scale: dict[str, Any]
    ) -> None:
        """Start from the states of a model that has learned before, and of its scales."""
        self.model.load_state_dict(model)
        self.team_scale.load_state_dict(team_scale)
        self.local_scale.load_state_dict(local_scale)
        self.is_inherited = True

    def fit(self, source: Batches, policy: PolicySampler) -> dict[str, float]:
        """Take gradient steps on batches and return metrics.

            L_q = L(R) + lambda mean(R^2) + mu mean(sum_i (S_i - S_bar)^2)   -> q, mixer
            L_v = extreme V (or its options) of w_i v_i on w_i q_i           -> v

        L is the `RewardLoss`, such as BCE(S(tau_1) - S(tau_2), y). The gradients of L_q and L_v
        reach disjoint parameters, so they are found side by side and clipped apart.
        `RewardConfig.gradient_steps` says how many steps there are.
        """
        if self.q_optimizer is None:
            return {"reward/gradient_steps": 0.0}
        steps, held_out = self._descend(self.q_optimizer, source, policy)
        self.num_fits += len(steps)
        if not steps:
            return {"reward/gradient_steps": 0.0}
        loss = torch.stack([step.loss for step in steps]).mean()
        loss = mean_over_ranks(self.ranks, loss, "reward loss")
        check_finite(self.ranks, reward_loss=loss)
        means = torch.stack([torch.stack([*step.metrics.values()]) for step in steps]).mean(dim=0)
        metrics = dict(zip(steps[0].metrics, means.tolist(), strict=True))
        if self.v_optimizer is not None:
            self.guard.update(float(loss))
            metrics["reward/target_rate"] = self.guard.rate
        metrics["reward/gradient_steps"] = float(len(steps))
        held_out = held_out or source.batch(held_out=True)
        return metrics | ({} if held_out is None else self._evaluate(held_out)[1])

    def _descend(
        self, optimizer: Optimizer, source: Batches, policy: PolicySampler
    ) -> tuple[list[GradientStep], EpisodeBatch | None]:
        """Take one block of gradient steps, and more while they help and the budget lasts.

        The target networks follow in the first block only: with the data, not with the fit.
        Return each step's metrics and, if more than one block was possible, the held-out batch.
        """
        block, max_rows, ranks = self.budget.block, self.budget.max_rows, self.ranks
        held_out = source.batch(held_out=True) if max_rows else None
        held_out = None if ranks.any(held_out is None) else held_out
        lowest = math.nan if held_out is None else self._held_out_loss(held_out)
        failed = 0
        steps: list[GradientStep] = []
        num_rows, is_over = 0, False
        while True:
            end = len(steps) + block
            while len(steps) < end and (len(steps) < block or not is_over):
                batch = source.batch()
                if ranks.any(batch is None) or batch is None:
                    return steps, held_out
                rate = self.guard.rate if len(steps) < block else 0.0
                steps.append(self._step(optimizer, batch, policy, rate))
                num_rows += batch.step_weights.numel()
                is_over = ranks.any(num_rows >= max_rows)
            if held_out is None or is_over:
                return steps, held_out
            loss = self._held_out_loss(held_out)
            if loss <= (1.0 - self.config.held_out_fall) * lowest:
                lowest, failed = loss, 0
            else:
                failed += 1
            if failed == PATIENCE:
                return steps, held_out

    def _step(
        self, optimizer: Optimizer, batch: EpisodeBatch, policy: PolicySampler, rate: float
    ) -> GradientStep:
        """Take one gradient step, move the target networks by `rate`, and return its metrics."""
        outputs = self._outputs(batch.transitions)
        fit_loss, metrics = self.loss(outputs.rewards, batch)
        loss = self._with_penalties(fit_loss, outputs.rewards, batch)
        drift = torch.zeros_like(fit_loss)
        model, v_optimizer, q = self.value_based, self.v_optimizer, outputs.q
        if model is None or v_optimizer is None or q is None:
            optimizer.minimize(loss)
        else:
            value_loss = partial(model.value_loss, batch.transitions, q, batch.step_weights, policy)
            self.two_threads.both(
                lambda: optimizer.backward(loss),
                lambda: v_optimizer.backward(value_loss()),
            )
            optimizer.step()
            v_optimizer.step()
            drift = model.update_targets(rate)
        team = outputs.rewards.team.detach()
        share = outputs.bias.detach().var() / team.var().clamp(min=1e-12)
        metrics = metrics | {"reward/bias_share": share, "reward/value_drift": drift}
        return GradientStep(loss=fit_loss.detach(), metrics=metrics)

    def _with_penalties(self, loss: Tensor, rewards: Rewards, batch: EpisodeBatch) -> Tensor:
        """Return loss + lambda mean(R^2) + mu mean(sum_i (S_i - S_bar)^2).

        Sequence models have the losses of their papers, without either.
        """
        if self.sequence is not None:
            return loss
        config = self.config
        loss = loss + config.regularisation * masked_mean(rewards.team**2, batch.is_sampled)
        if config.split_regularisation > 0.0 and rewards.local is not None:
            by_agent = rewards.local.movedim(-1, 0)
            scores = episode_scores(
                by_agent, batch.step_weights, batch.lengths, config, self.max_steps
            )
            loss = loss + config.split_regularisation * split_penalty(scores)
        return loss

    def _outputs(self, transitions: Transitions) -> ModelOutputs:
        """Return checked rewards and, of a value-based model, what they are made of."""
        model = self.value_based
        if isinstance(self.model, PolicyRatio):
            rewards, hidden = self.model.with_hidden(transitions)
            return ModelOutputs(rewards=rewards, bias=torch.zeros_like(rewards.team), hidden=hidden)
        if model is None:
            rewards = checked_rewards(self.model(transitions), self.name, transitions)
            return ModelOutputs(rewards=rewards, bias=torch.zeros_like(rewards.team))
        q, next_v = self.two_threads.both(
            partial(model.q_tot, transitions), partial(model.next_v_tot, transitions)
        )
        rewards, bias = model.rewards(transitions, q, next_v)
        values = {"q": q, "v": next_v}
        hidden = {
            name: value.hidden
            for name, value in values.items()
            if value is not None and value.hidden is not None
        }
        return ModelOutputs(rewards=rewards, bias=bias, q=q, next_v=next_v, hidden=hidden)

    def _held_out_loss(self, batch: EpisodeBatch) -> float:
        """Return the loss of all processes' held-out batches."""
        loss = torch.tensor(self._evaluate(batch)[0], dtype=torch.float64)
        return float(mean_over_ranks(self.ranks, loss, "held-out loss"))

    @torch.no_grad()
    def _evaluate(self, batch: EpisodeBatch) -> tuple[float, dict[str, float]]:
        """Return the loss and the metrics of a batch that is never trained on."""
        rewards = self._outputs(batch.transitions).rewards
        return float(self.loss(rewards, batch)[0]), self.loss.evaluate(rewards, batch)

    @torch.no_grad()
    def scores(
        self,
        transitions: Transitions,
        step_weights: Float[Tensor, "M K"],
        lengths: Int64[Tensor, "M"],
    ) -> Float[Tensor, "M"]:
        """Return each episode's score S, estimated from its sampled steps."""
        team = self._outputs(transitions).rewards.team
        return episode_scores(team, step_weights, lengths, self.config, self.max_steps)

    @torch.no_grad()
    def _raw(
        self,
        transitions: Transitions,
        done: Bool[Tensor, "T E"] | None,
        hidden: dict[str, Tensor] | None,
        episodes: FinishedEpisodes | None = None,
        return_scale: float = 1.0,
    ) -> tuple[Rewards, dict[str, Tensor] | None]:
        """Return raw rewards of a rollout and the hidden state after it; `done` ends episodes.

        A recurrent model begins with `hidden`: in training, with its own hidden state, a fit ago,
        after the last rollout. It needs `done`. A sequence model keeps the steps themselves.
        """
        if self.sequence is not None:
            assert done is not None, "a sequence model must know where episodes end"
            return self.sequence.read_rollout(transitions, done, hidden, episodes, return_scale)
        if not self.reads_history:
            return self._outputs(transitions).rewards, None
        assert done is not None, "a recurrent reward model must know where episodes end"
        starts = torch.cat((torch.zeros_like(done[:1]), done[:-1]))
        history = History(starts=starts, time_axis=0, hidden=hidden)
        outputs = self._outputs(replace(transitions, history=history))
        next_hidden = {
            name: states[-1].masked_fill(done[-1].view(-1, 1, 1), 0.0)
            for name, states in outputs.hidden.items()
        }
        return outputs.rewards, next_hidden

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
        self,
        transitions: Transitions,
        done: Bool[Tensor, "T E"],
        *,
        informed: bool,
        episodes: FinishedEpisodes | None = None,
        return_scale: float = 1.0,
    ) -> tuple[Rewards | None, dict[str, float]]:
        """Return rewards of a new rollout, divided by their running deviation, and metrics.

        None while no fit was `informed`: what ties alone have taught is noise, scaled up. A model
        from another run (`inherit`) is paid in any case. The mean is not shifted: where episodes
        can end early, its sign matters. `episodes` are those that ended in the rollout; their
        returns matter to models that pay them, in units of their deviation `return_scale`.
        """
        known = self.is_inherited or (self.is_fitted and informed)
        if isinstance(self.model, ConstantReward):
            assert episodes is not None, "a constant reward pays the returns of episodes"
            self.model.update(torch.cat(self.ranks.gather(episodes.returns)))
            raw = self.model.rollout_rewards(transitions, done, episodes)
        elif known or self.reads_history:
            # It reads every rollout, so that what it keeps follows the episodes.
            read = transitions, done, self.hidden, episodes, return_scale
            raw, self.hidden = self._raw(*read)
        if not known:
            return None, {}
        check_finite(self.ranks, learned_reward=raw.team)
        self.team_scale.update(raw.team, None, self.ranks)
        if raw.local is not None:
            check_finite(self.ranks, learned_local_rewards=raw.local)
            self.local_scale.update(raw.local, transitions.alive, self.ranks)
        metrics = {
            "reward/std": float(raw.team.std()),
            "reward/mean": float(raw.team.mean()),
        }
        return self._scaled(raw), metrics

    def _scaled(self, raw: Rewards) -> Rewards:
        local = None if raw.local is None else raw.local / self.local_scale.std
        return replace(raw, team=raw.team / self.team_scale.std, local=local)

    def state_dict(self) -> dict[str, Any]:
        """Return the model, the optimizer and the scales."""
        state = {
            "model": self.model.state_dict(),
            "q_optimizer": self.q_optimizer and self.q_optimizer.state_dict(),
            "v_optimizer": self.v_optimizer and self.v_optimizer.state_dict(),
            "team_scale": self.team_scale.state_dict(),
            "local_scale": self.local_scale.state_dict(),
            "guard": self.guard.state_dict(),
            "num_fits": self.num_fits,
        }
        state |= {"inherited": True} if self.is_inherited else {}
        return state if self.hidden is None else state | {"hidden": self.hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner with the same settings."""
        self.model.load_state_dict(state["model"])
        if self.q_optimizer is not None:
            self.q_optimizer.load_state_dict(state["q_optimizer"])
        if self.v_optimizer is not None:
            self.v_optimizer.load_state_dict(state["v_optimizer"])
        self.team_scale.load_state_dict(state["team_scale"])
        self.local_scale.load_state_dict(state["local_scale"])
        self.guard.load_state_dict(state["guard"])
        self.num_fits = state["num_fits"]
        self.is_inherited = state.get("inherited", False)
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
