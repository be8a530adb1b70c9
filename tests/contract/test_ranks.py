"""Trainers that train together: the same networks everywhere, and no collective that one skips."""

from typing import Any

import pytest
import torch

import marl
from envs import EnvError
from marl.trainer import Trainer
from marl.utils.ranks import PeerError, Ranks
from tests.learners import mappo_of
from tests.ranks import in_ranks

SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "probe/dying",
    "env.num_envs": 4,
    "total_steps": 4 * 4 * 12,
    "threads": 2,
    "learner.rollout_steps": 12,
    "learner.epochs": 2,
    "learner.minibatches": 3,
    "network.hidden_sizes": [8],
    "reward.hidden_sizes": [8],
    "reward.mixer_hidden": 8,
    "reward.gradient_steps": 2,
    "preferences.replay_steps": 1000,
}


def trainer_of(ranks: Ranks, **options: Any) -> Trainer:
    """Return one of several trainers, with a part of the environments and draws of its own."""
    config = marl.load_config(overrides=SMALL | options)
    return Trainer(config, ranks=ranks)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learner.kind": "ippo", "learner.absence": "alive_mean", "algorithm": "slf"},
        {"algorithm": "ipl", "reward.gradient_steps": 0},
        {"network.recurrence": "gru", "reward.recurrence": "gru"},
        {"preferences.query": "disagreement", "preferences.queries_per_iteration": 4},
        {"algorithm": "ircr"},
        {"algorithm": "rrd"},
        {"learner.kind": "happo", "network.share_parameters": False, "algorithm": "slf"},
        {"algorithm": "rudder"},
        {"algorithm": "tar2", "reward.sequence.layers": 1},
        {"algorithm": "sparse", "env.name": "probe/continuous_match"},
    ],
    ids=str,
)
def test_networks_and_statistics_agree_in_all_processes(options: dict[str, Any]) -> None:
    def work(ranks: Ranks) -> Trainer:
        trainer = trainer_of(ranks, **options)
        for _ in range(trainer.config.num_iterations):
            trainer.iterate()
        return trainer

    first, second = in_ranks(2, work)
    assert not torch.equal(*[t.collector._buffers["obs"] for t in (first, second)])
    parts = [(t.learner.state_dict()["actor"], t.norm.state_dict()) for t in (first, second)]
    critics = [mappo_of(t).critics["team"].state_dict() for t in (first, second)]
    rewards = [{} if t.reward is None else t.reward.model.state_dict() for t in (first, second)]
    for mine, theirs in zip(
        (*parts[0], critics[0], rewards[0]), (*parts[1], critics[1], rewards[1]), strict=True
    ):
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name


def test_an_environment_that_fails_in_one_process_stops_all_where_they_were() -> None:
    def work(ranks: Ranks) -> tuple[type[BaseException], bool, int]:
        trainer = trainer_of(ranks)
        trainer.iterate()
        before = trainer.collector.state_dict()["env"]["inner"]["seeds"].copy()
        steps = trainer.collector._steps_before
        if ranks.rank == 1:

            def fail(actions: Any) -> Any:
                raise EnvError("mine")

            trainer.env.step = fail  # type: ignore[method-assign]
        with pytest.raises((EnvError, PeerError)) as caught:
            trainer.iterate()
        trainer.collector.load_state_dict(trainer.collector.state_dict())
        after = trainer.collector.state_dict()["env"]["inner"]["seeds"]
        assert (before == after).all()
        assert trainer.collector._steps_before == steps
        return caught.type, trainer.safe_to_checkpoint, trainer.iteration

    assert in_ranks(2, work) == [(PeerError, True, 1), (EnvError, True, 1)]
