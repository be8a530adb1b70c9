"""Scores tied to a scale: the term by hand, its minimum, and what it is at weight zero."""

import dataclasses
import math
from typing import Any

import pytest
import torch

import marl
from marl.config import Config, ConfigError, RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.rewards import FactoredReward, RewardLearner
from marl.rewards.calibration import CalibratedLoss, label_error, return_error
from marl.rewards.losses import PreferenceLoss, RegressionLoss, score_variance
from marl.trainer import Trainer
from tests.reward_models import CPU, OneBatch, batch_of, make_model, make_steps, uniform_policy

REWARDS = Rewards(team=torch.tensor([[1.0, 2.0, 100.0], [2.0, 4.0, 6.0]]))
"""With alpha = T_max = 10 the scores of `two_episodes` are 1 + 2 = 3 and 4/3 (2 + 4 + 6) = 16."""


def two_episodes(label: float = 1.0, returns: tuple[float, float] = (4.0, 34.0)) -> EpisodeBatch:
    """Return a whole episode of two steps, three of four steps of another, and one pair.

    The returns 4 and 34 are one deviation below and above the mean.
    """
    weights = [[1.0, 1.0, 0.0], [4 / 3, 4 / 3, 4 / 3]]
    batch = batch_of(weights, [2, 4], returns=list(returns), labels=[label])
    return dataclasses.replace(batch, return_mean=19.0, return_scale=15.0)


def error(to: str, batch: EpisodeBatch, **options: Any) -> float:
    config = RewardConfig(**options)
    return float((return_error if to == "return" else label_error)(REWARDS, batch, config, 10))


def test_the_return_error_by_hand() -> None:
    # kappa 2: targets -2 and 2, errors 5 and 14, squares 25 and 196.
    assert error("return", two_episodes(), calibration_scale=2.0) == pytest.approx(110.5)
    # Only the second is known: its square 196; without both there is no error.
    unknown = two_episodes(returns=(math.nan, 34.0))
    assert error("return", unknown, calibration_scale=2.0) == pytest.approx(196.0)
    assert error("return", two_episodes(returns=(math.nan, math.nan))) == 0.0


def test_the_return_error_without_the_variance_of_sampling() -> None:
    batch = two_episodes()
    variance = float(score_variance(REWARDS.team, batch, RewardConfig(), 10).mean())
    assert variance > 0.0
    unbiased = error("return", batch, calibration_scale=2.0, unbiased_regression=True)
    assert unbiased == pytest.approx(110.5 - variance, rel=1e-6)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (1.0, (2.0**2 + 17.0**2) / 2),  # targets 1 and -1
        (0.0, (4.0**2 + 15.0**2) / 2),  # targets -1 and 1
        (0.5, (3.0**2 + 16.0**2) / 2),  # a tie: both 0
        (0.75, (2.5**2 + 16.5**2) / 2),  # targets .5 and -.5
    ],
)
def test_the_label_error_by_hand(label: float, expected: float) -> None:
    assert error("label", two_episodes(label), calibration_scale=2.0) == pytest.approx(expected)


def test_the_label_error_is_that_of_cal_dpo() -> None:
    """arXiv 2412.14516, eq. 9: .5 (h_w - 1 / (2 beta))^2 + .5 (h_l + 1 / (2 beta))^2."""
    beta, preferred, other = 0.25, 3.0, 16.0
    published = 0.5 * (preferred - 1 / (2 * beta)) ** 2 + 0.5 * (other + 1 / (2 * beta)) ** 2
    assert error("label", two_episodes(), calibration_scale=1 / beta) == pytest.approx(published)


@pytest.mark.parametrize(("to", "value"), [("return", 110.5), ("label", 146.5)])
def test_the_weighted_sum_and_its_metrics(to: Any, value: float) -> None:
    config = RewardConfig(calibration=0.1, calibrate_to=to, calibration_scale=2.0)
    plain, batch = PreferenceLoss(config, 10), two_episodes()
    loss, metrics = CalibratedLoss(plain, config, 10)(REWARDS, batch)
    # Scores 3 and 16, the first preferred: -log sigmoid(-13) = 13 + 2e-6.
    assert float(loss) == pytest.approx(13.0 + 0.1 * value, abs=1e-4)
    assert float(metrics["calibration/loss"]) == pytest.approx(value)
    assert float(metrics["preference/loss"]) == pytest.approx(13.0, abs=1e-4)
    held_out = CalibratedLoss(plain, config, 10).evaluate(REWARDS, batch)
    assert held_out["calibration/held_out_loss"] == pytest.approx(value)
    assert held_out["preference/accuracy"] == 0.0


def test_at_preference_weight_zero_it_is_return_regression() -> None:
    """With returns of mean 0, of which none is shifted, to the last bit."""
    batch = dataclasses.replace(two_episodes(), return_mean=0.0)
    config = RewardConfig(calibration=1.0, preference_weight=0.0)
    loss = CalibratedLoss(PreferenceLoss(config, 10), config, 10)(REWARDS, batch)[0]
    assert torch.equal(loss, RegressionLoss(RewardConfig(), 10)(REWARDS, batch)[0])


