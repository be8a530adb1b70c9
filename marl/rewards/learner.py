"""Fits any reward model by its loss, and puts its rewards on one scale.

Axes: T time, E environments, N agents, M episodes, K sampled steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from marl.config import RewardConfig
from marl.data.types import (
    ANY_RETURN,
    EpisodeBatch,
    FinishedEpisodes,
    History,
    KnownReturns,
    Rewards,
    Transitions,
)
from marl.nn.layers import check_finite, masked_mean
from marl.nn.normalisation import ValueNorm
from marl.nn.optimizer import Optimizer, average_gradients
from marl.rewards.base import (
    Batches,
    PolicySampler,
    TeamValue,
    ValueBasedReward,
    checked_rewards,
)
from marl.rewards.budget import MIN_BLOCK, DriftGuard, FitBudget, OverfitWarning
from marl.rewards.constant import ConstantReward
from marl.rewards.exchange import Drawn, GradientStep, draw, merged_metrics, metrics_of_steps
from marl.rewards.losses import PreferenceLoss, RewardLoss, episode_scores, split_penalty
from marl.rewards.ratio import PolicyRatio
from marl.rewards.sequence import SequenceReward
from marl.utils.devices import TwoThreads
from marl.utils.plugins import PluginError
from marl.utils.ranks import SINGLE, Ranks, mean_over_ranks

FAILED_BLOCKS = 2
"""Blocks without a new lowest held-out loss after which a fit ends: one may fail by chance."""


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
        self.budget = budget or FitBudget(block=config.gradient_steps or MIN_BLOCK)
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
        self.overfit = OverfitWarning()
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
        `RewardConfig.gradient_steps` says how many steps there are. Of several processes, each
        draws a batch; the losses are means over all of them, and one without a batch takes the
        same steps.
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
        metrics = metrics_of_steps(self.ranks, steps)
        if self.v_optimizer is not None:
            self.guard.update(float(loss), tells=self.ranks.rank == 0)
            metrics["reward/target_rate"] = self.guard.rate
        metrics["reward/gradient_steps"] = float(len(steps))
        held_out = held_out or draw(self.ranks, source, held_out=True)
        metrics |= self._held_out_metrics(held_out.batch) if held_out.exists else {}
        own, other = metrics.get("preference/loss"), metrics.get("preference/held_out_loss")
        if own is not None and other is not None:
            self.overfit.update(own, other, tells=self.ranks.rank == 0)
        return metrics

    def _held_out_metrics(self, batch: EpisodeBatch | None) -> dict[str, float]:
        """Return the metrics of all processes' held-out batches."""
        if batch is None:
            return merged_metrics(self.ranks, {}, 0, 0)
        metrics = self._evaluate(batch)[1]
        return merged_metrics(self.ranks, metrics, len(batch.labels), len(batch.lengths))

    def _descend(
        self, optimizer: Optimizer, source: Batches, policy: PolicySampler
    ) -> tuple[list[GradientStep], Drawn | None]:
        """Take one block of gradient steps, and more while they help and the budget lasts.

        The target networks follow in the first block only: with the data, not with the fit.
        Return each step's metrics and, if more than one block was possible, the held-out batch.
        """
        block, max_rows = self.budget.block, self.budget.max_rows
        held_out = draw(self.ranks, source, held_out=True) if max_rows else None
        if held_out is not None and not held_out.exists:
            held_out = None
        lowest = math.nan if held_out is None else self._held_out_loss(held_out.batch)
        failed = 0
        steps: list[GradientStep] = []
        num_rows = 0
        while True:
            end = len(steps) + block
            while len(steps) < end and (len(steps) < block or num_rows < max_rows):
                drawn = draw(self.ranks, source)
                if not drawn.exists:
                    return steps, held_out
                rate = self.guard.rate if len(steps) < block else 0.0
                steps.append(self._step(optimizer, drawn.batch, policy, rate))
                num_rows += drawn.rows
            if held_out is None or num_rows >= max_rows:
                return steps, held_out
            loss = self._held_out_loss(held_out.batch)
            if loss <= (1.0 - self.config.held_out_fall) * lowest:
                lowest, failed = loss, 0
            else:
                failed += 1
            if failed == FAILED_BLOCKS:
                return steps, held_out

    def _step(
        self, optimizer: Optimizer, batch: EpisodeBatch | None, policy: PolicySampler, rate: float
    ) -> GradientStep:
        """Take one gradient step, move the target networks by `rate`, and return its metrics."""
        if batch is None:
            return self._step_of_others(optimizer, rate)
        steps, weights, rewards, outputs = self._read(batch)
        fit_loss, metrics = self.loss(rewards, batch)
        loss = self._with_penalties(fit_loss, rewards, batch)
        drift = torch.zeros_like(fit_loss)
        model, v_optimizer, q = self.value_based, self.v_optimizer, outputs.q
        if model is None or v_optimizer is None or q is None:
            optimizer.minimize(loss)
        else:
            value_loss = partial(model.value_loss, steps, q, weights, policy, batch.shares)
            self.two_threads.both(
                lambda: optimizer.backward(loss),
                lambda: v_optimizer.backward(value_loss()),
            )
            average_gradients(self.ranks, [optimizer, v_optimizer])
            optimizer.step(is_mean=True)
            v_optimizer.step(is_mean=True)
            drift = model.update_targets(rate)
        team = outputs.rewards.team.detach()
        share = outputs.bias.detach().var() / team.var().clamp(min=1e-12)
        metrics = metrics | {"reward/bias_share": share, "reward/value_drift": drift}
        return GradientStep(
            loss=fit_loss.detach(),
            metrics=metrics,
            num_pairs=len(batch.labels),
            num_episodes=len(batch.lengths),
        )

    def _read(
        self, batch: EpisodeBatch
    ) -> tuple[Transitions, Float[Tensor, "*L"], Rewards, ModelOutputs]:
        """Return the steps that the model reads, their weights, their rewards as the loss wants
        them, (M, K), and all outputs.

        A model that values each step by itself is spared the padding.
        """
        steps, weights, present = batch.transitions, batch.step_weights, batch.is_sampled
        if self.value_based is None or self.reads_history or bool(present.all()):
            outputs = self._outputs(steps)
            return steps, weights, outputs.rewards, outputs
        places = present.flatten().nonzero().squeeze(-1)
        steps, weights = steps.packed(places), weights.flatten()[places]
        outputs = self._outputs(steps)
        return steps, weights, outputs.rewards.unpacked(places, present.shape), outputs

    def _step_of_others(self, optimizer: Optimizer, rate: float) -> GradientStep:
        """Take the gradient step of the processes that have a batch."""
        optimizers = [one for one in (optimizer, self.v_optimizer) if one is not None]
        for one in optimizers:
            one.zero_grad()
        average_gradients(self.ranks, optimizers)
        for one in optimizers:
            one.step(is_mean=True)
        if self.value_based is not None and self.v_optimizer is not None:
            self.value_based.update_targets(rate)
        return GradientStep(loss=torch.zeros((), device=self.device), metrics={})

    def _with_penalties(self, loss: Tensor, rewards: Rewards, batch: EpisodeBatch) -> Tensor:
        """Return loss + lambda mean(R^2) + mu mean(sum_i (S_i - S_bar)^2).

        Sequence models have the losses of their papers, without either.
        """
        if self.sequence is not None:
            return loss
        config, shares = self.config, batch.shares
        size = masked_mean(rewards.team**2, batch.is_sampled)
        loss = loss + config.regularisation * (size if shares is None else size * shares.steps)
        local = None if rewards.are_advantages else rewards.local
        if config.split_regularisation > 0.0 and local is not None:
            by_agent = local.movedim(-1, 0)
            scores = episode_scores(
                by_agent, batch.step_weights, batch.lengths, config, self.max_steps
            )
            gap = split_penalty(scores)
            gap = gap if shares is None else gap * shares.episodes
            loss = loss + config.split_regularisation * gap
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

    def _held_out_loss(self, batch: EpisodeBatch | None) -> float:
        """Return the loss of all processes' held-out batches."""
        own = 0.0 if batch is None else self._evaluate(batch)[0]
        loss = torch.tensor(own, dtype=torch.float64)
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
        known_returns: KnownReturns = ANY_RETURN,
    ) -> tuple[Rewards, dict[str, Tensor] | None]:
        """Return raw rewards of a rollout and the hidden state after it; `done` ends episodes.

        A recurrent model begins with `hidden`: in training, with its own hidden state, a fit ago,
        after the last rollout. It needs `done`. A sequence model keeps the steps themselves.
        """
        if self.sequence is not None:
            assert done is not None, "a sequence model must know where episodes end"
            return self.sequence.read_rollout(transitions, done, hidden, episodes, known_returns)
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
        known_returns: KnownReturns = ANY_RETURN,
    ) -> tuple[Rewards | None, dict[str, float]]:
        """Return rewards of a new rollout, divided by their running deviation, and metrics.

        None while no fit was `informed`: what ties alone have taught is noise, scaled up. A model
        from another run (`inherit`) is paid in any case. The mean is not shifted: where episodes
        can end early, its sign matters. `episodes` are those that ended in the rollout; their
        returns matter to models that pay them, as does what is known of returns.
        """
        known = self.is_inherited or (self.is_fitted and informed)
        if isinstance(self.model, ConstantReward):
            assert episodes is not None, "a constant reward pays the returns of episodes"
            self.model.update(torch.cat(self.ranks.gather(episodes.returns)).to(self.device))
            raw = self.model.rollout_rewards(transitions, done, episodes)
        elif known and self.config.value_as_critic and self.value_based is not None:
            raw = self.value_based.advantages(transitions)  # a model of single steps, by its checks
        elif known or self.reads_history:
            # It reads every rollout, so that what it keeps follows the episodes.
            read = transitions, done, self.hidden, episodes, known_returns
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
            "overfit": self.overfit.state_dict(),
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
        self.overfit.load_state_dict(state["overfit"])
        self.num_fits = state["num_fits"]
        self.is_inherited = state.get("inherited", False)
        hidden = state.get("hidden")
        self.hidden = hidden and {name: tensor.to(self.device) for name, tensor in hidden.items()}
