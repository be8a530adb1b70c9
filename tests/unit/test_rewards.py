"""The implicit reward: its identity, its fixed points, and who gets which gradient.

Axes: M episodes, K steps, N agents; O, S, A features.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import Config, RewardConfig
from marl.normalisers import TeamNorm
from marl.preferences import PreferenceSource
from marl.rewards import CentralReward, FactoredReward, RewardLearner, make_reward_learner
from marl.rewards.learner import checked_rewards
from marl.rewards.losses import (
    bradley_terry_loss,
    expectile_loss,
    gumbel_loss,
    preference_accuracy,
    preference_logits,
    soft_value_loss,
)
from marl.rewards.mixers import LinearMixer, TwoLayerMixer
from marl.rewards.slow import follow
from marl.types import LabelledSegments, Rewards, Transitions

CPU = torch.device("cpu")
N, O, S, A = 3, 4, 5, 2
GAMMA = 0.9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_spec(*, continuous: bool = False, dies: bool = False) -> EnvSpec:
    return EnvSpec(
        name="nowhere",
        num_envs=1,
        obs_sizes=(O,) * N,
        state_size=S,
        action_kind="continuous" if continuous else "discrete",
        action_sizes=(A,) * N,
        max_steps=10,
        finite_horizon=True,
        agents_die=dies,
    )


def make_steps(
    seed: int, *lead: int, continuous: bool = False, dies: bool = False, terminated: float = 0.3
) -> Transitions:
    """Return random transitions; living agents may die, dead ones stay dead."""
    source = generator(seed)
    alive = torch.rand((*lead, N), generator=source) < 0.6
    actions = torch.randint(A, (*lead, N), generator=source)
    return Transitions(
        obs=torch.randn((*lead, N, O), generator=source),
        state=torch.randn((*lead, S), generator=source),
        actions=torch.randn((*lead, N, A), generator=source) if continuous else actions,
        next_obs=torch.randn((*lead, N, O), generator=source),
        next_state=torch.randn((*lead, S), generator=source),
        terminated=torch.rand(lead, generator=source) < terminated,
        alive=alive if dies else None,
        next_alive=alive & (torch.rand((*lead, N), generator=source) < 0.6) if dies else None,
    )


def make_model(
    kind: type = FactoredReward, gamma: float = GAMMA, *, continuous: bool = False, **options: Any
) -> Any:
    """Return a reward model whose slow copies differ from the fast ones and from zero."""
    spec = make_spec(continuous=continuous)
    config = RewardConfig(hidden_sizes=(8,), mixer_hidden=8, **options)
    model = kind(spec, config, gamma, TeamNorm(spec, enabled=False), generator())
    noise = generator(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return model


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31 - 1),
    gamma=st.sampled_from([0.0, 0.5, 0.99]),
    continuous=st.booleans(),
    dies=st.booleans(),
)
def test_the_global_reward_is_the_local_ones_plus_shaping(
    seed: int, gamma: float, continuous: bool, dies: bool
) -> None:
    """R = sum_i r_i + b(s) - gamma (1 - terminated) b(s')."""
    model = make_model(gamma=gamma, continuous=continuous)
    steps = make_steps(seed, 4, 5, continuous=continuous, dies=dies)
    rewards, now, bias = model.split(steps)
    assert torch.allclose(rewards.team, rewards.local.sum(dim=-1) + bias, atol=1e-5)
    expected = now.bias
    if gamma > 0.0:
        going_on = (~steps.terminated).float()
        expected = now.bias - gamma * going_on * model.slow_mixer.hypernetwork(steps.next_state)[..., -1]
    assert torch.allclose(bias, expected, atol=1e-6)


def test_a_terminated_step_is_worth_its_utility_alone() -> None:
    model, steps = make_model(), make_steps(0, 4, 5, terminated=1.1)
    rewards, now, bias = model.split(steps)
    q = model.utilities(steps.obs, steps.actions, None)
    assert torch.allclose(rewards.team, now.total)
    assert torch.allclose(rewards.local, now.weights * q)
    assert torch.equal(bias, now.bias)


def test_the_plain_form_has_no_weights() -> None:
    model, steps = make_model(local_form="plain"), make_steps(0, 4, 5, terminated=-1.0)
    q = model.utilities(steps.obs, steps.actions, None)
    next_v = model.slow_v(model.norm.obs(steps.next_obs)).squeeze(-1)
    assert torch.allclose(model(steps).local, q - GAMMA * next_v, atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from([LinearMixer, TwoLayerMixer]))
def test_mixers_are_monotone_in_every_utility(seed: int, kind: type) -> None:
    source = generator(seed)
    mixer = kind(S, N, 8, source)
    with torch.no_grad():  # far from the start, where all weights are near one
        for parameter in mixer.parameters():
            parameter.mul_(5.0)
    state = torch.randn((20, S), generator=source)
    utilities = torch.randn((20, N), generator=source, requires_grad=True)
    mixed = mixer(state, utilities)
    assert (mixed.weights >= 0).all()
    (slopes,) = torch.autograd.grad(mixed.total.sum(), utilities)
    assert (slopes >= 0).all()


def test_linear_mixers_start_near_a_plain_sum() -> None:
    state = torch.randn((100, S), generator=generator())
    weights = LinearMixer(S, N, 8, generator())(state, torch.zeros(100, N)).weights
    assert (weights - 1.0).abs().max() < 0.3


def test_local_advantages_add_up_to_the_global_one() -> None:
    """Q_tot - V_tot = sum_i w_i (q_i - v_i), with the same mixer for both."""
    model, steps = make_model(), make_steps(3, 4, 5)
    q = model.utilities(steps.obs, steps.actions, None)
    v = model.v(model.norm.obs(steps.obs)).squeeze(-1)
    q_mixed, v_mixed = model.q_mixer(steps.state, q), model.v_mixer(steps.state, v)
    local = (q_mixed.weights * (q - v)).sum(dim=-1)
    assert torch.allclose(q_mixed.total - v_mixed.total, local, atol=1e-5)


def minimiser(loss: Callable[[Tensor], Tensor]) -> float:
    """Return the scalar v that minimises a smooth convex loss."""
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [v], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(v)
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return float(v.detach())


PROBABILITIES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
UTILITIES = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_gumbel_loss_is_least_at_the_soft_value(beta: float) -> None:
    found = minimiser(
        lambda v: (PROBABILITIES * gumbel_loss(UTILITIES, v.expand(3), beta, 50.0)).sum()
    )
    expected = beta * math.log(float((PROBABILITIES * (UTILITIES / beta).exp()).sum()))
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_gumbel_loss_is_tangent_beyond_the_clip() -> None:
    # At z = 5 with clip 2: e^2 (1 + 5 - 2) - 5 - 1 and slope in z e^2 - 1, so in v -(e^2 - 1).
    v = torch.zeros((), requires_grad=True)
    loss = gumbel_loss(torch.tensor(5.0), v, 1.0, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(2) * 4 - 6, rel=1e-6)
    assert v.grad is not None
    assert float(v.grad) == pytest.approx(1 - math.exp(2), rel=1e-6)


def test_the_expectile_loss_is_least_at_the_expectile() -> None:
    # Two equally likely values 0 and 1 at level tau: tau (1 - v) = (1 - tau) v gives v = tau.
    q = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert minimiser(lambda v: expectile_loss(q, v.expand(2), 0.7).sum()) == pytest.approx(0.7)


def test_the_soft_loss_is_least_at_the_entropic_mean() -> None:
    # v = E_pi [q - beta log pi], here with pi the distribution above and beta 2.
    log_probs = PROBABILITIES.log()
    found = minimiser(
        lambda v: (PROBABILITIES * soft_value_loss(UTILITIES, v.expand(3), log_probs, 2.0)).sum()
    )
    expected = float((PROBABILITIES * (UTILITIES - 2.0 * log_probs)).sum())
    assert found == pytest.approx(expected, abs=1e-6)


def uniform_policy(steps: Transitions) -> tuple[Tensor, Tensor]:
    """Return random actions and their log-probabilities."""
    actions = torch.randint(A, steps.actions.shape, generator=generator(5))
    return actions, torch.full(actions.shape, -math.log(A))


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
@pytest.mark.parametrize("value_loss", ["gumbel", "expectile", "soft"])
def test_the_value_loss_reaches_v_only(kind: type, value_loss: Any) -> None:
    model, steps = make_model(kind, value_loss=value_loss), make_steps(0, 4, 5)
    _, now, _ = model.split(steps)
    model.value_loss(steps, now, torch.ones(4, 5), uniform_policy).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all(name.startswith("v.") for name in reached)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_no_gradient_reaches_anything_at_the_next_state(kind: type) -> None:
    """The preference loss reaches q and the mixer at s; v, slow copies and s' get nothing."""
    model, steps = make_model(kind), make_steps(0, 4, 5, terminated=-1.0)
    inputs = {
        name: getattr(steps, name).requires_grad_()
        for name in ("obs", "state", "next_obs", "next_state")
    }
    rewards = model(dataclasses.replace(steps, **inputs))
    total = rewards.team.sum() + (0.0 if rewards.local is None else (rewards.local**2).sum())
    total.backward()
    assert inputs["state"].grad is not None
    assert inputs["next_obs"].grad is None
    assert inputs["next_state"].grad is None
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("q.") for name in reached)
    assert not any(name.startswith(("v.", "slow")) for name in reached)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_the_next_state_is_seen_by_slow_copies_only(kind: type) -> None:
    model, steps = make_model(kind), make_steps(0, 4, 5, terminated=-1.0)
    before = model(steps)
    with torch.no_grad():
        for parameter in model.v.parameters():
            parameter.add_(1.0)
    assert torch.equal(model(steps).team, before.team)
    with torch.no_grad():
        for parameter in model.slow_v.parameters():
            parameter.add_(1.0)
    assert not torch.allclose(model(steps).team, before.team)