def test_without_an_answered_pair_the_returns_still_count() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    silent = dataclasses.replace(two_episodes(), first=nobody, second=nobody, labels=torch.zeros(0))
    # kappa 1: errors 3 + 1 and 16 - 1, the mean square (16 + 225) / 2.
    for to, expected in (("return", 120.5), ("label", 0.0)):
        config = RewardConfig(calibration=1.0, calibrate_to=to)  # type: ignore[arg-type]
        loss, metrics = CalibratedLoss(PreferenceLoss(config, 10), config, 10)(REWARDS, silent)
        assert float(loss) == pytest.approx(expected)
        assert metrics["preference/loss"].isnan()


def test_targets_of_an_episode_in_several_pairs_cancel() -> None:
    """Of three episodes in order the middle one wins one pair and loses one: its score is 0."""
    scores = torch.tensor([[1.5], [0.0], [-1.5]], requires_grad=True)  # kappa (share - .5)
    batch = batch_of(
        [[1.0]] * 3, [1] * 3, first=[0, 0, 1], second=[1, 2, 2], labels=[1.0, 1.0, 1.0]
    )
    config = RewardConfig(alpha=1.0, calibration_scale=3.0)
    least = label_error(Rewards(team=scores), batch, config, 1)
    least.backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(3, 1))
    # Every target is +-1.5: the middle one misses both by 1.5, of three pairs 2 * 1.5^2 / 2.
    assert float(least.detach()) == pytest.approx(2 * 1.5**2 / 2 / 3)


def test_a_calibrated_model_reaches_the_scale() -> None:
    """Six episodes in order; Bradley-Terry alone has scores grow beyond any scale."""
    returns = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    first, second = torch.combinations(torch.arange(6)).unbind(-1)
    batch = dataclasses.replace(
        batch_of([[1.0] * 5] * 6, [5] * 6, returns=returns.tolist()),
        transitions=make_steps(0, 6, 5),
        first=first,
        second=second,
        labels=torch.zeros(len(first)),
        return_mean=float(returns.mean()),
        return_scale=float(returns.std(correction=0)),
    )
    model = make_model(FactoredReward, 0.0, gradient_steps=300, learning_rate=5e-3)
    config = dataclasses.replace(
        model.config,
        regularisation=0.0,
        split_regularisation=0.0,
        calibration=10.0,
        calibration_scale=2.0,
    )
    loss = CalibratedLoss(PreferenceLoss(config, 10), config, 10)
    learner = RewardLearner(model, "", config, 10, loss=loss, threads=1, device=CPU)
    metrics = learner.fit(OneBatch(batch), uniform_policy)
    assert metrics["preference/accuracy"] == 1.0
    # Bradley-Terry pulls the scores a little apart still: of 2 nats a deviation it is .1 or less.
    assert metrics["calibration/held_out_loss"] < 0.1**2 * 2


SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 8,
    "learner.rollout_steps": 25,
    "learner.epochs": 1,
    "threads": 1,
    "preferences.replay_steps": 1000,
}


def config_of(**settings: Any) -> Config:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return marl.load_config(overrides=SMALL | dotted)


@pytest.mark.parametrize("algorithm", ["imap", "sl", "rrd"])
def test_any_algorithm_takes_it(algorithm: str) -> None:
    trainer = Trainer(config_of(algorithm=algorithm, reward__calibration=0.5))
    assert trainer.feedback is not None
    metrics = [trainer.iterate() for _ in range(2)][-1]
    assert math.isfinite(metrics["calibration/loss"])
    assert math.isfinite(metrics["calibration/held_out_loss"])
    batch = trainer.feedback.batch()
    assert batch is not None
    mean, deviation = trainer.feedback.replay.return_moments()
    assert (batch.return_mean, batch.return_scale) == (mean, deviation)


def test_labels_alone_let_no_return_in() -> None:
    config = config_of(reward__calibration=0.5, reward__calibrate_to="label")
    assert not config.learns_from_returns
    assert config_of(reward__calibration=0.5).learns_from_returns
    trainer = Trainer(config)
    assert trainer.feedback is not None
    assert not trainer.feedback.uses_returns
    metrics = [trainer.iterate() for _ in range(2)][-1]
    assert math.isfinite(metrics["calibration/loss"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"algorithm": "rrd", "reward__calibration": 1.0, "reward__calibrate_to": "label"},
            'reward.calibrate_to: got "label".*uses no labels',
        ),
        ({"algorithm": "ircr", "reward__calibration": 1.0}, 'reward.model = "constant" fits'),
        ({"reward__preference_weight": 0.0}, "which leaves nothing to fit"),
        (
            {"reward__calibration": 1.0, "preferences__teacher__myopia": 0.5},
            "with reward.calibration the hidden rewards",
        ),
    ],
)
def test_settings_that_leave_nothing_to_fit_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(**settings)
