"""Learning reaches the known optimum of tiny tasks, from random play; a few seconds each.

Every row states the optimum, the score of random play and the threshold that must be passed by
the mean return of sampled (not greedy) episodes over the last tenth of the run.
"""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.probes import SETTINGS
from marl.config.io import load_config
from marl.learners.critics import with_time
from marl.trainer import Trainer
from tests.learners import mappo_of

SMALL: dict[str, Any] = SETTINGS | {"reward.gradient_steps": 6}


def trained(name: str, algorithm: str, steps: int, **options: Any) -> tuple[Trainer, float, float]:
    """Return the trainer and its mean return over the first and the last tenth of the run."""
    chosen = {"env.name": name, "algorithm": algorithm, "total_steps": steps}
    trainer = Trainer(load_config(overrides=SMALL | chosen | options))
    iterations = trainer.config.num_iterations
    returns = [trainer.iterate()["return/mean"] for _ in range(iterations)]
    tenth = iterations // 10
    return trainer, float(np.nanmean(returns[:tenth])), float(np.nanmean(returns[-tenth:]))


@pytest.mark.parametrize(
    ("name", "steps", "optimum", "random", "threshold"),
    [
        ("coordination", 15_000, 8.0, 8 / 9, 7.8),
        ("local_credit", 15_000, 8.0, 4.0, 7.8),
        ("masked", 30_000, 8.0, 8 / 3, 7.6),
        ("continuous_match", 30_000, 0.0, -16 / 3, -1.0),  # always zero: -8 / 3
        ("dying", 15_000, 4.5, 2.25, 4.1),
    ],
)
@pytest.mark.parametrize("algorithm", ["sparse", "dense"])
def test_mappo_reaches_the_optimum(
    algorithm: str, name: str, steps: int, optimum: float, random: float, threshold: float
) -> None:
    # At discount .99 the reward at the end of 8 steps is as good as one at every step.
    _, _, last = trained(f"probe/{name}", algorithm, steps)
    assert random < threshold < optimum
    assert last > threshold


def test_actions_of_several_parts() -> None:
    """Optimum 8, random 10 / 3; the number of agent 1 is drawn with a deviation."""
    _, _, last = trained("probe/composite", "sparse", 12_000)
    assert last > 7.0


@pytest.mark.parametrize(
    ("name", "steps", "optimum", "random", "threshold"),
    [
        ("local_credit", 15_000, 8.0, 4.0, 7.8),
        ("dying", 15_000, 4.5, 2.25, 4.1),
        ("continuous_match", 30_000, 0.0, -16 / 3, -1.4),
    ],
)
@pytest.mark.parametrize("algorithm", ["imap", "slf"])
def test_learned_rewards_reach_the_optimum(
    algorithm: str, name: str, steps: int, optimum: float, random: float, threshold: float
) -> None:
    _, _, last = trained(f"probe/{name}", algorithm, steps)
    assert random < threshold < optimum
    assert last > threshold


@pytest.mark.parametrize(
    ("name", "steps", "optimum", "random", "threshold"),
    [
        ("dying", 5_000, 4.5, 2.25, 3.9),
        ("continuous_match", 6_000, 0.0, -16 / 3, -1.4),  # always zero: -8 / 3
    ],
)
def test_preferences_train_the_policy_itself(
    name: str, steps: int, optimum: float, random: float, threshold: float
) -> None:
    """Its deviation stays what it was, which costs the sampled return of a Gaussian policy."""
    _, _, last = trained(f"probe/{name}", "dpo", steps, **{"network.initial_log_std": -1.5})
    assert random < threshold < optimum
    assert last > threshold


def test_the_value_of_the_reward_serves_as_the_only_critic() -> None:
    # Optimum 4.5, random 2.25.
    _, _, last = trained("probe/dying", "imap", 15_000, **{"reward.value_as_critic": True})
    assert last > 4.1


@pytest.mark.parametrize("algorithm", ["ipl", "sl"])
def test_central_rewards_reach_the_optimum(algorithm: str) -> None:
    # Optimum 8, random 4.
    _, _, last = trained("probe/local_credit", algorithm, 15_000)
    assert last > 7.8


@pytest.mark.parametrize(
    ("algorithm", "name", "optimum", "random", "threshold"),
    [
        ("rrd", "local_credit", 8.0, 4.0, 7.6),
        ("rrd", "dying", 4.5, 2.25, 4.1),
        ("rrd_central", "local_credit", 8.0, 4.0, 7.2),
        ("ircr", "local_credit", 8.0, 4.0, 7.6),
        ("ircr", "dying", 4.5, 2.25, 4.1),
    ],
)
def test_rewards_learned_from_returns_reach_the_optimum(
    algorithm: str, name: str, optimum: float, random: float, threshold: float
) -> None:
    """Nobody is asked: the labeller that the settings name does not even exist."""
    nobody = {"preferences.labeller": "nowhere:nobody"}
    trainer, _, last = trained(f"probe/{name}", algorithm, 15_000, **nobody)
    assert random < threshold < optimum
    assert last > threshold
    assert trainer.feedback is not None
    assert trainer.feedback.labeller is None


def test_unbiased_regression_reaches_the_optimum_from_few_steps_of_an_episode() -> None:
    # Optimum 8, random 4; three of the 8 steps are read.
    options = {"reward.unbiased_regression": True, "reward.sample_steps": 3}
    _, _, last = trained("probe/local_credit", "rrd", 15_000, **options)
    assert last > 7.2


def test_both_losses_together_reach_the_optimum() -> None:
    # Optimum 8, random 4.
    options = {"reward.loss": "both", "preferences.queries_per_iteration": 4}
    trainer, _, last = trained("probe/local_credit", "slf", 15_000, **options)
    assert trainer.feedback is not None
    assert trainer.feedback.buffer.num_answered > 0
    assert last > 7.6


