"""What a run computes from a rollout and a batch, in one process or in two on a half each.

Axes: E environments, N agents, M episodes, B pairs.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from marl.config import LearnerConfig
from marl.data.types import EpisodeBatch, Rewards, Rollout, Transitions
from marl.learners.gae import standardise
from marl.learners.mappo import Mappo
from marl.nn.normalisation import TeamNorm, ValueNorm
from marl.rewards import FactoredReward, RewardLearner
from marl.rewards.losses import SumOfLosses
from marl.utils.ranks import Ranks
from tests.learners import NETWORK, collect, generator, make_mappo, random_rewards
from tests.reward_models import CPU, batch_of, make_model, make_steps, uniform_policy
from tests.scripted import ScriptedEnv

LENGTHS = [[3, 5], [2, 7], [4, 2, 6], [5]]
"""Of the episodes of four environments, of which each process has two. Agents live for the first
steps of an episode only, and the first two environments have more episodes."""
NAN = float("nan")
WHOLE = batch_of(
    [[1.0] * 4, [1.0, 1.0, 1.0, 0.0], [1.0] * 4, [1.0, 1.0, 0.0, 0.0], [2.0] * 4],
    [4, 3, 4, 2, 8],
    first=[0, 2, 3, 2],
    second=[1, 3, 4, 4],
    labels=[1.0, 0.5, 0.0, 1.0],
    returns=[2.0, -1.0, NAN, 0.5, 1.0],
)
"""Five episodes and four pairs; process 0 has the first two of the one, the first of the other."""


def of_envs(value: Any, envs: slice) -> Any:
    """Return the part of a (T, E, ...) tensor that some environments have."""
    return None if value is None else value[:, envs]


def rollout_of(rollout: Rollout, envs: slice) -> Rollout:
    """Return the rollout of some environments."""
    steps = {k: of_envs(v, envs) for k, v in vars(rollout.transitions).items()}
    return Rollout(
        transitions=Transitions(**steps),
        truncated=rollout.truncated[:, envs],
        sampled_actions=rollout.sampled_actions[:, envs],
        log_probs=rollout.log_probs[:, envs],
        task_rewards=rollout.task_rewards[:, envs],
        elapsed=rollout.elapsed[:, envs],
        episodes=rollout.episodes,
        hidden=of_envs(rollout.hidden, envs),
    )


def batch_part(batch: EpisodeBatch, episodes: slice, pairs: slice) -> EpisodeBatch:
    """Return some of a batch's episodes and pairs."""
    steps = {k: None if v is None else v[episodes] for k, v in vars(batch.transitions).items()}
    return EpisodeBatch(
        transitions=Transitions(**steps),
        step_weights=batch.step_weights[episodes],
        lengths=batch.lengths[episodes],
        returns=batch.returns[episodes],
        first=batch.first[pairs] - episodes.start,
        second=batch.second[pairs] - episodes.start,
        labels=batch.labels[pairs],
        return_scale=2.0,
    )


class Served:
    """A source that serves some batches in turn, and the last one to measure on."""

    def __init__(self, batches: list[EpisodeBatch | None]) -> None:
        self.left = list(batches)
        self.held_out = batches[0]

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        return self.held_out if held_out else self.left.pop(0)


def policy_part(ranks: Ranks) -> dict[str, Tensor]:
    """Return advantages, statistics and gradients of an update."""
    learner = LearnerConfig(epochs=1, minibatches=1, entropy_coef=0.01)
    whole_env = ScriptedEnv(LENGTHS, agents_die=True)
    rollout = collect(make_mappo(whole_env.spec), whole_env)
    rewards = random_rewards(rollout)
    assert rewards.local is not None
    envs = slice(None) if ranks.size == 1 else slice(2 * ranks.rank, 2 * ranks.rank + 2)
    spec = ScriptedEnv(LENGTHS[envs], agents_die=True).spec
    norm = TeamNorm(spec, enabled=True)
    mappo = Mappo(
        spec,
        NETWORK,
        learner,
        norm,
        local_stream=True,
        threads=1,
        generator=generator(ranks.rank),  # the networks of the first process count
        device=CPU,
        ranks=ranks,
    )
    mine = rollout_of(rollout, envs)
    own = Rewards(team=rewards.team[:, envs], local=rewards.local[:, envs])
    alive = mine.transitions.alive
    advantages = torch.cat(ranks.gather(standardise(rewards.local[:, envs], alive, ranks)), dim=1)
    values = ValueNorm()
    values.update(rewards.local[:, envs], alive, ranks)
    norm.update(mine.transitions, ranks)
    mappo.update(mine, own, 1.0)
    found = {"advantages": advantages}
    found |= {f"values.{key}": x for key, x in values.state_dict().items()}
    found |= {f"inputs.{key}": x for key, x in norm.state_dict().items()}
    for name, optimizer in mappo.optimizers.items():
        (vector,) = optimizer.vectors
        assert vector.grad is not None
        found |= {f"gradient.{name}": vector.grad, f"weights.{name}": vector.detach()}
    return found


def reward_part(ranks: Ranks, **options: Any) -> dict[str, Tensor]:
    """Return the loss, its gradients and the weights of a fit of two gradient steps.

    In the second, process 1 has neither episodes nor pairs.
    """
    model = make_model(FactoredReward, gradient_steps=2, **options)
    whole = replace(WHOLE, transitions=make_steps(0, 5, 4, dies=True), return_scale=2.0)
    first = batch_part(whole, slice(0, 2), slice(0, 1))
    second = batch_part(whole, slice(2, 5), slice(1, 4))
    batches: list[EpisodeBatch | None] = [whole, first]
    if ranks.size > 1:
        batches = [first, first] if ranks.rank == 0 else [second, None]
    learner = RewardLearner(
        model,
        "",
        model.config,
        10,
        loss=SumOfLosses(model.config, 10),
        threads=1,
        device=CPU,
        ranks=ranks,
    )
    metrics = learner.fit(Served(batches), uniform_policy)
    found = {
        "loss": torch.tensor(learner.guard.average, dtype=torch.float64),
        "held out": torch.tensor(metrics["preference/held_out_loss"], dtype=torch.float64),
    }
    for name, optimizer in (("q", learner.q_optimizer), ("v", learner.v_optimizer)):
        assert optimizer is not None
        (vector,) = optimizer.vectors
        assert vector.grad is not None
        found |= {f"gradient.{name}": vector.grad, f"weights.{name}": vector.detach()}
    return found


def work(ranks: Ranks) -> dict[str, Tensor]:
    """Return all that the processes must agree on, by name."""
    found = {f"policy.{name}": x for name, x in policy_part(ranks).items()}
    found |= {f"reward.{name}": x for name, x in reward_part(ranks).items()}
    own_mixer = reward_part(ranks, shared_mixer=False)
    return {
        k: x.clone() for k, x in (found | {f"mixer.{k}": x for k, x in own_mixer.items()}).items()
    }


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare by name, relative to the largest number of a tensor or 1."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(1.0, float(tensor.abs().max()))
        gap = float((found[name] - tensor).abs().max())
        assert gap <= tolerance * scale, f"{name}: {gap / scale}"
