"""Steering a trained team when it acts: by its contrast to another policy, or by a learned reward.

    contrast    log pi  =  (1 + a) log pi_tuned - a log pi_base  + constant
    guidance    log pi  =  log pi_tuned + a w_i (q_i - v_i) / sd  + constant

Each agent's log-ratio of a tuned policy to what it was before is its part of an implicit reward
(`marl.rewards.ratio`), and the contrast is the optimal policy for a times that reward more (CoPe,
arXiv 2506.12109). Strength a = 0 is the tuned policy, -1 the base, between them both are mixed.
Against a uniform base the contrast is plain sharpening, pi^(1 + a): the control that must stand
beside it, with acting greedily, its limit.

For a > 0 an agent keeps to plausible actions, those of at least a tenth of the probability of its
likeliest one: beyond them a log-ratio, or a learned reward, is noise.

Axes: E environments, N agents, O observation features, A actions, K candidates, H hidden units;
``*L`` any leading axes.
"""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs import EnvSpec
from marl.config import ConfigError
from marl.learners.distributions import Categorical, Distribution, Gaussian
from marl.policy import Policy
from marl.rewards.factored import FactoredReward
from marl.rewards.learner import RewardLearner
from marl.rewards.ratio import check_comparable

PLAUSIBLE = 0.1
"""Share of the likeliest action's probability that an action needs to be kept (CoPe)."""
_SCALE_OBS, _SCALE_ACTIONS = 256, 16
"""Draws by which the unit of guidance is measured."""


