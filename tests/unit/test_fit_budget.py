"""How many gradient steps a fit of the reward takes.

Axes: M episodes, K steps.
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from marl.config import Config, EnvConfig, LearnerConfig, RewardConfig
from marl.data.replay import sampled
from marl.data.types import EpisodeBatch
from marl.rewards import FactoredReward, RewardLearner
from marl.rewards.budget import FitBudget, fit_budget
from marl.utils.ranks import SINGLE, Ranks
from tests.ranks import in_ranks
from tests.reward_models import (
    CPU,
    batch_of,
    generator,
    make_model,
    make_steps,
    uniform_policy,
)
from tests.unit.test_replay import filled

ROWS = 6 * 5
"""Rows of a batch."""


class Counting:
    """Serves the same batch, counts how often, and holds some pairs out or none."""

    def __init__(self, held_out: EpisodeBatch | None) -> None:
        self.served = ordered()
        self.held_out = held_out
        self.trained, self.measured = 0, 0

    def batch(self, *, held_out: bool = False) -> EpisodeBatch | None:
        self.trained += not held_out
        self.measured += held_out
        return self.held_out if held_out else self.served


def ordered() -> EpisodeBatch:
    """Return six episodes of random steps in order of preference."""
    pairs = torch.tensor(list(itertools.combinations(range(6), 2)))
    return dataclasses.replace(
        batch_of([[1.0] * 5] * 6, [5] * 6),
        transitions=make_steps(0, 6, 5),
        first=pairs[:, 0],
        second=pairs[:, 1],
        labels=torch.ones(len(pairs)),
    )


def reversed_order() -> EpisodeBatch:
    """Return the same pairs with the other answer: fitting can only make this loss worse."""
    batch = ordered()
    return dataclasses.replace(batch, labels=1.0 - batch.labels)


def steps_taken(source: Counting, budget: FitBudget, **options: Any) -> float:
    learner = learner_of(budget, **options)
    taken = learner.fit(source, uniform_policy)["reward/gradient_steps"]
    assert taken == learner.num_fits == source.trained
    return taken


def learner_of(budget: FitBudget, ranks: Ranks = SINGLE, **options: Any) -> RewardLearner:
    options = {"gradient_steps": 0, "learning_rate": 1e-2} | options
    model = make_model(FactoredReward, **options)
    return RewardLearner(
        model, "", model.config, 10, budget=budget, threads=1, device=CPU, ranks=ranks
    )


def test_two_processes_use_the_budget_up_together_and_tell_of_both() -> None:
    def fit(ranks: Ranks) -> dict[str, float]:
        learner = learner_of(FitBudget(block=2, max_rows=12 * ROWS), ranks)
        return learner.fit(Counting(ordered()), uniform_policy)

    # A step of both reads twice the rows of one: six steps, not twelve. With the same batch in
    # both, all metrics are those of six steps of one process.
    source = Counting(ordered())
    alone = learner_of(FitBudget(block=2, max_rows=6 * ROWS)).fit(source, uniform_policy)
    for told in in_ranks(2, fit):
        assert told["reward/gradient_steps"] == 6
        assert told == pytest.approx(alone, rel=1e-4)


def test_the_held_out_batch_is_drawn_once() -> None:
    source = Counting(ordered())
    assert steps_taken(source, FitBudget(block=3, max_rows=12 * ROWS)) == 12
    assert source.measured == 1


def test_blocks_follow_while_the_held_out_loss_falls_and_the_budget_lasts() -> None:
    # A block is 4 steps of 30 rows; the first one is taken in any case, others end with the budget.
    steps = {1: 4, 4 * ROWS: 4, 7 * ROWS: 7, 8 * ROWS: 8, 281: 10, 301: 11}
    for max_rows, expected in steps.items():
        assert steps_taken(Counting(ordered()), FitBudget(block=4, max_rows=max_rows)) == expected


def test_no_block_follows_two_that_did_not_help() -> None:
    assert steps_taken(Counting(reversed_order()), FitBudget(block=4, max_rows=10**6)) == 8


def test_no_block_follows_two_that_helped_too_little() -> None:
    budget = FitBudget(block=4, max_rows=10**6)
    assert steps_taken(Counting(ordered()), budget, held_out_fall=1.0) == 8


def test_a_fall_of_exactly_the_least_share_helps() -> None:
    # Networks that stand still: no block lowers the loss, and a share of 0 asks for no more.
    budget, still = FitBudget(block=4, max_rows=16 * ROWS), {"learning_rate": 0.0}
    assert steps_taken(Counting(ordered()), budget, held_out_fall=0.0, **still) == 16
    assert steps_taken(Counting(ordered()), budget, held_out_fall=0.01, **still) == 8


def test_target_networks_move_in_the_first_block_only() -> None:
    """With fast networks that stand still, a step takes a slow one the share `rate` nearer."""
    model = make_model(FactoredReward, gradient_steps=0, learning_rate=0.0, target_rate=0.5)
    before = [p.clone() for p in model.target_v.parameters()]
    budget = FitBudget(block=2, max_rows=4 * ROWS)
    learner = RewardLearner(model, "", model.config, 10, budget=budget, threads=1, device=CPU)
    learner.fit(Counting(ordered()), uniform_policy)
    assert learner.num_fits == 4
    for fast, target, start in zip(
        model.v.parameters(), model.target_v.parameters(), before, strict=True
    ):
        assert torch.allclose(fast - target, 0.25 * (fast - start), atol=1e-6)


def test_without_held_out_answers_there_is_one_block() -> None:
    assert steps_taken(Counting(None), FitBudget(block=4, max_rows=10**6)) == 4


def test_a_constant_number_of_steps_is_one_block() -> None:
    config = Config(reward=RewardConfig(gradient_steps=7))
    assert fit_budget(config) == FitBudget(block=7)


def test_the_budget_by_hand() -> None:
    # 128 environments x 25 steps are 3,200 steps: 13 gradient steps, one per 256. With 6 epochs the
    # policy passes 19,200 rows; a share of .6 allows .6 / .4 of them, 28,800.
    config = Config(
        env=EnvConfig(num_envs=128),
        learner=LearnerConfig(rollout_steps=25, epochs=6),
        reward=RewardConfig(gradient_steps=0, env_steps_per_gradient_step=256, fit_share=0.6),
    )
    budget = fit_budget(config)
    assert budget.block == 13
    assert budget.max_rows == pytest.approx(28_800, abs=1)


def test_a_short_rollout_is_fitted_by_ten_steps_too() -> None:
    config = Config(
        env=EnvConfig(num_envs=32),
        learner=LearnerConfig(rollout_steps=8),
        reward=RewardConfig(gradient_steps=0),
    )
    assert fit_budget(config).block == 10


def test_short_episodes_are_read_whole() -> None:
    replay, _ = filled([[3, 5, 7], [6, 2]], 4)
    episodes = replay.episodes(replay.available())
    longest = int(episodes.lengths.max())
    for count, rows in ((2, 2), (6, 6), (7, longest), (100, longest)):
        config = RewardConfig(sample_steps=count)
        steps, weights, lengths = sampled(
            episodes, config, generator(), reads_history=config.recurrence != "none"
        )
        assert steps.terminated.shape == weights.shape == (len(episodes), rows)
        assert torch.allclose(weights.sum(dim=1), lengths.to(torch.float32))
    assert set(weights.unique().tolist()) == {0.0, 1.0}
