"""What must not matter does not: hidden rewards, unused settings, a reward that is switched off.

Every comparison is bit for bit.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from marl.config import Config
from marl.config.io import load_config
from marl.data.types import Rewards, Rollout
from marl.trainer import Trainer
from tests.learners import mappo_of

SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "probe/local_credit",
    "env.num_envs": 4,
    "total_steps": 4 * 12 * 6,
    "threads": 1,
    "learner.rollout_steps": 12,
    "learner.epochs": 2,
    "learner.minibatches": 2,
    "network.hidden_sizes": [8],
    "reward.hidden_sizes": [8],
    "reward.mixer_hidden": 8,
    "reward.gradient_steps": 3,
    "reward.batch_episodes": 8,
    "preferences.replay_steps": 400,
}
"""Six iterations; episodes of 8 steps span the rollouts of 12."""


def small(**overrides: Any) -> Config:
    """Return a small run; a double underscore stands for the dot."""
    return load_config(
        overrides=SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
    )


def run(trainer: Trainer) -> list[dict[str, float]]:
    """Return the metrics of all iterations, without times and memory."""
    rows = []
    while trainer.iteration < trainer.config.num_iterations:
        metrics = trainer.iterate()
        rows.append({k: v for k, v in metrics.items() if not k.startswith(("time/", "memory/"))})
    return rows


def assert_same_run(left: Trainer, right: Trainer, *, ignore: str = "nothing") -> None:
    """Run both and compare metrics and policies."""
    for mine, theirs in zip(run(left), run(right), strict=True):
        mine, theirs = (
            {k: v for k, v in row.items() if not k.startswith(ignore)} for row in (mine, theirs)
        )
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert_same_policy(left, right)


def assert_same_policy(left: Trainer, right: Trainer) -> None:
    theirs = right.learner.actor.state_dict()
    for name, tensor in left.learner.actor.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("algorithm", "queries"),
    [
        *itertools.product(["imap", "ipl", "slf", "sl", "sparse"], [0, 8]),
        *itertools.product(["rrd", "rrd_central", "ircr", "rudder", "tar2"], [0]),
    ],
)
def test_poisoned_hidden_rewards_change_nothing(
    algorithm: str, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"algorithm": algorithm, "preferences__queries_per_iteration": queries}
    poisoned = Trainer(small(**options))
    monkeypatch.setattr(poisoned.env, "hidden_rewards", lambda: np.full(4, np.nan, np.float32))
    assert_same_run(Trainer(small(**options)), poisoned)


@pytest.mark.parametrize("algorithm", ["imap", "rrd", "ircr", "sparse"])
def test_poisoned_hidden_rewards_change_nothing_when_paid_in_parts(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"reward_mode": "every_k", "reward_every": 3}
    options: dict[str, Any] = {"algorithm": algorithm, "env__options": every}
    poisoned = Trainer(small(**options))
    monkeypatch.setattr(poisoned.env, "hidden_rewards", lambda: np.full(4, np.nan, np.float32))
    assert_same_run(Trainer(small(**options)), poisoned)


def test_the_oracle_does_see_hidden_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    poisoned = Trainer(small(algorithm="dense"))
    monkeypatch.setattr(poisoned.env, "hidden_rewards", lambda: np.full(4, 1.0, np.float32))
    poisoned.iterate()
    honest = Trainer(small(algorithm="dense"))
    honest.iterate()
    with pytest.raises(AssertionError):
        assert_same_policy(honest, poisoned)


def test_a_myopic_teacher_does_see_hidden_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one labeller that does, and only when it is asked for."""
    options = {"preferences__teacher__myopia": 0.9, "reward__gradient_steps": 20}
    poisoned = Trainer(small(**options))
    monkeypatch.setattr(poisoned.env, "hidden_rewards", lambda: np.full(4, 1.0, np.float32))
    honest = Trainer(small(**options))
    run(honest)
    run(poisoned)
    with pytest.raises(AssertionError):
        assert_same_policy(honest, poisoned)


