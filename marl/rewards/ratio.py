"""Two policies as a reward model: their log-ratio, which splits exactly among the agents.

Of the policies that a preference loss can fit, the soft-optimal one for a reward R and a reference
pi_ref is pi proportional to pi_ref exp(A / beta), so that beta log(pi / pi_ref) is the advantage A
of R. Fitted by the loss of preferences this is direct preference optimisation (arXiv 2305.18290),
on segments of steps contrastive preference learning (arXiv 2310.13639). A team's policy is the
product of its agents', so here the logarithm splits into one part per agent.

Axes: E environments, N agents, O observation features, A actions, H hidden units; ``*L`` any
leading axes: (T, E) of a rollout or (M, K) of a batch.
"""

import copy
import math
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, NetworkConfig, RewardConfig
from marl.data.types import Rewards, Transitions
from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.learners.distributions import Categorical, CompositeLayout, Distribution, Gaussian
from marl.nn.gru import RecurrentBody
from marl.nn.normalisation import TeamNorm
from marl.policy import Policy
from marl.rewards.base import RewardModel, check_episode_length

P = TypeVar("P", bound="Density")

NetworkActor = CategoricalActor | GaussianActor

UNIFORM_LOG_STD = -0.5 * math.log(3.0)
"""Logarithm of the standard deviation of a uniform distribution on [-1, 1]."""