@pytest.mark.parametrize(
    ("name", "steps", "optimum", "random", "threshold"),
    [
        ("coordination", 15_000, 8.0, 8 / 9, 7.8),
        ("dying", 15_000, 4.5, 2.25, 4.1),
    ],
)
def test_ippo_reaches_the_optimum(
    name: str, steps: int, optimum: float, random: float, threshold: float
) -> None:
    _, _, last = trained(f"probe/{name}", "sparse", steps, **{"learner.kind": "ippo"})
    assert random < threshold < optimum
    assert last > threshold


@pytest.mark.parametrize("shared", [True, False])
def test_happo_reaches_the_optimum(shared: bool) -> None:
    # Optimum 8, random 8/9: both agents must change what they do.
    options = {"learner.kind": "happo", "network.share_parameters": shared}
    _, _, last = trained("probe/coordination", "sparse", 12_000, **options)
    assert last > 7.8


def test_ippo_learns_from_preferences() -> None:
    # Optimum 8, random 4.
    _, _, last = trained("probe/local_credit", "imap", 15_000, **{"learner.kind": "ippo"})
    assert last > 7.8


def test_a_learner_of_ones_own_is_trained() -> None:
    # Optimum 8, random 4.
    options = {"learner.kind": "tests.reinforce:Reinforce", "learner.learning_rate": 0.1}
    _, _, last = trained("probe/local_credit", "sparse", 15_000, **options)
    assert last > 7.8


RECURRENT = {"network.recurrence": "gru", "network.hidden_sizes": [32, 32]}


@pytest.mark.parametrize(("algorithm", "steps"), [("sparse", 15_000), ("imap", 24_000)])
def test_recurrent_networks_recall_what_is_no_longer_seen(algorithm: str, steps: int) -> None:
    # Optimum 1; random, and the best of feed-forward networks, .5. Episodes of 6 steps span
    # rollouts of 8.
    _, first, last = trained("probe/recall", algorithm, steps, **RECURRENT)
    assert first < 0.75
    assert last > 0.95


def test_feed_forward_networks_recall_nothing() -> None:
    _, _, last = trained("probe/recall", "sparse", 15_000)
    assert last < 0.6


@pytest.mark.parametrize("algorithm", ["imap", "slf"])
def test_a_recurrent_reward_tells_who_recalled(algorithm: str) -> None:
    """Which of two episodes of random play is better: a guess is right in half of the pairs.

    Without lights the pay is a matter of the first and the last but one step together, so that
    a sum over single steps can do no better than guess, and a recurrent model can be always right.
    """
    options = {
        "env.name": "probe/recall",
        "env.options": {"lights": False},
        "algorithm": algorithm,
        "total_steps": 15_000,
        "learner.learning_rate": 0.0,
        "learner.epochs": 1,
        "reward.hidden_sizes": [32, 32],
    }
    accuracy = {}
    for recurrence in ("none", "gru"):
        trainer = Trainer(
            load_config(overrides=SMALL | options | {"reward.recurrence": recurrence})
        )
        rows = [trainer.iterate() for _ in range(trainer.config.num_iterations)]
        accuracy[recurrence] = np.nanmean([row["preference/accuracy"] for row in rows[-10:]])
    assert accuracy["none"] < 0.65
    assert accuracy["gru"] > 0.97


def test_a_recurrent_reward_teaches_to_recall() -> None:
    # Optimum 1, random .5; with a reward of single steps it stays there.
    options = {"env.options": {"lights": False}, "reward.hidden_sizes": [32, 32]}
    reward = {"reward.recurrence": "gru"}
    _, first, last = trained("probe/recall", "imap", 15_000, **RECURRENT, **options, **reward)
    assert first < 0.75
    assert last > 0.95


def test_imap_navigates() -> None:
    # Greedy pursuit -6.4, standing still -26.1, random -28.6.
    options = {"learner.rollout_steps": 25, "learner.minibatches": 4, "learner.epochs": 6}
    replay = {"preferences.replay_steps": 40_000, "reward.gradient_steps": 10}
    _, first, last = trained("particles/nav_3", "imap", 48_000, **options, **replay)
    assert first < -22.0
    assert last > -12.0


def value_of_the_start(trainer: Trainer) -> float:
    """Return V(s) of state 0 of the time-limit probe, in units of the reward."""
    state = torch.tensor([[1.0, 0.0]])
    critic, norm = mappo_of(trainer).critics["team"], trainer.norm
    obs, state = norm.obs(state.unsqueeze(1)), norm.state(state)
    if critic.sees_time:
        state = with_time(state, torch.zeros(1, dtype=torch.int64), 10)
    with torch.no_grad():
        output = critic(obs, state)
        return critic.value_norm.denormalise(output).item()


@pytest.mark.parametrize("finite_horizon", [False, True])
def test_a_time_limit_interrupts_or_ends_as_the_task_says(finite_horizon: bool) -> None:
    """The value of always earning 1 is 1 / (1 - gamma) if the limit of 10 steps interrupts.

    With gamma .9 that is 10. If the limit ends the task, the start, which only the first step
    shows, is worth (1 - .9^10) / (1 - .9) = 6.51.
    """
    options = {
        "env.options": {"reward_mode": "dense", "finite_horizon": finite_horizon},
        "learner.gamma": 0.9,
        "learner.rollout_steps": 20,
        "learner.gae_lambda": 1.0,
    }
    trainer, _, last = trained("probe/time_limit", "sparse", 40_000, **options)
    assert last > 9.9  # optimum 10, random 5
    expected = 6.51 if finite_horizon else 10.0
    assert value_of_the_start(trainer) == pytest.approx(expected, abs=0.3)