@pytest.mark.parametrize(
    ("labeller", "sees"), [("return", False), ("facts", True)], ids=["by return", "by facts"]
)
def test_facts_reach_labellers_that_ask_for_them_and_nothing_else(
    labeller: str, sees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"env__name": "particles/nav_3", "preferences__labeller": labeller}
    if sees:
        options["preferences__facts"] = ["arrived", "mean_distance"]
    honest, poisoned = Trainer(small(**options)), Trainer(small(**options))
    task = poisoned.env.inner._teller  # type: ignore[attr-defined]
    original = type(task).facts
    monkeypatch.setattr(
        type(task),
        "facts",
        lambda self, a: -original(self, a) if self is task else original(self, a),
    )
    if not sees:
        assert_same_run(honest, poisoned, ignore="episode/")
        return
    run(honest)
    run(poisoned)
    with pytest.raises(AssertionError):
        assert_same_policy(honest, poisoned)


@pytest.mark.parametrize(
    "algorithm",
    [
        *("imap", "ipl", "slf", "sl", "rrd", "rrd_central", "ircr", "dpo"),
        *("rudder", "arel", "stas", "tar2"),
    ],
)
def test_learned_rewards_see_the_return_of_an_episode_and_no_single_reward(algorithm: str) -> None:
    """Paid at every step or at the end only: the sums are equal, and so is all that is learned."""
    assert_same_run(
        Trainer(small(algorithm=algorithm, env__options={"reward_mode": "episodic"})),
        Trainer(small(algorithm=algorithm, env__options={"reward_mode": "dense"})),
    )


def test_diagnosis_changes_nothing_but_its_own_metric() -> None:
    assert_same_run(Trainer(small()), Trainer(small(diagnose_hidden=True)), ignore="benchmark/")


def test_an_unfailing_teacher_is_no_teacher() -> None:
    """Errors of probability 0 leave no trace."""
    assert_same_run(
        Trainer(small()), Trainer(small(preferences__teacher__skip_below=-1e6)), ignore="labeller/"
    )


@pytest.mark.parametrize("algorithm", ["imap", "dpo"])
def test_ties_alone_do_not_move_the_policy(algorithm: str) -> None:
    trainer = Trainer(small(algorithm=algorithm, preferences__margin=1e6))
    actor = trainer.learner.actor
    assert isinstance(actor, torch.nn.Module)
    before = {name: p.detach().clone() for name, p in actor.named_parameters()}
    rows = run(trainer)
    assert rows[-1]["preference/informative_share"] == 0.0
    assert rows[-1]["preference/ties"] == 1.0
    for name, parameter in actor.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("algorithm", ["rrd", "ircr", "rudder"])
def test_equal_returns_do_not_move_the_policy(algorithm: str) -> None:
    """While nothing tells a better episode from a worse one, learned rewards are noise."""
    unpaid = {"reward_mode": "outcome", "reward_outcome": "tests.regression.test_no_leak:nothing"}
    options: dict[str, Any] = {"env__name": "particles/nav_3", "env__options": unpaid}
    trainer = Trainer(small(algorithm=algorithm, **options))
    actor = mappo_of(trainer).actor
    before = {name: p.detach().clone() for name, p in actor.named_parameters()}
    run(trainer)
    assert trainer.feedback is not None
    assert trainer.feedback.replay.num_finished > 0
    assert not trainer.feedback.is_informative
    for name, parameter in actor.named_parameters():
        assert torch.equal(parameter, before[name]), name


def nothing(facts: dict[str, Any]) -> Any:
    """Pay every finished episode alike."""
    return np.zeros(len(next(iter(facts.values()))))


@pytest.mark.parametrize("algorithm", ["sparse", "dense"])
def test_settings_of_the_reward_do_not_reach_plain_mappo(algorithm: str) -> None:
    assert_same_run(
        Trainer(small(algorithm=algorithm)),
        Trainer(
            small(
                algorithm=algorithm,
                learner__local_weight=1.0,
                reward__gamma=0.5,
                reward__hidden_sizes=[16],
                preferences__queries_per_iteration=5,
            )
        ),
    )


def test_the_oracle_is_plain_mappo_on_the_dense_task() -> None:
    dense = {"env__options": {"reward_mode": "dense"}}
    assert_same_run(
        Trainer(small(algorithm="dense", **dense)), Trainer(small(algorithm="sparse", **dense))
    )