@runtime_checkable
class Density(Protocol):
    """What a `PolicyRatio` asks of a policy: an `Actor`, or one that only has probabilities."""

    def log_prob(self, obs: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the (*L, N) log-probabilities of actions at single steps."""
        ...


class UniformPolicy(nn.Module):
    """Every legal action alike.

    Numbers are those of the Gaussian with mean 0 and the deviation of uniform ones in [-1, 1]:
    among Gaussians of one deviation, the ratio to it is 0 where nothing is preferred.
    """

    present: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.is_discrete = spec.action_kind == "discrete"
        self.layout = CompositeLayout(spec) if spec.action_kind == "composite" else None
        sizes = torch.tensor(spec.action_sizes)
        present = torch.arange(spec.action_size) < sizes[:, None]
        self.register_buffer("present", present, persistent=False)

    def log_prob(
        self,
        obs: Num[Tensor, "*L N O"],
        actions: Tensor,
        mask: Bool[Tensor, "*L N A"] | None = None,
    ) -> Float[Tensor, "*L N"]:
        """Return -log(number of legal actions); of continuous ones see `log_probs`."""
        if not self.is_discrete:
            zero = torch.zeros_like(actions)
            log_std = torch.full_like(zero[(0,) * (zero.ndim - 2)], UNIFORM_LOG_STD)
            if self.layout is not None:
                uniform = self.layout.distribution(zero, log_std, mask)
                return uniform.executed_log_prob(actions)
            return Gaussian(zero, log_std, self.present).executed_log_prob(actions)
        legal = self.present if mask is None else mask & self.present
        return -legal.sum(dim=-1).clamp(min=1).to(torch.float32).log().expand(obs.shape[:-1])


class PolicyRatio(RewardModel):
    """r_i = beta (log pi_i(a_i | o_i) - log pi_ref,i(a_i | o_i)) and R = sum_i r_i.

    The sum is over the agents that are present; an absent agent's r_i is zero. These rewards are
    advantages: the future is in them already, and a learner must not put them through GAE
    (`Rewards.are_advantages`). Gradients reach `policy` only.

    Of recurrent policies the hidden states follow `Transitions.history`, which is then needed.
    """

    def __init__(self, policy: Density, reference: Density, beta: float) -> None:
        """Both are modules, and keep the input statistics that they were trained with."""
        super().__init__()
        self.policy = policy
        self.reference = reference
        self.beta = beta

    def forward(self, transitions: Transitions) -> Rewards:
        """Return R and r_i."""
        return self.with_hidden(transitions)[0]

    def with_hidden(self, transitions: Transitions) -> tuple[Rewards, dict[str, Tensor]]:
        """Return the rewards and, by name, recurrent policies' hidden states after each step."""
        mine, hidden = log_probs(self.policy, transitions, "policy")
        with torch.no_grad():
            theirs, of_reference = log_probs(self.reference, transitions, "reference")
        local = self.beta * (mine - theirs)
        if transitions.alive is not None:
            # Of the absent an action may even be illegal: its probability must leave no trace.
            local = local.where(transitions.alive, torch.zeros_like(local))
        states = {"policy": hidden, "reference": of_reference}
        known = {name: state for name, state in states.items() if state is not None}
        return Rewards(team=local.sum(dim=-1), local=local, are_advantages=True), known

    @property
    def is_recurrent(self) -> bool:
        """Whether either policy reads the steps before."""
        return any(map(is_recurrent, (self.policy, self.reference)))

    @torch.no_grad()
    def move_reference(self, rate: float) -> None:
        """Move the reference towards the policy, reference += rate (policy - reference).

        Its input statistics become the policy's. At rate 1 it becomes a copy.
        """
        policy, reference = cast(nn.Module, self.policy), cast(nn.Module, self.reference)
        for source, moved in zip(policy.parameters(), reference.parameters(), strict=True):
            moved.lerp_(source, rate)
        for statistic, own in zip(policy.buffers(), reference.buffers(), strict=True):
            own.copy_(statistic)


class OwnPolicyRatio(PolicyRatio):
    """A policy that is learned beside the one that acts, and a uniform reference.

    Its networks are those that the section reward describes.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: RewardConfig,
        gamma: float,
        norm: TeamNorm,
        generator: torch.Generator,
    ) -> None:
        network = NetworkConfig(
            hidden_sizes=config.hidden_sizes,
            share_parameters=config.share_parameters,
            recurrence=config.recurrence,
            encoder=config.encoder,
        )
        if network.recurrence != "none":
            check_episode_length(spec, "reward.recurrence")
        policy, reference = make_actor(spec, network, norm, generator), UniformPolicy(spec)
        with_deviation_of(policy, reference)
        super().__init__(policy, reference, config.ratio.beta)


def is_recurrent(policy: object) -> bool:
    """Return whether a policy's probabilities depend on the steps before."""
    return isinstance(getattr(policy, "body", None), RecurrentBody)


def log_probs(
    policy: Density, steps: Transitions, name: str
) -> tuple[Float[Tensor, "*L N"], Float[Tensor, "*L N H"] | None]:
    """Return a policy's log-probabilities of the actions taken, and the hidden states after them.

    Those of numbers are of the actions that the environment received, clipped to [-1, 1]:
    with the unbounded density a mean beyond the bounds would still gain by going further. The
    hidden states are None of a feed-forward policy. `name` is the policy's in `History.hidden`.
    """
    if not isinstance(policy, CategoricalActor | GaussianActor):
        return policy.log_prob(steps.obs, steps.actions, steps.action_mask), None
    distribution, states = distributions(policy, steps, name)
    if isinstance(distribution, Categorical):
        return distribution.log_prob(steps.actions), states
    return distribution.executed_log_prob(steps.actions), states


def distributions(
    actor: CategoricalActor | GaussianActor, steps: Transitions, name: str
) -> tuple[Distribution, Float[Tensor, "*L N H"] | None]:
    """Return an actor's distributions at some steps, and the hidden states after them.

    As in `log_probs`, they are None of a feed-forward one, and follow `Transitions.history`.
    """
    if not is_recurrent(actor):
        return actor.step_distribution(steps.obs, None, steps.action_mask)[0], None
    history = steps.history
    if history is None:
        raise ValueError(
            "a recurrent policy got Transitions without history; it reads the steps of episodes "
            "in their order, so say in Transitions.history which follow which"
        )
    axis = history.time_axis
    obs, starts = actor.norm.obs(steps.obs).movedim(axis, 0), history.starts.movedim(axis, 0)
    hidden = None if history.hidden is None else history.hidden.get(name)
    if hidden is None:
        hidden = actor.initial_hidden(starts.shape[1:].numel())
        assert hidden is not None
        hidden = hidden.view(*starts.shape[1:], *hidden.shape[1:])
    outputs, states = actor.unroll(obs, hidden, starts)
    outputs, states = outputs.movedim(0, axis), states.movedim(0, axis)
    return actor.distribution(outputs, steps.action_mask), states


def frozen(policy: P) -> P:
    """Return a copy of a policy that nothing changes any more, input statistics included."""
    other = copy.deepcopy(policy)
    cast(nn.Module, other).requires_grad_(False)
    return other


def with_deviation_of(policy: Density, reference: Density) -> None:
    """Give a Gaussian policy the reference's standard deviation and keep it there.

    A deviation that is fitted, too, lets the log-ratio of many action dimensions explode over long
    episodes. Policies of discrete actions have none, and stay as they are.
    """
    if not isinstance(policy, GaussianActor):
        return
    with torch.no_grad():
        if isinstance(reference, GaussianActor):
            policy.log_std.copy_(reference.log_std)
        else:
            policy.log_std.fill_(UNIFORM_LOG_STD)
    policy.log_std.requires_grad_(False)


def check_comparable(policy: Policy, spec: EnvSpec, setting: str) -> None:
    """Raise `ConfigError` unless a policy acts on what agents of the environment `spec` see and do.

    `setting` begins the message.
    """
    there, here = _acted_on(policy.spec), _acted_on(spec)
    if apart := [name for name in there if there[name] != here[name]]:
        raise ConfigError(
            f"{setting}: the policy of {policy.folder} was trained on {policy.spec.name} ("
            + ", ".join(f"{name}: {there[name]}" for name in apart)
            + f"), and this is {spec.name} ("
            + ", ".join(f"{name}: {here[name]}" for name in apart)
            + "); name a run of a task with equal ones"
        )


def _acted_on(spec: EnvSpec) -> dict[str, object]:
    """Return by name what a policy's networks are shaped by."""
    return {
        "agents": spec.num_agents,
        "observation features of each": list(spec.obs_sizes),
        "kind of action": spec.action_kind,
        "actions of each": list(spec.action_parts or spec.action_sizes),
    }