def test_the_mixer_at_the_next_state_is_slow_too() -> None:
    model, steps = make_model(), make_steps(0, 4, 5, terminated=-1.0)
    before, now, _ = model.split(steps)
    with torch.no_grad():
        for parameter in model.q_mixer.parameters():
            parameter.add_(1.0)
    after, now_after, _ = model.split(steps)
    # What has changed is the part at s alone.
    assert torch.allclose(after.team - now_after.total, before.team - now.total, atol=1e-4)


def test_slow_copies_move_by_exactly_the_rate() -> None:
    model = make_model(target_rate=0.25)
    pairs = [
        (dict(getattr(model, fast).named_parameters()), dict(getattr(model, slow).named_parameters()))
        for fast, slow in (("v", "slow_v"), ("v_mixer", "slow_mixer"))
    ]
    before = [{name: p.clone() for name, p in slow.items()} for _, slow in pairs]
    model.follow()
    for (fast, slow), old in zip(pairs, before, strict=True):
        for name, parameter in slow.items():
            assert torch.allclose(parameter, old[name] + 0.25 * (fast[name] - old[name]))
            assert not torch.equal(parameter, old[name])


def test_the_drift_is_the_distance_after_the_move() -> None:
    fast, slow = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for layer, weight, bias in ((fast, 6.0, 8.0), (slow, 0.0, 0.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    # Half way: the gaps 6 and 8 become 3 and 4, the distance 5.
    assert float(follow(fast, slow, 0.5)) == pytest.approx(5.0)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_gamma_zero_has_no_value_and_ignores_the_next_state(kind: type) -> None:
    model, steps = make_model(kind, gamma=0.0), make_steps(0, 4, 5)
    assert not any(name.startswith(("v", "slow")) for name, _ in model.named_parameters())
    other = make_steps(9, 4, 5)
    swapped = dataclasses.replace(
        steps,
        next_obs=other.next_obs,
        next_state=other.next_state,
        terminated=other.terminated,
    )
    assert torch.equal(model(steps).team, model(swapped).team)


def test_a_vanishing_gamma_is_the_explicit_factored_reward() -> None:
    """slf is imap at gamma_R = 0."""
    implicit, explicit = make_model(gamma=1e-12), make_model(gamma=0.0)
    explicit.load_state_dict(
        {k: v for k, v in implicit.state_dict().items() if k in explicit.state_dict()}
    )
    steps = make_steps(0, 4, 5)
    assert torch.allclose(implicit(steps).team, explicit(steps).team)
    assert torch.allclose(implicit(steps).local, explicit(steps).local)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from([FactoredReward, CentralReward]))
def test_dead_agents_contribute_nothing(seed: int, kind: type) -> None:
    """What a dead agent does changes no reward and no value loss; its own reward is zero."""
    model, steps = make_model(kind), make_steps(seed, 4, 5, dies=True)
    assert steps.alive is not None
    swapped = dataclasses.replace(
        steps, actions=torch.where(steps.alive, steps.actions, 1 - steps.actions)
    )
    before, now, _ = model.split(steps)
    after, now_after, _ = model.split(swapped)
    assert torch.equal(before.team, after.team)
    losses = [
        model.value_loss(each, mixed, torch.ones(4, 5), uniform_policy)
        for each, mixed in ((steps, now), (swapped, now_after))
    ]
    assert torch.equal(*losses)
    if before.local is not None:
        assert before.local[~steps.alive].eq(0.0).all()


def test_dead_agents_leave_the_soft_value_of_the_joint_action() -> None:
    model, steps = make_model(CentralReward, value_loss="soft"), make_steps(0, 4, 5, dies=True)
    assert steps.alive is not None

    def policy(scale: float) -> Callable[[Transitions], tuple[Tensor, Tensor]]:
        log_probs = torch.where(steps.alive, -1.0, -scale)  # type: ignore[arg-type]
        return lambda _: (steps.actions, log_probs)

    _, now, _ = model.split(steps)
    weights = torch.ones(4, 5)
    losses = [model.value_loss(steps, now, weights, policy(scale)) for scale in (1.0, 100.0)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_padding_leaves_the_value_loss(kind: type) -> None:
    model, steps = make_model(kind), make_steps(0, 4, 5)
    weights = torch.ones(4, 5)
    weights[:, 3:] = 0.0
    _, now, _ = model.split(steps)
    short = Transitions(
        **{k: None if v is None else v[:, :3] for k, v in vars(steps).items()}
    )
    _, now_short, _ = model.split(short)
    assert torch.allclose(
        model.value_loss(steps, now, weights, uniform_policy),
        model.value_loss(short, now_short, torch.ones(4, 3), uniform_policy),
    )


def segments_of(weights: list[list[float]], lengths: list[int], **labels: Any) -> LabelledSegments:
    """Return segments of one-number rewards with these step weights."""
    steps = make_steps(0, len(lengths), len(weights[0]))
    pairs: dict[str, Any] = {"first": [0], "second": [1], "labels": [1.0]} | labels
    return LabelledSegments(
        transitions=steps,
        step_weights=torch.tensor(weights),
        lengths=torch.tensor(lengths),
        **{name: torch.tensor(value) for name, value in pairs.items()},
    )


REWARDS = torch.tensor([[1.0, 2.0, 100.0], [2.0, 4.0, 6.0]])


def test_preference_logits_by_hand() -> None:
    # alpha 10, T_max 20: S_1 = 10 / 20 (1 + 2) = 1.5 (padding weighs 0); four steps estimated
    # from three drawn weigh 1.5 each: S_2 = .5 * 1.5 * 12 = 9. The pairs (0, 1), (1, 0).
    segments = segments_of(
        [[1.0, 1.0, 0.0], [1.5, 1.5, 1.5]], [2, 4], first=[0, 1], second=[1, 0], labels=[1.0, 0.0]
    )
    logits = preference_logits(REWARDS, segments, RewardConfig(alpha=10.0), 20)
    assert logits.tolist() == [-7.5, 7.5]


def test_length_normalised_logits_by_hand() -> None:
    # alpha times the mean reward: 10 * 3 / 2 = 15 and 10 * 18 / 4 = 45.
    segments = segments_of([[1.0, 1.0, 0.0], [1.5, 1.5, 1.5]], [2, 4])
    config = RewardConfig(alpha=10.0, length_normalised=True)
    assert preference_logits(REWARDS, segments, config, 20).tolist() == [-30.0]


def test_bradley_terry_loss_by_hand() -> None:
    # sigmoid(log 3) = 3/4: -log 3/4 if the first is preferred, -log 1/4 if the second; at a tie
    # the mean of both.
    logits = torch.full((1,), math.log(3.0))
    for label, expected in (
        (1.0, -math.log(0.75)),
        (0.0, -math.log(0.25)),
        (0.5, -0.5 * (math.log(0.75) + math.log(0.25))),
    ):
        loss = bradley_terry_loss(logits, torch.tensor([label]))
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_tie_pulls_the_scores_together() -> None:
    logits = torch.tensor([2.0], requires_grad=True)
    bradley_terry_loss(logits, torch.tensor([0.5])).backward()
    assert logits.grad is not None
    assert float(logits.grad) > 0


def test_accuracy_ignores_ties() -> None:
    logits = torch.tensor([1.0, -1.0, 1.0, 1.0])
    labels = torch.tensor([1.0, 0.8, 0.1, 0.5])  # right, wrong, wrong, tie
    assert float(preference_accuracy(logits, labels)) == pytest.approx(1 / 3)
    assert preference_accuracy(logits[3:], labels[3:]).isnan()


def test_reward_models_never_see_a_reward() -> None:
    names = {field.name for field in dataclasses.fields(Transitions)}
    assert not {name for name in names if "reward" in name or "return" in name}
    names = {field.name for field in dataclasses.fields(LabelledSegments)}
    assert names == {"transitions", "step_weights", "lengths", "first", "second", "labels"}


class OneSource(PreferenceSource):
    """A preference source that always serves the same segments."""

    def __init__(self, segments: LabelledSegments) -> None:
        self.segments = segments

    def batch(self, *, held_out: bool = False) -> LabelledSegments:
        return self.segments


def make_learner(kind: type, gamma: float = GAMMA, **options: Any) -> RewardLearner:
    model = make_model(kind, gamma, **options)
    return RewardLearner(model, "", model.config, gamma, 10, CPU)


@pytest.mark.parametrize(
    ("kind", "gamma"),
    [(FactoredReward, 0.0), (FactoredReward, GAMMA), (CentralReward, 0.0), (CentralReward, GAMMA)],
)
def test_fitting_learns_the_preferences(kind: type, gamma: float) -> None:
    """Six episodes of random steps in order of preference: the order is learned."""
    pairs = torch.tensor(list(itertools.combinations(range(6), 2)))
    segments = LabelledSegments(
        transitions=make_steps(0, 6, 5),
        step_weights=torch.ones(6, 5),
        lengths=torch.full((6,), 5),
        first=pairs[:, 0],
        second=pairs[:, 1],
        labels=torch.ones(len(pairs)),
    )
    learner = make_learner(kind, gamma, gradient_steps=30, learning_rate=2e-2)
    assert not learner.is_fitted
    learner.fit(OneSource(segments), uniform_policy)
    assert learner.is_fitted
    metrics = learner.fit(OneSource(segments), uniform_policy)
    assert metrics["preference/accuracy"] == 1.0
    assert metrics["preference/loss"] < 0.1


def test_padded_steps_change_no_parameter() -> None:
    """Whatever stands in rows of weight zero."""
    learners = [make_learner(FactoredReward) for _ in range(2)]
    segments = segments_of([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [2, 1])
    noise = make_steps(8, 2, 3)
    padding = segments.step_weights == 0
    other = {
        name: torch.where(padding.view(2, 3, *([1] * (value.ndim - 2))), getattr(noise, name), value)
        for name, value in vars(segments.transitions).items()
        if value is not None
    }
    changed = dataclasses.replace(segments, transitions=Transitions(**other))
    for learner, batch in zip(learners, (segments, changed), strict=True):
        learner.fit(OneSource(batch), uniform_policy)
    for mine, theirs in zip(*(learner.parameters for learner in learners), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_rewards_are_divided_by_their_deviation_and_not_shifted() -> None:
    learner, steps = make_learner(FactoredReward), make_steps(0, 6, 5, dies=True)
    assert steps.alive is not None
    raw = learner.model(steps)
    scaled, metrics = learner.rewards(steps)
    assert scaled.local is not None
    # The first batch sets the running deviations: the team's, and that of living agents.
    assert torch.allclose(scaled.team * raw.team.std(correction=0), raw.team, atol=1e-5)
    own = raw.local[steps.alive].std(correction=0)
    assert torch.allclose(scaled.local * own, raw.local, atol=1e-5)
    assert metrics["reward/mean"] == pytest.approx(float(raw.team.mean()))


def test_the_learner_state_round_trips() -> None:
    segments = segments_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    source, steps = OneSource(segments), make_steps(0, 6, 5)
    learner, other = make_learner(FactoredReward), make_learner(FactoredReward)
    learner.fit(source, uniform_policy)
    learner.rewards(steps)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.fit(source, uniform_policy)
    (mine, _), (theirs, _) = learner.rewards(steps), other.rewards(steps)
    assert torch.equal(mine.team, theirs.team)
    assert torch.equal(mine.local, theirs.local)  # type: ignore[arg-type]


def test_a_central_reward_has_as_many_parameters_as_a_factored_one() -> None:
    for gamma in (0.0, GAMMA):
        factored, central = (
            sum(p.numel() for p in make_model(kind, gamma).parameters() if p.requires_grad)
            for kind in (FactoredReward, CentralReward)
        )
        assert factored <= central < 1.15 * factored


class PluggedReward(nn.Module):
    """A user's model: one number from the next observation."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.obs_size, 1)

    def forward(self, transitions: Transitions) -> Tensor:
        return self.layer(transitions.next_obs.mean(dim=-2)).squeeze(-1)


def test_a_plugged_in_model_is_seeded_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from marl import rewards

    monkeypatch.setattr(rewards, "PluggedReward", PluggedReward, raising=False)
    spec, config = make_spec(), Config(reward=RewardConfig(model="marl.rewards:PluggedReward"))
    norm = TeamNorm(spec, enabled=False)
    before = torch.get_rng_state()
    weights = [
        make_reward_learner(spec, config, norm, generator(seed), CPU).parameters[0].clone()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "reward model mine:f returned list"),
        (torch.zeros(4), r"returned team rewards of shape \(4,\), expected \(4, 5\)"),
        (
            Rewards(team=torch.zeros(4, 5), local=torch.zeros(4, 5, 2)),
            r"returned local rewards of shape \(4, 5, 2\), expected \(4, 5, 3\)",
        ),
    ],
)
def test_a_plugged_in_model_that_breaks_its_promise_is_named(returned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_rewards(returned, "mine:f", make_steps(0, 4, 5))