@runtime_checkable
class TellsDistribution(Protocol):
    """An `Actor` that tells the distribution it draws from, as those of `mappo` and `ippo` do."""

    def step_distribution(
        self, obs: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """Return the distribution of one step's actions, and the next hidden state."""
        ...

    def initial_hidden(self, num_envs: int) -> Tensor | None:
        """Return the hidden state at the start of an episode; None for a feed-forward policy."""
        ...

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return the random numbers of a draw for leading axes `shape`."""
        ...


def plausible_actions(policy: Categorical, threshold: float = PLAUSIBLE) -> Bool[Tensor, "*L N A"]:
    """Return which actions have at least `threshold` times the likeliest one's probability."""
    log_probs = policy.logits.log_softmax(dim=-1)
    return log_probs >= log_probs.amax(dim=-1, keepdim=True) + math.log(threshold)


def contrast_categorical(
    tuned: Categorical, base: Categorical | None, strength: float
) -> Categorical:
    """Return the softmax of (1 + a) log pi_tuned - a log pi_base; without a base, pi^(1 + a)."""
    if strength == 0.0:
        return tuned
    scores = (1.0 + strength) * tuned.logits.log_softmax(dim=-1)
    if base is not None:
        scores = scores - strength * base.logits.log_softmax(dim=-1)
    return _kept(scores, tuned, strength)


def contrast_gaussian(tuned: Gaussian, base: Gaussian | None, strength: float) -> Gaussian:
    """Return the Gaussian that is proportional to pi_tuned^(1 + a) pi_base^(-a).

    Its precision, (1 + a) / s_t^2 - a / s_b^2, must be positive (`most_strength`). Where both
    deviations are equal it has them, too, and the mean is mu_t + a (mu_t - mu_b).
    """
    if strength == 0.0:
        return tuned
    of_tuned = (1.0 + strength) * (-2.0 * tuned.log_std).exp()
    if base is None:
        return Gaussian(tuned.mean, -0.5 * of_tuned.log(), tuned.present)
    of_base = strength * (-2.0 * base.log_std).exp()
    precision = of_tuned - of_base
    mean = (of_tuned * tuned.mean - of_base * base.mean) / precision
    return Gaussian(mean, -0.5 * precision.log(), tuned.present)


def most_strength(tuned: Gaussian, base: Gaussian) -> float:
    """Return the strength at which the contrast of two Gaussians loses its positive precision.

    That is 1 / (s_t^2 / s_b^2 - 1) where the base is narrower; infinite where it is not.
    """
    surplus = (2.0 * (tuned.log_std - base.log_std)).exp() - 1.0
    if tuned.present is not None:
        surplus = surplus.where(tuned.present, torch.zeros_like(surplus))
    largest = float(surplus.max())
    return 1.0 / largest if largest > 0.0 else math.inf


def _kept(scores: Tensor, tuned: Categorical, strength: float) -> Categorical:
    """Return the softmax of scores over the actions that an agent keeps to."""
    legal = tuned.legal
    if strength > 0.0:
        plausible = plausible_actions(tuned)
        legal = plausible if legal is None else legal & plausible
    if legal is not None:
        scores = scores.masked_fill(~legal, torch.finfo(scores.dtype).min)
    return Categorical(scores, legal)


class SteeredActor:
    """An `Actor` for playing only, made of a trained one: there is nothing in it to train."""

    def __init__(self, tuned: TellsDistribution) -> None:
        self.tuned = tuned

    def initial_hidden(self, num_envs: int) -> Tensor | None:
        """Return the hidden state at the start of an episode."""
        return self.tuned.initial_hidden(num_envs)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return what draws an action; see `Actor`."""
        return self.tuned.noise(shape, generator)

    def step_distribution(
        self, obs: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """Return the steered distribution of one step's actions, and the next hidden state."""
        raise NotImplementedError

    def act(
        self,
        obs: Float[Tensor, "*L N O"],
        hidden: Tensor | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, "*L N"], Tensor | None]:
        """Return actions, their log-probabilities and the next hidden state; see `Actor`."""
        policy, hidden = self.step_distribution(obs, hidden, mask)
        actions = policy.mode() if noise is None else policy.sample(noise)
        return actions, policy.log_prob(actions), hidden

    def log_prob(self, obs: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return log-probabilities of actions at single steps; see `Actor`."""
        if self.initial_hidden(1) is not None:
            raise ValueError("a recurrent policy has no log-probabilities of single steps")
        return self.step_distribution(obs, None, mask)[0].log_prob(actions)

    def state_dict(self) -> dict[str, Any]:
        """Raise `ValueError`: the policies that it is made of have checkpoints of their own."""
        raise ValueError("a steered policy is not saved; save what it is made of, and the strength")

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Raise `ValueError`, as `state_dict` does."""
        self.state_dict()


class ContrastActor(SteeredActor):
    """Acts by (1 + a) log pi_tuned - a log pi_base; without a base, by pi_tuned^(1 + a).

    The hidden state of recurrent policies is both of theirs, (E, F) numbers side by side.
    """

    def __init__(
        self, tuned: TellsDistribution, base: TellsDistribution | None, strength: float
    ) -> None:
        """Raise `ConfigError` for a strength below -1, or of a Gaussian without a precision."""
        super().__init__(tuned)
        self.base = base
        self.strength = strength
        if not -1.0 <= strength < math.inf:
            raise ConfigError(
                f"strength: got {strength:g}, expected a number of at least -1, which is the base"
            )

    def initial_hidden(self, num_envs: int) -> Float[Tensor, "E F"] | None:
        """Return the hidden state at the start of an episode; None if both are feed-forward."""
        actors = (self.tuned,) if self.base is None else (self.tuned, self.base)
        parts = [actor.initial_hidden(num_envs) for actor in actors]
        known = [part.flatten(1) for part in parts if part is not None]
        return torch.cat(known, dim=-1) if known else None

    def step_distribution(
        self, obs: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """Return the contrast's distribution of one step's actions, and the next hidden state."""
        if hidden is None:
            hidden = self.initial_hidden(len(obs))
        tuned, of_tuned, hidden = _advanced(self.tuned, obs, hidden, mask)
        base, of_base = None, None
        if self.base is not None:
            base, of_base, _ = _advanced(self.base, obs, hidden, mask)
        states = [state.flatten(1) for state in (of_tuned, of_base) if state is not None]
        after = torch.cat(states, dim=-1) if states else None
        if isinstance(tuned, Gaussian):
            assert base is None or isinstance(base, Gaussian), "both have one kind of actions"
            return contrast_gaussian(tuned, base, self.strength), after
        assert isinstance(tuned, Categorical), "composite actions were refused"
        assert base is None or isinstance(base, Categorical), "both have one kind of actions"
        return contrast_categorical(tuned, base, self.strength), after


def _advanced(
    actor: TellsDistribution, obs: Tensor, hidden: Tensor | None, mask: Tensor | None
) -> tuple[Distribution, Tensor | None, Tensor | None]:
    """Return an actor's distribution, its next hidden state, and what of `hidden` is another's.

    Its own numbers are the first.
    """
    zero = actor.initial_hidden(len(obs))
    if zero is None or hidden is None:
        return *actor.step_distribution(obs, None, mask), hidden
    size = zero[0].numel()
    own = hidden[..., :size].view_as(zero)
    return *actor.step_distribution(obs, own, mask), hidden[..., size:]


class GuidedActor(SteeredActor):
    """Acts by log pi_tuned + a w_i (q_i - v_i) / sd, with q of a factored reward.

    w_i (q_i - v_i) is what an agent's action is worth above the others it could take (O-MAPL,
    arXiv 2501.18944); v_i is the same for all of them and drops out. Agents do not see the team's
    state: w_i, which scales their utilities and never changes their order, is that of the mean
    state. Discrete actions are weighed one by one. Of continuous ones every agent draws K from the
    tuned policy and one of these by its worth; greedy, the best of K fixed ones, the mean among
    them.

    sd is the standard deviation of w_i q_i over an agent's uniform actions, at observations whose
    features have the reward's own statistics, so that a does not depend on the unit of q: one
    deviation is worth a nats.
    """

    def __init__(
        self,
        tuned: TellsDistribution,
        reward: FactoredReward,
        strength: float,
        candidates: int = 16,
    ) -> None:
        super().__init__(tuned)
        self.reward = reward
        self.strength = strength
        self.candidates = candidates
        if not (math.isfinite(strength) and candidates >= 2):
            raise ConfigError(
                f"strength, candidates: got {strength:g} and {candidates}, expected a finite "
                "number and at least 2"
            )
        state, num_agents = reward.norm.state_norm.mean, len(reward.norm.obs_norm.mean)
        with torch.no_grad():
            mixed = reward.q_mixer(reward.norm.state(state), torch.zeros(num_agents))
        self.weights = mixed.weights
        self.scale = self._scale(num_agents)
        fixed = torch.Generator().manual_seed(0)
        self._fixed = tuned.noise((candidates,), fixed)
        self._fixed[0] = 0.0

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return what draws the actions: of continuous ones also the candidates, (*shape, K, N, A),
        and behind them what chooses among them."""
        if self.reward.is_discrete:
            return self.tuned.noise(shape, generator)
        drawn = self.tuned.noise((*shape, self.candidates), generator)
        choice = torch.empty((*drawn.shape[:-1], 1)).exponential_(generator=generator)
        return torch.cat((drawn, -choice.log_()), dim=-1)

    def worth(self, obs: Float[Tensor, "*L N O"], actions: Tensor) -> Float[Tensor, "*L N"]:
        """Return a w_i q_i / sd of some actions."""
        q = self.reward.local_q(obs, actions, None)
        return self.strength / self.scale * self.weights * q

    @torch.no_grad()
    def _scale(self, num_agents: int) -> float:
        """Return sd; see the class. 1 where all actions are worth the same."""
        generator, norm = torch.Generator().manual_seed(0), self.reward.norm.obs_norm
        shape = (_SCALE_OBS, 1, *norm.mean.shape)
        obs = norm.mean + torch.randn(shape, generator=generator) * norm.var.sqrt()
        obs = obs.expand(-1, _SCALE_ACTIONS, -1, -1)
        draws = (*obs.shape[:2], num_agents)
        if self.reward.is_discrete:
            actions = torch.randint(self.reward.action_size, draws, generator=generator)
        else:
            uniform = torch.rand((*draws, self.reward.action_size), generator=generator)
            actions = 2.0 * uniform - 1.0
            policy = self.tuned.step_distribution(obs[:, 0], self.tuned.initial_hidden(len(obs)))[0]
            if isinstance(policy, Gaussian) and policy.present is not None:
                actions = actions * policy.present
        worth = self.weights * self.reward.local_q(obs, actions, None)
        deviation = float(worth.var(dim=1).mean().sqrt())
        return deviation if deviation > 1e-12 else 1.0

    def step_distribution(
        self, obs: Tensor, hidden: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """Return the distribution of one step's discrete actions, and the next hidden state."""
        tuned, hidden = self.tuned.step_distribution(obs, hidden, mask)
        if not isinstance(tuned, Categorical):
            raise ValueError("candidates of continuous actions are drawn, their density is unknown")
        count = tuned.logits.shape[-1]
        every = torch.arange(count).view(count, *[1] * (obs.ndim - 1)).expand(-1, *obs.shape[:-1])
        worth = self.worth(obs.expand(count, *obs.shape), every).movedim(0, -1)
        scores = tuned.logits.log_softmax(dim=-1) + worth
        return _kept(scores, tuned, self.strength), hidden

    def act(
        self,
        obs: Float[Tensor, "*L N O"],
        hidden: Tensor | None = None,
        mask: Bool[Tensor, "*L N A"] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, "*L N"], Tensor | None]:
        """Return actions, their log-probabilities and the next hidden state; see `Actor`.

        Log-probabilities of continuous actions are NaN: those of the chosen candidates are unknown.
        """
        if self.reward.is_discrete:
            return super().act(obs, hidden, mask, noise)
        tuned, hidden = self.tuned.step_distribution(obs, hidden, mask)
        lead = obs.shape[:-2]
        if noise is None:
            drawn = self._fixed.view(-1, *[1] * len(lead), *self._fixed.shape[1:])
            actions = tuned.sample(drawn.expand(-1, *lead, -1, -1))
            choice = tuned.log_prob(actions)
        else:
            noise = noise.movedim(len(lead), 0)
            actions, choice = tuned.sample(noise[..., :-1]), noise[..., -1]
        scores = choice + self.worth(obs.expand(len(actions), *obs.shape), actions.clamp(-1.0, 1.0))
        best = scores.argmax(dim=0)
        chosen = actions.gather(0, best[None, ..., None].expand(1, *actions.shape[1:])).squeeze(0)
        return chosen, torch.full(chosen.shape[:-1], torch.nan), hidden


def contrasted(policy: Policy, base: Policy | None, strength: float) -> Policy:
    """Return the policy that acts by its contrast to `base`; None is uniform, i.e. sharpening.

    Raises `ConfigError` for a base that acts on something else, and for strengths below -1 or at
    which Gaussians lose their precision.
    """
    check_not_composite(policy.spec, "contrast")
    tuned, other = telling(policy, "contrast"), None
    if base is not None:
        check_comparable(base, policy.spec, "contrast")
        other = telling(base, "contrast")
    actor = ContrastActor(tuned, other, strength)
    _check_precision(actor, policy)
    return policy.acting(actor)


def check_not_composite(spec: EnvSpec, setting: str) -> None:
    """Raise `ConfigError` where actions have several parts, whose contrast is not known here."""
    if spec.action_kind == "composite":
        raise ConfigError(
            f"{setting}: the agents of {spec.name} act in several parts; a contrast is for actions "
            "that are one choice, or numbers alone"
        )


def guided(policy: Policy, reward: RewardLearner, strength: float) -> Policy:
    """Return the policy that is guided by the local advantages of a fitted factored reward.

    Raises `ConfigError` for a reward that has none, or a recurrent one.
    """
    model = reward.model
    if not isinstance(model, FactoredReward) or reward.config.recurrence != "none":
        kind = "a recurrent one" if isinstance(model, FactoredReward) else reward.name
        raise ConfigError(
            f"guide: got {kind}, expected a feed-forward factored reward (imap, slf), which says "
            "what each agent's action is worth"
        )
    tuned = telling(policy, "guide")
    if strength == 0.0:  # the tuned policy itself, draw for draw
        return policy.acting(policy.actor)
    return policy.acting(GuidedActor(tuned, model, strength))


def telling(policy: Policy, setting: str) -> TellsDistribution:
    """Return a policy's actor if it tells its distribution; raise `ConfigError` otherwise."""
    if not isinstance(policy.actor, TellsDistribution):
        raise ConfigError(
            f"{setting}: the actor of {policy.folder} (learner.kind = "
            f"{policy.config.learner.kind!r}) does not tell its distribution; give it the method "
            "step_distribution of marl.learners.actors"
        )
    return policy.actor


@torch.no_grad()
def _check_precision(actor: ContrastActor, policy: Policy) -> None:
    """Raise `ConfigError` where the contrast of two Gaussians has no positive precision.

    Their deviations do not depend on what is observed.
    """
    nothing = torch.zeros(1, policy.spec.num_agents, policy.spec.obs_size)
    tuned = actor.tuned.step_distribution(nothing)[0]
    if not isinstance(tuned, Gaussian):
        return
    if actor.base is None:
        if actor.strength == -1.0:
            raise ConfigError(
                "strength: got -1, the uniform base itself, which no Gaussian is; choose a larger "
                "one"
            )
        return
    base = actor.base.step_distribution(nothing)[0]
    assert isinstance(base, Gaussian), "both have one kind of actions"
    most = most_strength(tuned, base)
    if actor.strength >= most:
        raise ConfigError(
            f"strength: got {actor.strength:g}, but the base acts with smaller deviations than the "
            f"tuned policy, and from {most:.3g} on their contrast is no Gaussian any more; choose "
            "a smaller one"
        )