class SwitchedOff(Trainer):
    """Learns a reward like IMAP and then maximises the task's own, at omega = 0."""

    def iterate(self) -> dict[str, float]:
        """Return the metrics that plain MAPPO has, too."""
        assert self.feedback is not None
        assert self.reward is not None
        observe, rewards = self.feedback.observe, self.reward.rollout_rewards
        seen: list[Rollout] = []

        def observing(rollout: Rollout, *others: Any) -> None:
            seen.append(rollout)
            observe(rollout, *others)

        def unused(*arguments: Any, **options: Any) -> tuple[Rewards, dict[str, float]]:
            rewards(*arguments, **options)
            nonsense = torch.full_like(seen[0].log_probs, float("nan"))
            return Rewards(team=seen[0].task_rewards, local=nonsense), {}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.feedback, "observe", observing)
            patch.setattr(self.reward, "rollout_rewards", unused)
            metrics = super().iterate()
        return {k: v for k, v in metrics.items() if not k.startswith(("preference/", "reward/"))}


@pytest.mark.parametrize("value_loss", ["gumbel", "soft"])
def test_a_learned_reward_that_is_not_used_leaves_plain_mappo(value_loss: str) -> None:
    """Fitting draws from generators of its own and edits nothing that the policy reads."""
    assert_same_run(
        Trainer(small(algorithm="sparse")),
        SwitchedOff(small(learner__local_weight=0.0, reward__value_loss=value_loss)),
    )


def test_one_seed_one_run() -> None:
    assert_same_run(Trainer(small()), Trainer(small()))
    with pytest.raises(AssertionError):
        assert_same_run(Trainer(small()), Trainer(small(seed=1)))


LABELS: dict[str, dict[str, Any]] = {
    "disagreement": {"query": "disagreement", "queries_per_iteration": 8},
    "entropy": {"query": "entropy", "queries_per_iteration": 8, "ensemble_size": 2},
    "stratified": {"query": "stratified", "queries_per_iteration": 8, "max_labels": 20},
    "free stratified": {"query": "stratified"},
    "hyperbolic": {"schedule": "hyperbolic", "queries_per_iteration": 8, "retire_after": 100},
    "noisy": {"teacher__rationality": 1.0, "teacher__mistakes": 0.2, "teacher__tie_within": 0.1},
    "myopic": {"teacher__myopia": 0.8, "teacher__skip_below": -0.5},
    "cold start": {"margin": 100.0, "tie_break": ["arrived", "novelty"]},
    "facts": {"labeller": "facts", "facts": ["arrived", "-length", "mean_distance"]},
}


@pytest.mark.parametrize("labels", LABELS)
def test_whoever_labels_a_loaded_trainer_continues_bit_for_bit(labels: str) -> None:
    options = {f"preferences__{key}": value for key, value in LABELS[labels].items()}
    config = small(env__name="particles/nav_3", **options)
    trainer, other = Trainer(config), Trainer(config)
    for _ in range(3):
        trainer.iterate()
    other.iterate()  # whatever it did before is overwritten
    other.load_state_dict(_copied(trainer.state_dict()))
    assert_same_run(trainer, other)


@pytest.mark.parametrize("algorithm", ["rrd", "ircr", "rudder", "arel", "stas", "tar2"])
def test_a_loaded_trainer_goes_on_learning_from_returns(algorithm: str) -> None:
    config = small(algorithm=algorithm, reward__unbiased_regression=True, reward__sample_steps=3)
    trainer, other = Trainer(config), Trainer(config)
    for _ in range(3):
        trainer.iterate()
    other.iterate()
    other.load_state_dict(_copied(trainer.state_dict()))
    assert_same_run(trainer, other)


@pytest.mark.parametrize("name", ["probe/dying", "probe/masked", "probe/continuous_match"])
@pytest.mark.parametrize("queries", [0, 8])
def test_a_loaded_trainer_continues_bit_for_bit(name: str, queries: int) -> None:
    config = small(
        env__name=name, preferences__queries_per_iteration=queries, reward__value_loss="soft"
    )
    trainer, other = Trainer(config), Trainer(config)
    for _ in range(3):
        trainer.iterate()
    other.iterate()  # whatever it did before is overwritten
    other.load_state_dict(_copied(trainer.state_dict()))
    assert_same_run(trainer, other)


def _copied(state: Any) -> Any:
    """Return a deep copy by way of what a checkpoint writes."""
    from marl.utils.encoding import decode, encode

    def cloned(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: cloned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(cloned(item) for item in value)
        return value

    return decode(cloned(encode(state)))
